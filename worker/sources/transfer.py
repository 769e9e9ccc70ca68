"""Bytes from elsewhere into a file: hashed on the way, counted, gone on with where they broke off."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import structlog

from worker.guard import Order
from worker.sources.errors import (
    Interrupted,
    SourceTooLarge,
    SourceUnavailable,
    Stopped,
    StorageFull,
)

TRIES = 10
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 10.0
SPACE_BYTES = 64 * 2**20  # how often the free space is looked at
TICK_SECONDS = 0.1

log = structlog.get_logger("billhook.worker")


@dataclass(frozen=True)
class Rules:
    """What a fetch may take. `until`: when it must be over, on the monotonic clock. `order`: whether it is wanted."""

    max_bytes: int
    min_free_bytes: int
    idle_seconds: float
    until: float
    order: Callable[[], Order | None]
    pinned_sha256: str | None = None

    def check(self) -> None:
        """Raises `Stopped`, or `SourceUnavailable` when it has taken too long."""
        if (order := self.order()) is not None:
            raise Stopped(order)
        if time.monotonic() > self.until:
            raise SourceUnavailable("the dataset could not be fetched in time (BILLHOOK_FETCH_SECONDS_LIMIT)")

    def wait(self, seconds: float) -> None:
        """Raises as `check`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.check()
            time.sleep(min(TICK_SECONDS, seconds))


@dataclass
class Sink:
    """Where the bytes go. Raises `SourceTooLarge` and `StorageFull` as soon as either is certain."""

    path: Path
    file: IO[bytes]
    rules: Rules
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    _looked: int = -SPACE_BYTES

    def announce(self, total: int) -> None:
        """So many bytes are to come, all in all."""
        if total > self.rules.max_bytes:
            raise SourceTooLarge(
                f"the dataset has {total} bytes; at most {self.rules.max_bytes} are taken (BILLHOOK_MAX_UPLOAD_BYTES)"
            )
        self._check_space(total - self.size)

    def take(self, data: bytes | memoryview) -> None:
        self.rules.check()
        if self.size + len(data) > self.rules.max_bytes:
            raise SourceTooLarge(
                f"the dataset has more than the {self.rules.max_bytes} bytes that are taken (BILLHOOK_MAX_UPLOAD_BYTES)"
            )
        if self.size - self._looked >= SPACE_BYTES:
            self._check_space(len(data))
            self._looked = self.size
        self.digest.update(data)
        self.file.write(data)
        self.size += len(data)

    def restart(self) -> None:
        """From the first byte again."""
        self.file.seek(0)
        self.file.truncate()
        self.size, self.digest, self._looked = 0, hashlib.sha256(), -SPACE_BYTES

    def adopt(self) -> None:
        """Take what was written to the file in another way. It is read once more, to be hashed."""
        self.size, self.digest = 0, hashlib.sha256()
        self.file.flush()
        self.file.seek(0)
        while data := self.file.read(2**20):
            self.rules.check()
            self.digest.update(data)
            self.size += len(data)

    def _check_space(self, coming: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        # the file lies here and then in the storage too, which by default is on the same disk
        if free - 2 * coming - self.size < self.rules.min_free_bytes:
            raise StorageFull(
                f"the worker has not enough free space: {free / 2**20:.0f} MiB are free, and "
                f"{self.rules.min_free_bytes / 2**20:.0f} MiB must stay free (BILLHOOK_MIN_FREE_BYTES)"
            )


class Part(Protocol):
    """What a server sends in one go. `start`: of its first byte. `total`: bytes of the whole, None if it does not say.
    `version`: what the file is known by, None where nothing certain is said."""

    start: int
    total: int | None
    version: str | None

    def chunks(self) -> Iterator[bytes]:
        """Raises `Interrupted`."""

    def close(self) -> None: ...


class Remote(Protocol):
    def open(self, start: int, version: str | None) -> Part:
        """The bytes from `start` on of the file known by `version`, or all of it. Raises `Interrupted` or a
        `SourceError`."""


def download(remote: Remote, sink: Sink) -> None:
    """All of it into `sink`, in at most `TRIES` tries. Raises `SourceError` or `Stopped`."""
    version: str | None = None
    for number in range(1, TRIES + 1):
        sink.rules.check()
        try:
            part = remote.open(sink.size, version)
            try:
                if part.start != sink.size:
                    sink.restart()
                version = part.version
                if part.total is not None:
                    sink.announce(part.total)
                for chunk in part.chunks():
                    sink.take(chunk)
            finally:
                part.close()
            sink.rules.check()  # it may have ended because it was to
            if part.total in (None, sink.size):
                return
            raise Interrupted(f"it ended after {sink.size} of {part.total} bytes")
        except Interrupted as broken:
            sink.rules.check()  # it may have broken off because it was to
            log.info("a fetch broke off", number=number, bytes=sink.size, reason=str(broken))
            if broken.restart or version is None:  # nothing says that the rest would be of the same file
                version = None
                sink.restart()
            reason = str(broken)
        if number < TRIES:
            sink.rules.wait(min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (number - 1)))
    raise SourceUnavailable(f"the dataset could not be fetched in {TRIES} tries: {reason}")
