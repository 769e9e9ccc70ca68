"""The workers that are there: each says so at its start, beats, and takes itself out at its end.

Jobs do not depend on it (leases do): it is what people look at, and how the API knows which devices there are. A worker
that falls silent is kept for a while, for people to see, and then forgotten; if it wakes up, its next beat says
everything again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from store.columns import now_utc, storable_text
from store.records import Dataset, Job, Model, Worker

FORGOTTEN_AFTER = timedelta(hours=1)  # from the moment that it counted as silent


@dataclass(frozen=True)
class Identity:
    """What a worker says of itself: `queues` it consumes, `device` that its jobs run on (None: it runs none)."""

    id: str
    name: str
    host: str
    queues: tuple[str, ...]
    device: str | None
    version: str | None


def beat(
    session: Session, who: Identity, *, started_at: datetime, seconds: float, subject_id: str | None = None,
    now: datetime | None = None,
) -> None:  # fmt: skip
    """The worker is there, works on `subject_id` (None: on nothing), and counts as silent after `seconds`."""
    now = now or now_utc()
    expires_at = now + timedelta(seconds=seconds)
    changed = {"seen_at": now, "expires_at": expires_at, "subject_id": subject_id}
    done = session.execute(update(Worker).where(Worker.id == who.id).values(changed))
    if done.rowcount:  # type: ignore[attr-defined]
        return
    worker = Worker(
        id=who.id, name=storable_text(who.name)[:200], host=storable_text(who.host)[:200], queues=list(who.queues),
        device=who.device, version=who.version, started_at=started_at, seen_at=now, expires_at=expires_at,
        subject_id=subject_id,
    )  # fmt: skip
    session.add(worker)
    session.flush()


def leave(session: Session, worker_id: str) -> None:
    """The worker ends in an orderly way."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def forget(session: Session, now: datetime | None = None) -> int:
    """Forget who has been silent for longer than `FORGOTTEN_AFTER`; how many there were."""
    gone = delete(Worker).where(Worker.expires_at < (now or now_utc()) - FORGOTTEN_AFTER)
    return int(session.execute(gone).rowcount)  # type: ignore[attr-defined]


def any_forgotten(session: Session, now: datetime | None = None) -> bool:
    """Whether `forget` has something to do."""
    silent = Worker.expires_at < (now or now_utc()) - FORGOTTEN_AFTER
    return session.scalar(select(Worker.id).where(silent).limit(1)) is not None


def page(session: Session, *, before: str | None = None, limit: int = 100) -> Sequence[Worker]:
    """The workers, the one that started last first, below the id `before`."""
    query = select(Worker).order_by(Worker.id.desc()).limit(limit)
    return session.scalars(query if before is None else query.where(Worker.id < before)).all()


def living_devices(session: Session, now: datetime | None = None) -> list[str]:
    """The devices of workers that are not silent: each once, sorted, `cpu` first."""
    there = select(Worker.device).where(Worker.device.is_not(None), Worker.expires_at >= (now or now_utc())).distinct()
    return sorted(device for device in session.scalars(there) if device is not None)


def owned(session: Session, owner: str, subject_ids: Iterable[str]) -> frozenset[str]:
    """Those of these ids (of jobs, models and datasets) that are this owner's."""
    ids = set(subject_ids)
    found: set[str] = set()
    for table in (Job, Model, Dataset):
        found.update(session.scalars(select(table.id).where(table.owner == owner, table.id.in_(ids))))
    return frozenset(found)
