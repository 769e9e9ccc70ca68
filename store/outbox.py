"""The outbox: ids to publish to the queue, written in the transaction that makes them due.

The broker is a doorbell and may lose any message, so each is published again, at growing intervals, until the job is
claimed or the upload's check is over. A message for something that is claimed already does no harm: the claim fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from store.columns import now_utc
from store.ids import new_id
from store.records import OutboxMessage, Topic

BACKOFF_SECONDS = (5, 10, 20, 30)  # after the 1st, 2nd, 3rd, 4th and every later publication
INSPECT_QUEUE = "inspect"
FETCH_QUEUE = "fetch"


def add(
    session: Session, topic: Topic, subject_id: str, queue: str, now: datetime | None = None, *, delay: float = 0.0
) -> None:
    """Have `subject_id` published to `queue`, from `delay` seconds on. Each has one message: one that is there already
    starts over, whatever it was for."""
    now = now or now_utc()
    next_at = now + timedelta(seconds=delay)
    same = OutboxMessage.subject_id == subject_id
    message = session.scalars(select(OutboxMessage).where(same).with_for_update()).one_or_none()
    if message is not None:
        if message.queue != queue:  # it waits there from now on
            message.created_at = now
        message.topic, message.queue, message.next_at, message.rings = topic, queue, next_at, 0
    else:
        message = OutboxMessage(
            id=new_id("out"), topic=topic, subject_id=subject_id, queue=queue, created_at=now, next_at=next_at
        )
        session.add(message)
    session.flush()


def due(session: Session, now: datetime, limit: int = 100) -> Sequence[OutboxMessage]:
    """The messages to publish now, oldest first. Several relays share them out: rows that one holds, others skip."""
    query = (
        select(OutboxMessage)
        .where(OutboxMessage.next_at <= now)
        .order_by(OutboxMessage.next_at, OutboxMessage.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(query).all()


def rung(session: Session, message_id: str, now: datetime) -> None:
    """The message was published; it is due again after 5, 10, 20, 30, 30 … seconds. A settled one stays gone."""
    message = session.get(OutboxMessage, message_id)
    if message is not None:
        wait = BACKOFF_SECONDS[min(message.rings, len(BACKOFF_SECONDS) - 1)]
        message.next_at = now + timedelta(seconds=wait)
        message.rings += 1


def hold(session: Session, subject_id: str, until: datetime) -> None:
    """Somebody is at it: do not ring again before `until`."""
    session.execute(update(OutboxMessage).where(OutboxMessage.subject_id == subject_id).values(next_at=until))


def settle(session: Session, subject_id: str) -> datetime | None:
    """No more need to ring. Returns since when there was; None if there was none."""
    settled = delete(OutboxMessage).where(OutboxMessage.subject_id == subject_id).returning(OutboxMessage.created_at)
    return session.scalar(settled)
