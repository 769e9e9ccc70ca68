"""Leases: who works on a job. A claim opens an attempt with a token and an expiry; every write of it shows the token.

An attempt that was given up (its worker silent past the expiry) may still be running somewhere: none of its writes
go through any more, however late they come. All functions here lock the job's row first, so they never interleave.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from store import counters, outbox
from store.columns import now_utc, storable, storable_text
from store.errors import LeaseLost
from store.events import EventLine, append_to, lock_job
from store.ids import new_id
from store.records import HELD, TERMINAL, TRANSITIONS, Artifact, Attempt, Job, Outcome, TerminalState, move

MAX_DEATHS = 3  # in a row, without a new checkpoint between them
LEASE_SECONDS = 30.0
Held = Literal["held", "cancelling", "lost"]


@dataclass(frozen=True)
class Lease:
    """The right to work on a job. A value: it may outlive the session that made it, and cross threads."""

    job_id: str
    attempt_id: str
    number: int
    token: str
    seconds: float
    run_seconds_left: float  # of the job's limit on running time, all attempts together


def claim(
    session: Session,
    job_id: str,
    worker: str,
    device: str,
    now: datetime | None = None,
    *,
    host: str = "",
    environment: Mapping[str, Any] | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> Lease | None:
    """Take a queued job: a conditional UPDATE, then a new attempt. None if it is not to be had (any more).

    `worker` names the process that works (`host:pid`), `device` what it works on (`cpu`, `cuda:0`). Time in the queue
    is not counted: the lease says how much running time is left.
    """
    now = now or now_utc()
    claimable = [state for state, following in TRANSITIONS.items() if "running" in following]
    taken = session.execute(
        # a no-op UPDATE takes the row only if the job may be claimed; of two workers one sees no row
        update(Job).where(Job.id == job_id, Job.state.in_(claimable)).values(attempt_count=Job.attempt_count + 1)
    )
    if taken.rowcount != 1:  # type: ignore[attr-defined]
        return None
    job = lock_job(session, job_id)
    waited_since = outbox.settle(session, job_id)
    if waited_since is not None:
        counters.count(session, "queue_wait", queue=job.queue)
        counters.count(session, "queue_wait_seconds", max(0.0, (now - waited_since).total_seconds()), queue=job.queue)
    attempt = Attempt(
        id=new_id("att"),
        job_id=job_id,
        number=job.attempt_count,
        worker=storable_text(worker),
        host=storable_text(host or worker.partition(":")[0]),
        device=device,
        lease_token=secrets.token_hex(16),
        lease_seconds=lease_seconds,
        started_at=now,
        heartbeat_at=now,
        expires_at=now + timedelta(seconds=lease_seconds),
        environment=None if environment is None else storable(environment),
    )
    session.add(attempt)
    move(job, "running", now)
    job.current_attempt_id = attempt.id
    append_to(session, job, attempt.number, [state_event(job, worker=worker, device=device)], now)
    left = max(0.0, job.run_seconds_limit - job.run_seconds)
    return Lease(job_id, attempt.id, attempt.number, attempt.lease_token, lease_seconds, left)


def state_event(job: Job, **body: Any) -> EventLine:
    """The event that says which state a job is in now."""
    return "state", {"state": job.state, **body}


def heartbeat(session: Session, lease: Lease, now: datetime | None = None) -> Held:
    """Extend the lease. `cancelling`: still held, but stop. `lost`: stop, and write nothing more."""
    now = now or now_utc()
    try:
        job, attempt = _fenced(session, lease)
    except LeaseLost:
        return "lost"
    attempt.heartbeat_at = now
    attempt.expires_at = now + timedelta(seconds=lease.seconds)
    return "cancelling" if job.state == "cancelling" else "held"


def append_events(session: Session, lease: Lease, events: Iterable[EventLine], now: datetime | None = None) -> int:
    """Append what the attempt reports and return the last number. Raises `LeaseLost`."""
    job, attempt = _fenced(session, lease)
    return append_to(session, job, attempt.number, events, now or now_utc())


def set_progress(
    session: Session, lease: Lease, stage: str | None = None, progress: float | None = None,
    eta_seconds: float | None = None,
) -> None:  # fmt: skip
    """Where the job is: `stage` and `progress` 0-1 (left as they are if None), seconds to go. Raises `LeaseLost`.

    A number that is not finite counts as None.
    """
    job, _ = _fenced(session, lease)
    if stage is not None:
        job.stage = storable_text(stage)[:32]
    if progress is not None and math.isfinite(progress):
        job.progress = min(1.0, max(0.0, progress))
    job.eta_seconds = max(0.0, eta_seconds) if eta_seconds is not None and math.isfinite(eta_seconds) else None


def add_artifact(
    session: Session, lease: Lease, name: str, kind: str, sha256: str, bytes: int, media_type: str,
    now: datetime | None = None,
) -> Artifact:  # fmt: skip
    """Record a file that the attempt stored (`store.artifacts`); one of the same name is replaced. Raises `LeaseLost`.

    `kind` is `output`, `checkpoint` or `log`. A checkpoint that differs from the last one shows that the job gets on:
    the count of deaths in a row starts again.
    """
    job, attempt = _fenced(session, lease)
    found = session.get(Artifact, (job.id, name))
    if kind == "checkpoint" and (found is None or found.sha256 != sha256):
        job.deaths = 0
    if found is None:
        found = Artifact(
            job_id=job.id, name=name, kind=kind, sha256=sha256, bytes=bytes, media_type=media_type,
            attempt=attempt.number, created_at=now or now_utc(),
        )  # fmt: skip
        session.add(found)
    else:
        found.kind, found.sha256, found.bytes, found.media_type = kind, sha256, bytes, media_type
        found.attempt, found.created_at = attempt.number, now or now_utc()
    session.flush()
    return found


def finish(
    session: Session,
    lease: Lease,
    state: TerminalState,
    results: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
    now: datetime | None = None,
    *,
    events: Iterable[EventLine] = (),
    output_tail: str | None = None,
) -> None:
    """Close the job (`succeeded`, `failed` or `cancelled`) together with its last events. Raises `LeaseLost`.

    A failed one needs `error` ({code, message, faults}). `output_tail` is the end of what the child printed.
    """
    if state not in TERMINAL:
        raise ValueError(f"a job is finished as one of {sorted(TERMINAL)}, not {state}")
    if state == "failed" and error is None:
        raise ValueError("a failed job needs an error")
    now = now or now_utc()
    job, attempt = _fenced(session, lease)
    move(job, state, now)
    job.results = None if results is None else storable(results)
    job.error = None if error is None else storable(error)
    if state == "succeeded":
        job.progress = 1.0
    _end(session, job, attempt, state, now, error=job.error, output_tail=output_tail)
    counters.count_finished(session, state, job.error)
    body = {} if error is None else {"error": job.error}
    append_to(session, job, attempt.number, [*events, state_event(job, **body)], now)
    outbox.settle(session, job.id)


def release(
    session: Session, lease: Lease, now: datetime | None = None, *, reason: str = "worker stopped", delay: float = 0.0
) -> None:
    """Give the job back, to be claimed again: a worker that stops in an orderly way, or cannot work just now, in which
    case the job is not rung for in the next `delay` seconds. Counts as no death.

    A job that is being cancelled is cancelled instead. Raises `LeaseLost`.
    """
    now = now or now_utc()
    job, attempt = _fenced(session, lease)
    _end(session, job, attempt, "released", now)
    _requeue_or_cancel(session, job, attempt, now, reason, delay)


def died(
    session: Session, lease: Lease, error: Mapping[str, Any], now: datetime | None = None, *,
    events: Iterable[EventLine] = (), output_tail: str | None = None,
) -> None:  # fmt: skip
    """The attempt came to nothing, and its worker lives to say why: `reap` without the wait. Raises `LeaseLost`."""
    now = now or now_utc()
    job, attempt = _fenced(session, lease)
    append_to(session, job, attempt.number, [*events, ("attempt/died", error)], now)
    attempt.heartbeat_at = now
    counters.count(session, "children_died")
    _lost(session, job, attempt, now, storable(error), "attempt died", output_tail)


def reap(session: Session, now: datetime | None = None, limit: int = 100) -> list[str]:
    """Give up the attempts whose lease has expired; returns the ids of their jobs.

    Their jobs are queued again, or cancelled if that was asked for, or failed (`poison`) after `MAX_DEATHS` deaths in
    a row without a new checkpoint.
    """
    now = now or now_utc()
    expired = session.scalars(
        select(Attempt.job_id).where(Attempt.ended_at.is_(None), Attempt.expires_at < now).limit(limit)
    ).all()
    reaped = []
    for job_id in sorted(expired):  # in one order everywhere, so that two reapers cannot deadlock
        job = lock_job(session, job_id)
        attempt = session.get(Attempt, job.current_attempt_id or "", populate_existing=True)
        if attempt is None or job.state not in HELD or attempt.expires_at >= now:
            continue  # it was finished, or beat again, before we held the row
        error = {"code": "worker_lost", "message": "the worker fell silent and its lease expired", "faults": []}
        counters.count(session, "leases_lost")
        _lost(session, job, attempt, now, error, "worker lost")
        reaped.append(job_id)
    return reaped


def _lost(
    session: Session, job: Job, attempt: Attempt, now: datetime, error: Any, reason: str, output_tail: str | None = None
) -> None:
    job.deaths += 1
    _end(session, job, attempt, "lost", now, error=error, output_tail=output_tail)
    if job.deaths >= MAX_DEATHS and job.state != "cancelling":
        _give_up(session, job, attempt, now)
    else:
        _requeue_or_cancel(session, job, attempt, now, reason)


def _give_up(session: Session, job: Job, attempt: Attempt, now: datetime) -> None:
    move(job, "failed", now)
    message = f"{job.deaths} workers in a row died at this job without getting on with it; it is not tried again"
    job.error = {"code": "poison", "message": message, "faults": []}
    counters.count_finished(session, "failed", job.error)
    append_to(session, job, attempt.number, [state_event(job, error=job.error)], now)


def _requeue_or_cancel(
    session: Session, job: Job, attempt: Attempt, now: datetime, reason: str, delay: float = 0.0
) -> None:
    if job.state == "cancelling":
        move(job, "cancelled", now)
        counters.count_finished(session, "cancelled")
    else:
        move(job, "queued", now)
        outbox.add(session, "run", job.id, job.queue, now, delay=delay)
    append_to(session, job, attempt.number, [state_event(job, reason=reason, deaths=job.deaths)], now)


def _end(
    session: Session, job: Job, attempt: Attempt, outcome: Outcome, now: datetime, *, error: Any = None,
    output_tail: str | None = None,
) -> None:  # fmt: skip
    counters.count(session, "attempts", outcome=outcome)
    attempt.ended_at = now
    attempt.outcome = outcome
    attempt.error = error
    attempt.output_tail = None if output_tail is None else storable_text(output_tail)
    # a dead attempt ran until its last sign of life, not until somebody noticed
    until = attempt.heartbeat_at if outcome == "lost" else now
    job.run_seconds += max(0.0, (until - attempt.started_at).total_seconds())


def _fenced(session: Session, lease: Lease) -> tuple[Job, Attempt]:
    """The lease's job, its row held, and attempt. Raises `LeaseLost` unless the lease still holds the job."""
    job = lock_job(session, lease.job_id)
    attempt = session.get(Attempt, lease.attempt_id, populate_existing=True)
    held = (
        attempt is not None
        and attempt.ended_at is None
        and job.current_attempt_id == attempt.id
        and job.state in HELD
        and secrets.compare_digest(attempt.lease_token, lease.token)
    )
    if attempt is None or not held:
        raise LeaseLost(f"attempt {lease.number} no longer holds job {lease.job_id}")
    return job, attempt
