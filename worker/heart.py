"""The heartbeat of a lease: a thread that extends it, and knows when it is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

import structlog
from sqlalchemy.exc import SQLAlchemyError

from store.errors import NotFound
from store.logs import ContextThread
from worker.guard import Order

Held = Literal["held", "cancelling", "lost"]
LOOK_SECONDS = 1.0  # a cancellation is noticed within this

log = structlog.get_logger("billhook.worker")


class Heart(ContextThread):
    """Calls `beat` every `interval` seconds, and `look` (which only reads) every second between.

    The lease counts as lost when either says so, when `lose` is called, or when no beat has come through for
    `lease_seconds`: then somebody else may hold it already, whether the database can be reached from here or not.
    """

    def __init__(
        self,
        beat: Callable[[], Held],
        look: Callable[[], Held],
        *,
        interval: float,
        lease_seconds: float,
        stopping: threading.Event,
    ) -> None:
        super().__init__(name="heartbeat")
        self._beat = beat
        self._look = look
        self._interval = interval
        self._lease_seconds = lease_seconds
        self._stopping = stopping
        self._state: Held = "held"
        self._held_until = time.monotonic() + lease_seconds
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()  # not joined: it may hang in a database that does not answer, and what it says is fenced

    @property
    def lost(self) -> bool:
        return self._state == "lost" or time.monotonic() > self._held_until

    def lose(self) -> None:
        """A write was refused: the lease is gone."""
        self._state = "lost"

    def order(self) -> Order | None:
        """What is to become of the child: None, go on."""
        if self.lost:
            return "lost"
        if self._state == "cancelling":
            return "cancelled"
        return "stopped" if self._stopping.is_set() else None

    def work(self) -> None:
        beat_at = time.monotonic() + self._interval
        while not self._closed.wait(min(self._interval, LOOK_SECONDS)) and not self.lost:
            now = time.monotonic()
            try:
                if now >= beat_at:
                    state = self._beat()
                    self._held_until = now + self._lease_seconds
                    beat_at = now + self._interval
                else:
                    state = self._look()
            except SQLAlchemyError as error:
                log.warning("heartbeat failed", error=type(error).__name__)
                continue
            except NotFound:  # deleted
                state = "lost"
            if self._state != "lost":
                self._state = state
