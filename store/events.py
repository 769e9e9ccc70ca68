"""The event log: append-only, numbered from 1 without gaps in each job. The primary record of what happened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, Text, cast, func, insert, select
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


def page_within(session: Session, job_id: str, after: int, limit: int, bytes: int) -> Sequence[Event]:
    """`page`, cut so that the bodies take about `bytes` as JSON; at least one event, if there is one.

    What is too much is not read, so that a reader of large events needs no more memory than of small ones.
    """
    last, taken = after, 0
    with session.execute(_sizes(session, job_id, after, limit, bytes)) as sizes:
        for seq, size in sizes:
            if last > after and taken + size > bytes:
                break
            last, taken = seq, taken + size
    query = select(Event).where(Event.job_id == job_id, Event.seq > after, Event.seq <= last).order_by(Event.seq)
    return session.scalars(query).all()


def _sizes(session: Session, job_id: str, after: int, limit: int, bytes: int) -> Select[Any]:
    """Numbers and sizes of the events to come, of at most `limit`, and of few more than are within `bytes`."""
    wanted = select(Event).where(Event.job_id == job_id, Event.seq > after).order_by(Event.seq).limit(limit)
    if session.get_bind().dialect.name != "postgresql":
        return wanted.with_only_columns(Event.seq, func.length(Event.body))  # row by row, as they are asked for
    # PostgreSQL works out all rows before it gives one. What it stores is compressed, so its size is a lower bound
    # that costs nothing: only what is within the bounds by that is unpacked to be measured
    these = wanted.with_only_columns(Event.seq, Event.body).subquery()
    stored = func.pg_column_size(these.c.body)
    before = select(*these.c, (func.sum(stored).over(order_by=these.c.seq) - stored).label("before")).subquery()
    size = func.octet_length(cast(before.c.body, Text))
    return select(before.c.seq, size).where(before.c.before < bytes).order_by(before.c.seq)
