"""The reaper: gives up attempts that fell silent. It runs in every worker and in the API; any number may."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

import structlog
from sqlalchemy import Engine, delete, select

from store import dry_runs, leases, workers
from store.columns import now_utc
from store.database import reading, transaction
from store.records import TERMINAL, Artifact, Job

JUMP_SECONDS = 5.0  # more than any clock is off that is set right all the time

log = structlog.get_logger("billhook.reaper")


class Reaper:
    """Calls `reap`, now and then, but not while the clock cannot be believed.

    Leases end by the wall clock. Where that jumps (the machine slept, the time was set), or where this process stood
    still for a lease itself, every lease seems to have ended: then workers are given one lease to beat again.
    """

    def __init__(
        self, engine: Engine, lease_seconds: float, *, wall: Callable[[], datetime] = now_utc,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._lease_seconds = lease_seconds
        self._wall = wall
        self._monotonic = monotonic
        self._last = wall(), monotonic()
        self._resume_at = monotonic()

    def __call__(self) -> list[str]:
        """The ids of the jobs whose attempts were given up."""
        wall, now = self._wall(), self._monotonic()
        last_wall, last = self._last
        self._last = wall, now
        jumped = abs((wall - last_wall).total_seconds() - (now - last)) > JUMP_SECONDS
        if jumped or now - last > self._lease_seconds:
            log.warning("the clock jumped, or this process stood still: nobody is given up for a while")
            self._resume_at = now + self._lease_seconds
        if now < self._resume_at:
            return []
        reaped = reap(self._engine, wall)
        for job_id in reaped:
            log.warning("attempt given up: its worker fell silent", job=job_id)
        return reaped


def reap(engine: Engine, now: datetime | None = None) -> list[str]:
    """Give up attempts that fell silent, and return their jobs' ids; forget the checkpoints of jobs that are over, and
    dry runs that nobody asks about and workers that have been silent for long."""
    with transaction(engine) as session:
        reaped = leases.reap(session, now)
    dry_runs.forget(engine, now)
    with reading(engine) as session:
        any_forgotten = workers.any_forgotten(session, now)
    if any_forgotten:
        with transaction(engine) as session:
            workers.forget(session, now)
    over = select(Job.id).where(Job.state.in_(TERMINAL))
    left = Artifact.kind == "checkpoint", Artifact.job_id.in_(over)
    with reading(engine) as session:
        if session.scalar(select(Artifact.job_id).where(*left).limit(1)) is None:
            return reaped
    with transaction(engine) as session:
        session.execute(delete(Artifact).where(*left))
    return reaped
