"""What can be seen of jobs and uploads at a glance: one cheap query for many of them, for those who wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.records import Dataset, DryRun, Job, Model

IDS_AT_ONCE = 500  # a statement takes so many parameters at most on any database


@dataclass(frozen=True)
class Pulse:
    """A job's, an upload's or a dry run's state, a job's place and the number of its last event. Changes when one of
    them does."""

    state: str
    stage: str | None = None
    progress: float = 0.0
    eta_seconds: float | None = None
    last_seq: int = 0


def pulses(session: Session, ids: Iterable[str]) -> dict[str, Pulse]:
    """The pulses of these jobs, models, datasets and dry runs. What is not there, or no such id, is left out."""
    found: dict[str, Pulse] = {}
    by_kind: dict[str, list[str]] = {}
    for subject_id in set(ids):
        by_kind.setdefault(subject_id.partition("_")[0], []).append(subject_id)
    for some in _portions(by_kind.get("job", ())):
        columns = (Job.id, Job.state, Job.stage, Job.progress, Job.eta_seconds, Job.next_event_seq - 1)
        for row in session.execute(select(*columns).where(Job.id.in_(some))):
            found[row[0]] = Pulse(*row[1:])
    for table, kind in ((Model, "mdl"), (Dataset, "ds"), (DryRun, "dry")):
        for some in _portions(by_kind.get(kind, ())):
            for upload_id, state in session.execute(select(table.id, table.state).where(table.id.in_(some))):
                found[upload_id] = Pulse(state)
    return found


def _portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), IDS_AT_ONCE):
        yield ids[start : start + IDS_AT_ONCE]
