"""Whether this process can work, check by check. What they say is open to everybody: no address, no path, no secret.

`failed` takes this process out of service: without its records or its files no request can be answered. `degraded` does
not: the service answers, and an operator should look. So it is with the broker, which is a doorbell: jobs are taken
without it, and start once it is back.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import structlog
from kombu.connection import Connection
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from api.bounded_probe import Probe
from store.artifacts import ArtifactStore
from store.database import connect_briefly, reading
from store.errors import StorageUnavailable
from store.figures import overdue_seconds
from store.migrate import revision_of, revisions
from store.settings import Settings

State = Literal["ok", "degraded", "failed"]
ANSWER_SECONDS = 1.5  # for all checks together: they are asked at once
DATABASE_SECONDS = 2
FRESH_SECONDS: Mapping[str, float] = {"database": 2.0, "storage": 15.0, "broker": 5.0, "queue": 5.0, "disk": 2.0}
"""How long an answer is good. That of the storage costs a write, which S3 asks money for."""
OVERDUE_SECONDS = 60.0
log = structlog.get_logger()


@dataclass(frozen=True)
class Check:
    """What was found. `detail` is for a person."""

    name: str
    state: State
    detail: str


class Pulses:
    """When the loops of this process last came round."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._within: dict[str, float] = {}

    def expect(self, name: str, seconds: float) -> None:
        """From now on `name` comes round at least every so many seconds."""
        self._at[name], self._within[name] = time.monotonic(), seconds

    def beat(self, name: str) -> None:
        """It came round."""
        self._at[name] = time.monotonic()

    def check(self) -> Check:
        now = time.monotonic()
        late = sorted(name for name, at in self._at.items() if now - at > self._within[name])
        if late:
            return Check("loops", "degraded", f"did not come round in time: {', '.join(late)}")
        return Check("loops", "ok", "come round in time")


class Readiness:
    """The checks of one process."""

    def __init__(self, settings: Settings, artifacts: ArtifactStore) -> None:
        self.pulses = Pulses()
        self._settings = settings
        self._artifacts = artifacts
        self._engine: Engine = connect_briefly(settings.database_url, DATABASE_SECONDS)
        self._revisions = revisions()
        asked: Mapping[str, Callable[[], Check]] = {
            "database": self._database, "storage": self._storage, "broker": self._broker, "queue": self._queue,
            "disk": self._disk,
        }  # fmt: skip
        self._probes = {name: Probe(ask, FRESH_SECONDS[name]) for name, ask in asked.items()}

    async def checks(self) -> list[Check]:
        """All of them, in about `ANSWER_SECONDS` at the latest."""
        found = await asyncio.gather(*(self._check(name, probe) for name, probe in self._probes.items()))
        return [*found, self.pulses.check()]

    async def _check(self, name: str, probe: Probe[Check]) -> Check:
        needed = name in ("database", "storage")
        try:
            return await probe.answer(ANSWER_SECONDS)
        except TimeoutError:
            return Check(name, "failed" if needed else "degraded", f"gives no answer within {ANSWER_SECONDS} s")
        except Exception as error:  # a check that cannot be made is no pass
            log.error("a check of readiness failed", check=name, exc_info=error)
            return Check(name, "failed" if needed else "degraded", "could not be checked; the log says why")

    def _database(self) -> Check:
        """It answers, and has the schema that this code was written for.

        One that is ahead does not take the old processes out of service while the new ones are being started.
        """
        try:
            with reading(self._engine) as session:
                found = revision_of(session)
        except SQLAlchemyError as error:
            log.warning("the database does not answer, or has no schema", error=type(error).__name__)
            return Check("database", "failed", "does not answer, or has no schema")
        if found == self._revisions[0]:
            return Check("database", "ok", f"answers, at revision {found}")
        if found in self._revisions:
            detail = f"is at revision {found} and must be migrated to {self._revisions[0]}"
            return Check("database", "failed", detail)
        return Check("database", "degraded", "has a schema that is newer than this process")

    def _storage(self) -> Check:
        try:
            self._artifacts.ping()
        except StorageUnavailable as error:
            log.warning("the storage cannot be written", error=type(error.__cause__).__name__)
            return Check("storage", "failed", "cannot be written")
        return Check("storage", "ok", "can be written")

    def _broker(self) -> Check:
        if (queue := self._settings.queue_dir) is not None:
            folder = queue / "messages"
            if not folder.is_dir():
                return Check("broker", "degraded", "no worker has been started on the folder of the queue yet")
            writable = os.access(folder, os.W_OK | os.X_OK)
            return Check("broker", "ok", "is a folder") if writable else _away("cannot be written")
        try:
            with Connection(  # type: ignore[no-untyped-call]
                self._settings.broker_url,
                ssl=self._settings.broker_tls or False,
                connect_timeout=1.0,
                transport_options=_TIMEOUTS,
            ) as connection:
                connection.ensure_connection(max_retries=1, timeout=1.0)
        except Exception as error:  # each transport has its own, and some are of no common kind
            log.warning("the broker does not answer", error=type(error).__name__)
            return _away("does not answer")
        return Check("broker", "ok", "answers")

    def _queue(self) -> Check:
        """Whether somebody publishes: the relay runs in the workers."""
        try:
            with reading(self._engine) as session:
                late = overdue_seconds(session)
        except SQLAlchemyError:
            return Check("queue", "degraded", "unknown: the database does not answer")
        if late > OVERDUE_SECONDS:
            detail = f"nothing was published for {late:.0f} s that should have been; is there no worker running?"
            return Check("queue", "degraded", detail)
        return Check("queue", "ok", "what is due is published")

    def _disk(self) -> Check:
        """Uploads lie on this disk until their hash is known."""
        free = shutil.disk_usage(self._settings.data_dir).free
        if free < self._settings.min_free_bytes:
            detail = f"{free} bytes are free, fewer than uploads must leave: they are refused"
            return Check("disk", "degraded", detail)
        return Check("disk", "ok", "has room for uploads")


_TIMEOUTS = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "max_retries": 0}


def _away(how: str) -> Check:
    return Check("broker", "degraded", f"{how}: jobs are taken, and start once it is back")
