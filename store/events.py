"""The event log: append-only, numbered from 1 without gaps in each job. The primary record of what happened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from store.columns import now_utc, storable, storable_text
from store.errors import NotFound
from store.records import Event, Job

EventLine = tuple[str, Mapping[str, Any]]  # name, body


def lock_job(session: Session, job_id: str) -> Job:
    """The job's row, held until the transaction ends: whoever numbers events or changes the state holds it.

    On SQLite the whole database is held by BEGIN IMMEDIATE already. Raises `NotFound`.
    """
    job = session.scalars(
        select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    ).one_or_none()
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


def append(
    session: Session, job_id: str, attempt: int | None, events: Iterable[EventLine], now: datetime | None = None
) -> int:
    """Append events to a job's log and return the last number given out.

    `attempt` is the attempt's number, None for what the service itself says. The writes of an attempt come through
    `store.leases.append_events`, which checks its lease first.
    """
    return append_to(session, lock_job(session, job_id), attempt, events, now or now_utc())


def append_to(session: Session, job: Job, attempt: int | None, events: Iterable[EventLine], now: datetime) -> int:
    """`append` for a job whose row is held already (`lock_job`)."""
    rows = [
        {
            "job_id": job.id,
            "seq": job.next_event_seq + offset,
            "attempt": attempt,
            "name": storable_text(name)[:255],
            "body": storable(body),
            "created_at": now,
        }
        for offset, (name, body) in enumerate(events)
    ]
    if rows:
        session.execute(insert(Event), rows)
        job.next_event_seq += len(rows)
        session.flush()
    return job.next_event_seq - 1


def page(session: Session, job_id: str, after: int = 0, limit: int = 100) -> Sequence[Event]:
    """The events numbered above `after`, at most `limit`, in order."""
    query = select(Event).where(Event.job_id == job_id, Event.seq > after).order_by(Event.seq).limit(limit)
    return session.scalars(query).all()
