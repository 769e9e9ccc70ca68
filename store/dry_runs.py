"""Dry runs: asked by somebody who waits, answered by one worker at a time, and gone soon after.

Nothing of one is kept: whoever waits says until when (`wanted_until`), and asks again to have it longer. A row that
nobody wants any more is deleted, and with it goes the lease of the worker that is still at it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from store import outbox
from store.columns import now_utc, storable
from store.database import reading, transaction
from store.errors import LeaseLost, NotFound, TooManyDryRuns
from store.ids import new_id
from store.records import DryRun, DryRunState

MAX_CLAIMS = 3  # workers that died at it
MOST_OF_AN_OWNER = 5
"""That wait or are at it: uploads are checked by the same workers."""
KEPT_SECONDS = 60.0
"""From the end of a request until the next one that asks about the same dry run."""


@dataclass(frozen=True)
class DryRunLease:
    """The right to answer a dry run, as `store.leases.Lease` is for a job."""

    dry_run_id: str
    token: str
    seconds: float


def create(
    session: Session, *, owner: str, model_id: str, dataset_ids: Sequence[str], recipe: Mapping[str, Any],
    requirements: Mapping[str, Any], elsewhere: bool, wait: float, now: datetime | None = None,
) -> DryRun:  # fmt: skip
    """A dry run that somebody waits for, for `wait` seconds. It is rung for where uploads are checked, so that a long
    job is not in front of it. Raises `TooManyDryRuns`."""
    now = now or now_utc()
    open_ones = select(func.count()).where(
        DryRun.owner == owner, DryRun.state.in_(("queued", "running")), DryRun.wanted_until >= now
    )
    if (session.scalar(open_ones) or 0) >= MOST_OF_AN_OWNER:
        raise TooManyDryRuns(f"{MOST_OF_AN_OWNER} dry runs of this owner are not answered yet; try again when one is")
    fresh = DryRun(
        id=new_id("dry"), owner=owner, model_id=model_id, dataset_ids=list(dataset_ids), recipe=storable(recipe),
        requirements=storable(requirements), elsewhere=elsewhere, created_at=now,
        wanted_until=now + timedelta(seconds=wait + KEPT_SECONDS),
    )  # fmt: skip
    session.add(fresh)
    outbox.add(session, "dry_run", fresh.id, outbox.INSPECT_QUEUE, now)
    return fresh


def get(session: Session, owner: str, dry_run_id: str) -> DryRun:
    """Raises `NotFound`."""
    found = session.scalars(select(DryRun).where(DryRun.id == dry_run_id, DryRun.owner == owner)).one_or_none()
    if found is None:
        raise NotFound(f"there is no dry run {dry_run_id}; one that nobody asks about for a minute is forgotten")
    return found


def want(session: Session, owner: str, dry_run_id: str, wait: float, now: datetime | None = None) -> None:
    """Somebody waits for it, for `wait` seconds from now. Raises `NotFound`."""
    found = get(session, owner, dry_run_id)
    until = (now or now_utc()) + timedelta(seconds=wait + KEPT_SECONDS)
    found.wanted_until = max(found.wanted_until, until)


def delete(session: Session, owner: str, dry_run_id: str) -> None:
    """Nobody wants it any more; a worker that is at it stops. Raises `NotFound`."""
    _delete(session, get(session, owner, dry_run_id))


def forget(engine: Engine, now: datetime | None = None) -> int:
    """Delete those that nobody wants any more; returns how many."""
    late = select(DryRun).where(DryRun.wanted_until < (now or now_utc()))
    with reading(engine) as session:  # most of the time there is none, and no write lock is taken
        if session.scalars(late.limit(1)).first() is None:
            return 0
    with transaction(engine) as session:
        found = session.scalars(late.with_for_update(skip_locked=True)).all()
        for each in found:
            _delete(session, each)
        return len(found)


# --- by the worker ----------------------------------------------------------------------------------------------------


def claim(session: Session, dry_run_id: str, now: datetime | None = None, *, seconds: float) -> DryRunLease | None:
    """Take it; None if it is answered, somebody is at it, or nobody wants it any more.

    After `MAX_CLAIMS` workers died at it, it is refused (`poison`). Beat with `extend`.
    """
    now = now or now_utc()
    found = _locked(session, dry_run_id)
    if found is None or found.state not in ("queued", "running"):
        outbox.settle(session, dry_run_id)
        return None
    if found.wanted_until < now:
        _delete(session, found)
        return None
    if found.expires_at is not None and found.expires_at >= now:
        return None
    if found.claims >= MAX_CLAIMS:
        message = f"{found.claims} workers in a row died at it; it is not tried again"
        _close(session, found, "refused", refusal={"code": "poison", "message": message, "faults": []})
        return None
    found.claims += 1
    found.state = "running"
    found.token = secrets.token_hex(16)
    found.expires_at = now + timedelta(seconds=seconds)
    outbox.hold(session, dry_run_id, found.expires_at)
    return DryRunLease(dry_run_id, found.token, seconds)


def is_held(session: Session, lease: DryRunLease, now: datetime | None = None) -> bool:
    """Whether the lease is, and somebody still waits for the answer."""
    found = session.get(DryRun, lease.dry_run_id)
    return found is not None and found.token == lease.token and found.wanted_until >= (now or now_utc())


def extend(session: Session, lease: DryRunLease, now: datetime | None = None) -> bool:
    """Extend the lease; False if it is lost, or nobody waits any more: stop."""
    now = now or now_utc()
    try:
        found = _held(session, lease)
    except LeaseLost:
        return False
    if found.wanted_until < now:
        return False
    found.expires_at = now + timedelta(seconds=lease.seconds)
    outbox.hold(session, lease.dry_run_id, found.expires_at)
    return True


def release(
    session: Session, lease: DryRunLease, now: datetime | None = None, *, delay: float = 0.0, died: bool = False
) -> None:
    """Give it back, to be taken again from `delay` seconds on. `died`: it counts among those that died at it.

    Raises `LeaseLost`.
    """
    found = _held(session, lease)
    found.token = found.expires_at = None
    found.state = "queued"
    if not died:
        found.claims -= 1
    outbox.add(session, "dry_run", found.id, outbox.INSPECT_QUEUE, now or now_utc(), delay=delay)


def answer(session: Session, lease: DryRunLease, result: Mapping[str, Any]) -> None:
    """What the job would come to. Raises `LeaseLost`."""
    _close(session, _held(session, lease), "done", result=storable(result))


def refuse(session: Session, lease: DryRunLease, error: Mapping[str, Any]) -> None:
    """What the job would be refused for, or why nothing can be told: {code, message, faults}. Raises `LeaseLost`."""
    _close(session, _held(session, lease), "refused", refusal=storable(error))


def _close(
    session: Session, found: DryRun, state: DryRunState, *, result: dict[str, Any] | None = None,
    refusal: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    found.state, found.result, found.refusal = state, result, refusal
    found.token = found.expires_at = None
    outbox.settle(session, found.id)


def _delete(session: Session, found: DryRun) -> None:
    outbox.settle(session, found.id)
    session.delete(found)


def _locked(session: Session, dry_run_id: str) -> DryRun | None:
    return session.get(DryRun, dry_run_id, with_for_update=True, populate_existing=True)


def _held(session: Session, lease: DryRunLease) -> DryRun:
    found = _locked(session, lease.dry_run_id)
    if found is None or found.token is None:
        raise LeaseLost(f"{lease.dry_run_id} is not being answered any more")
    if not secrets.compare_digest(found.token, lease.token):
        raise LeaseLost(f"{lease.dry_run_id} is being answered by another worker")
    return found
