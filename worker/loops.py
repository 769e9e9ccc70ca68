"""The relay, the reaper and the worker's own beat: threads of every worker process. Any number may run; what they write
is conditional."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import structlog
from kombu.exceptions import OperationalError as BrokerAway
from sqlalchemy.exc import OperationalError as DatabaseAway

from store import outbox
from store.columns import now_utc
from store.database import reading, transaction
from store.reaper import Reaper
from worker.app import Ring
from worker.context import Context

Result = TypeVar("Result")

log = structlog.get_logger("billhook.worker")


def relay(context: Context, ring: Ring) -> int:
    """Publish what is due; returns how many were. A message counts as rung before it is sent.

    So no lock is held while the broker is spoken to, two relays do not send the same, and what is lost between the two
    is rung again a few seconds later. Raises what `ring` raises.
    """
    with reading(context.engine) as session:  # most of the time there is nothing, and no write lock is taken
        if not outbox.due(session, now_utc(), limit=1):
            return 0
    with transaction(context.engine) as session:
        now = now_utc()
        due = [(message.id, message.topic, message.subject_id, message.queue) for message in outbox.due(session, now)]
        for message_id, *_ in due:
            outbox.rung(session, message_id, now)
    for _, topic, subject_id, queue in due:
        ring(topic, subject_id, queue)
    return len(due)


class Loop(threading.Thread, Generic[Result]):
    """Calls `action` every `seconds` until `stopping`. An error is logged, once for as long as it lasts; it goes on.

    `shows` tells of what the action returned whether it works again: an empty outbox says nothing of the broker.
    """

    def __init__(
        self, name: str, action: Callable[[], Result], seconds: float, stopping: threading.Event,
        shows: Callable[[Result], bool] = lambda _: True,
    ) -> None:  # fmt: skip
        super().__init__(name=name, daemon=True)
        self._action = action
        self._seconds = seconds
        self._stopping = stopping
        self._shows = shows

    def run(self) -> None:
        failing = set[str]()
        while not self._stopping.wait(self._seconds):
            try:
                result = self._action()
            except Exception as error:  # the database or the broker is away; nothing is lost by it
                if type(error).__name__ not in failing:
                    failing.add(type(error).__name__)
                    self._tell(error)
                continue
            if failing and self._shows(result):
                log.info(f"{self.name} works again")
                failing.clear()

    def _tell(self, error: Exception) -> None:
        away = isinstance(error, (BrokerAway, DatabaseAway, OSError))
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        log.warning(f"{self.name} failed; it goes on trying", reason=reason[0], exc_info=None if away else error)


def start_loops(context: Context, ring: Ring) -> list[Loop[Any]]:
    """Start relay, reaper and beat as daemon threads."""
    settings = context.settings
    reaper = Reaper(context.engine, settings.lease_seconds)
    loops: list[Loop[Any]] = [
        Loop("relay", lambda: relay(context, ring), settings.relay_seconds, context.stopping, lambda sent: sent > 0),
        Loop("reaper", reaper, settings.reaper_seconds, context.stopping),
        Loop("beat", context.presence.beat, settings.heartbeat_seconds, context.stopping),
    ]
    for loop in loops:
        loop.start()
    return loops
