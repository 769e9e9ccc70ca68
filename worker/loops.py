"""The relay and the reaper: two threads of every worker process. Any number may run; what they write is conditional."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from store import outbox
from store.columns import now_utc
from store.database import reading, transaction
from store.reaper import Reaper
from store.records import Topic
from worker.context import Context

Ring = Callable[[Topic, str, str], None]

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


class Loop(threading.Thread):
    """Calls `action` every `seconds` until `stopping`. An error is logged, once for as long as it lasts; it goes on."""

    def __init__(self, name: str, action: Callable[[], object], seconds: float, stopping: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self._action = action
        self._seconds = seconds
        self._stopping = stopping

    def run(self) -> None:
        failing = None
        while not self._stopping.wait(self._seconds):
            try:
                self._action()
            except Exception as error:  # the database or the broker is away; nothing is lost by it
                if failing != type(error).__name__:
                    failing = type(error).__name__
                    log.exception(f"{self.name} failed; it goes on trying")
            else:
                if failing is not None:
                    log.info(f"{self.name} works again")
                failing = None


def start_loops(context: Context, ring: Ring) -> list[Loop]:
    """Start relay and reaper as daemon threads."""
    settings = context.settings
    reaper = Reaper(context.engine, settings.lease_seconds)
    loops = [
        Loop("relay", lambda: relay(context, ring), settings.relay_seconds, context.stopping),
        Loop("reaper", reaper, settings.reaper_seconds, context.stopping),
    ]
    for loop in loops:
        loop.start()
    return loops
