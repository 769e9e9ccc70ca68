"""What the service is doing, in figures, from the database: the same whoever asks. A few queries, each by an index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from store import counters
from store.columns import now_utc
from store.counters import Labels
from store.records import TERMINAL, TRANSITIONS, Attempt, Dataset, Job, Model, OutboxMessage, Topic

CHECKS: tuple[Topic, ...] = ("inspect_model", "inspect_dataset", "fetch_dataset")
OPEN = tuple(state for state in TRANSITIONS if state not in TERMINAL)
"""Jobs that are not over: they are few. The others only grow in number, and are counted when they end."""


@dataclass(frozen=True)
class Waiting:
    """How many wait, and for how many seconds the one that waits longest has waited."""

    count: int
    oldest_seconds: float


@dataclass(frozen=True)
class Figures:
    """`queues`: jobs, checks and fetches that nobody is at, by queue. `uploads`: that are not checked yet, whether
    somebody is at it or not, by topic. `jobs`: that are not over, by state. `overdue_seconds`: for how long a message
    should have been published."""

    queues: Mapping[str, Waiting]
    uploads: Mapping[str, Waiting]
    jobs: Mapping[str, int]
    attempts: Mapping[str, int]
    outbox: Mapping[str, int]
    overdue_seconds: float
    counted: Mapping[str, Mapping[Labels, float]]


def figures(session: Session, now: datetime | None = None) -> Figures:
    """All of it, as `session` sees it."""
    now = now or now_utc()
    running = select(Attempt.device, func.count()).where(Attempt.ended_at.is_(None)).group_by(Attempt.device)
    open_jobs = select(Job.state, func.count()).where(Job.state.in_(OPEN)).group_by(Job.state)
    uploads = _waiting(session, OutboxMessage.topic, OutboxMessage.topic.in_(CHECKS), now)
    jobs_waiting = _waiting(session, OutboxMessage.queue, OutboxMessage.topic == "run", now)
    return Figures(
        queues=jobs_waiting | _checks_waiting(session, now),
        uploads=uploads,
        jobs=_counts(session, open_jobs),
        attempts=_counts(session, running),
        outbox=_counts(session, select(OutboxMessage.topic, func.count()).group_by(OutboxMessage.topic)),
        overdue_seconds=overdue_seconds(session, now),
        counted=counters.read(session),
    )


def overdue_seconds(session: Session, now: datetime | None = None) -> float:
    """For how long the message that is due longest should have been published; 0 if none is."""
    now = now or now_utc()
    due = session.scalar(select(func.min(OutboxMessage.next_at)))
    return 0.0 if due is None else max(0.0, (now - due).total_seconds())


def _waiting(
    session: Session, by: InstrumentedAttribute[Any], which: ColumnElement[bool], now: datetime
) -> dict[str, Waiting]:
    query = select(by, func.count(), func.min(OutboxMessage.created_at)).where(which).group_by(by)
    return {
        name: Waiting(number, max(0.0, (now - oldest).total_seconds()))
        for name, number, oldest in session.execute(query)
    }


def _checks_waiting(session: Session, now: datetime) -> dict[str, Waiting]:
    """Those whose lease on the check nobody has: their messages stay until the check is over."""
    query = (
        select(OutboxMessage.queue, func.count(), func.min(OutboxMessage.created_at))
        .outerjoin(Model, Model.id == OutboxMessage.subject_id)
        .outerjoin(Dataset, Dataset.id == OutboxMessage.subject_id)
        .where(
            OutboxMessage.topic.in_(CHECKS),
            or_(Model.check_expires_at.is_(None), Model.check_expires_at < now),
            or_(Dataset.check_expires_at.is_(None), Dataset.check_expires_at < now),
        )
        .group_by(OutboxMessage.queue)
    )
    return {
        name: Waiting(number, max(0.0, (now - oldest).total_seconds()))
        for name, number, oldest in session.execute(query)
    }


def _counts(session: Session, query: Select[Any, int]) -> dict[str, int]:
    return {name: number for name, number in session.execute(query)}  # noqa: C416  # rows are no plain pairs for mypy
