"""This worker among the others: it says that it is there, and what it works on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from store import workers
from store.columns import now_utc
from store.database import transaction
from store.ids import new_id
from store.workers import Identity

log = structlog.get_logger("billhook.worker")


class Presence:
    """Has the worker's row. Nothing depends on it but what people see, so what cannot be written now is left out."""

    def __init__(self, engine: Engine, lease_seconds: float) -> None:
        self._engine = engine
        self._seconds = lease_seconds
        self._started_at = now_utc()
        self._identity: Identity | None = None
        self._subject_id: str | None = None
        self._lock = threading.Lock()  # the loop beats, and so does the thread that works

    def enter(self, name: str, queues: Sequence[str], device: str | None, version: str | None) -> None:
        """From now on the worker is there."""
        self._identity = Identity(new_id("wrk"), name, socket.gethostname(), tuple(queues), device, version)
        self._quietly()

    def beat(self) -> None:
        """Say so again. Raises SQLAlchemy's error if the database does not take it."""
        with self._lock:
            if self._identity is None:
                return
            with transaction(self._engine) as session:
                workers.beat(
                    session, self._identity, started_at=self._started_at, seconds=self._seconds,
                    subject_id=self._subject_id,
                )  # fmt: skip

    @contextmanager
    def at_work(self, subject_id: str) -> Iterator[None]:
        """Within, the worker works on this job or upload."""
        self._subject_id = subject_id
        self._quietly()
        try:
            yield
        finally:
            self._subject_id = None
            self._quietly()

    def leave(self) -> None:
        """The worker ends; a beat that is still under way does not bring it back."""
        with self._lock:
            identity, self._identity = self._identity, None
        if identity is not None:
            try:
                with transaction(self._engine) as session:
                    workers.leave(session, identity.id)
            except SQLAlchemyError as error:  # it is forgotten as one that fell silent
                log.warning("the worker's record stays", error=type(error).__name__)

    def _quietly(self) -> None:
        try:
            self.beat()
        except SQLAlchemyError as error:  # the loop says it again
            log.warning("the worker's record is not up to date", error=type(error).__name__)
