"""Models and datasets: one row per owner, content and options; a worker checks each before a job may use it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from store import counters, outbox
from store.columns import now_utc, storable, storable_text, to_json
from store.errors import InUse, LeaseLost, NotFound
from store.ids import new_id
from store.records import TERMINAL, Dataset, Job, Model, Topic

Subject = TypeVar("Subject", Model, Dataset)
MAX_CHECKS = 3  # workers that died at it
CHECK_SECONDS = 30.0


@dataclass(frozen=True)
class Check:
    """The right to check an upload, as `store.leases.Lease` is for a job."""

    kind: Literal["model", "dataset"]
    subject_id: str
    token: str
    seconds: float


def create_model(
    session: Session, *, owner: str, sha256: str, bytes: int, filename: str, format: str, options: Mapping[str, Any],
    now: datetime | None = None,
) -> tuple[Model, bool]:  # fmt: skip
    """The model with this content and these options, and whether it is new.

    A new one is to be checked by a worker, and so is one that was refused before.
    """
    identity = _identity(sha256, format, options)
    fresh = Model(
        id=new_id("mdl"), owner=owner, sha256=sha256, bytes=bytes, filename=storable_text(filename), format=format,
        options=storable(options), identity=identity, created_at=now or now_utc(),
    )  # fmt: skip
    return _create(session, Model, fresh)


def create_dataset(
    session: Session, *, owner: str, sha256: str | None, bytes: int, filename: str, format: str,
    options: Mapping[str, Any], uri: str = "upload", pinned_sha256: str | None = None, now: datetime | None = None,
) -> tuple[Dataset, bool]:  # fmt: skip
    """The dataset with this content and these options, and whether it is new.

    Built-in ones have no `sha256`, and those that are fetched from their `uri` have none yet: what they are is known
    beforehand by their `pinned_sha256` alone, so that without one each is new.
    """
    known = sha256 or pinned_sha256 or (uri if uri.startswith("builtin:") else f"{uri} {secrets.token_hex(16)}")
    identity = _identity(known, format, options)
    fresh = Dataset(
        id=new_id("ds"), owner=owner, sha256=sha256, bytes=bytes, filename=storable_text(filename), format=format,
        options=storable(options), identity=identity, uri=uri, pinned_sha256=pinned_sha256,
        created_at=now or now_utc(),
    )  # fmt: skip
    return _create(session, Dataset, fresh)


def is_to_be_fetched(subject: Model | Dataset) -> bool:
    """Whether it is a dataset whose file is not in the storage yet."""
    return isinstance(subject, Dataset) and subject.sha256 is None and not subject.uri.startswith("builtin:")


def set_fetched(
    session: Session, check: Check, sha256: str, size: int, filename: str, now: datetime | None = None
) -> None:
    """The file of a dataset that is given by its URI is in the storage: from now on the dataset is these bytes, and is
    given back to be checked.

    An upload of them is known by this record, unless another one stands for it already. Raises `LeaseLost`.
    """
    dataset = _checked(session, check)
    dataset.sha256, dataset.bytes, dataset.filename = sha256, size, storable_text(filename)
    session.flush()
    try:
        with session.begin_nested():
            dataset.identity = _identity(sha256, dataset.format, dataset.options)
    except IntegrityError:
        session.refresh(dataset)
    _offer(session, dataset, now or now_utc())


def _identity(content: str, format: str, options: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json([content, format, _sorted(storable(options))]).encode()).hexdigest()


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _create(session: Session, table: type[Subject], fresh: Subject) -> tuple[Subject, bool]:
    known = select(table).where(table.owner == fresh.owner, table.identity == fresh.identity)
    if (found := session.scalars(known.with_for_update()).one_or_none()) is not None:
        came = isinstance(found, Dataset) and isinstance(fresh, Dataset) and _come_otherwise(found, fresh)
        # posted again, it is checked again: the service may know more operators today, or have been at fault
        if came or found.state == "refused":
            found.state, found.refusal, found.checked_at = "checking", None, None
            _offer(session, found, fresh.created_at)
        return found, False
    try:
        with session.begin_nested():
            session.add(fresh)
    except IntegrityError:  # somebody else was a moment earlier
        return session.scalars(known).one(), False
    _ring(session, fresh, fresh.created_at)
    return fresh, True


def _come_otherwise(found: Dataset, fresh: Dataset) -> bool:
    """Whether what was not fetched yet was uploaded meanwhile, or is to be tried from elsewhere. Whoever fetches it now
    has lost it: the bytes are there, whatever becomes of the source."""
    if not is_to_be_fetched(found) or (fresh.sha256 is None and found.state != "refused"):
        return False
    found.uri, found.filename = fresh.uri, fresh.filename
    found.sha256, found.bytes = fresh.sha256, fresh.bytes
    return True


def _offer(session: Session, subject: Model | Dataset, now: datetime) -> None:
    """Have it taken anew: nobody has it, and nobody died at it."""
    subject.check_token = subject.check_expires_at = None
    subject.check_count = 0
    _ring(session, subject, now)


def _ring(session: Session, subject: Model | Dataset, now: datetime, delay: float = 0.0) -> None:
    """Have it fetched, or else checked: a slow source must not keep others from their checks."""
    topic: Topic
    if isinstance(subject, Model):
        topic = "inspect_model"
    else:
        topic = "fetch_dataset" if is_to_be_fetched(subject) else "inspect_dataset"
    queue = outbox.FETCH_QUEUE if topic == "fetch_dataset" else outbox.INSPECT_QUEUE
    outbox.add(session, topic, subject.id, queue, now, delay=delay)


def get(session: Session, table: type[Subject], owner: str, subject_id: str) -> Subject:
    """Raises `NotFound`."""
    found = session.scalars(select(table).where(table.id == subject_id, table.owner == owner)).one_or_none()
    if found is None:
        raise NotFound(f"there is no {table.__name__.lower()} {subject_id}")
    return found


def find(
    session: Session, table: type[Subject], owner: str, *, sha256: str | None = None, state: str | None = None,
    before: str | None = None, limit: int = 50,
) -> Sequence[Subject]:  # fmt: skip
    """Newest first, at most `limit`, older than the one with the id `before`."""
    query = select(table).where(table.owner == owner)
    if sha256 is not None:
        query = query.where(table.sha256 == sha256)
    if state is not None:
        query = query.where(table.state == state)
    if before is not None:
        query = query.where(table.id < before)
    return session.scalars(query.order_by(table.id.desc()).limit(limit)).all()


def delete(session: Session, table: type[Subject], owner: str, subject_id: str) -> None:
    """Delete the record; its bytes go when nothing refers to them any more (`store.sweep`).

    Raises `NotFound`, or `InUse` while a job that is not over needs it.
    """
    subject = session.scalars(
        select(table).where(table.id == subject_id, table.owner == owner).with_for_update()
    ).one_or_none()
    if subject is None:
        raise NotFound(f"there is no {table.__name__.lower()} {subject_id}")
    if using := _open_jobs_using(session, owner, subject_id):
        raise InUse(f"{subject_id} is needed by {len(using)} job(s) that are not over: {', '.join(using[:3])}")
    outbox.settle(session, subject_id)
    session.delete(subject)


def _open_jobs_using(session: Session, owner: str, subject_id: str) -> list[str]:
    open_jobs = session.scalars(select(Job).where(Job.owner == owner, Job.state.not_in(TERMINAL)))
    return [job.id for job in open_jobs if subject_id in (job.model_id, job.weights_id, *job.dataset_ids)]


def claim_check(
    session: Session, subject_id: str, now: datetime | None = None, *, seconds: float = CHECK_SECONDS,
    fetching: bool = False,
) -> Check | None:  # fmt: skip
    """Take the check of a model or dataset; None if it is over, somebody is at it, or it was deleted.

    `fetching`: one whose file is to be fetched, else one whose file is there; another is rung for where it belongs.
    After `MAX_CHECKS` workers died at it, it is refused (`poison`). Beat with `extend_check`.
    """
    now = now or now_utc()
    table = _table(subject_id)
    subject = _locked(session, table, subject_id)
    if subject is None or subject.state != "checking":
        outbox.settle(session, subject_id)
        return None
    if subject.check_expires_at is not None and subject.check_expires_at >= now:
        return None
    if is_to_be_fetched(subject) is not fetching:  # a bell that was late
        _ring(session, subject, now)
        return None
    if subject.check_count >= MAX_CHECKS:
        message = f"{subject.check_count} workers in a row died while checking it; it is not tried again"
        _close(session, subject, "refused", now, refusal={"code": "poison", "message": message, "faults": []})
        return None
    subject.check_count += 1
    subject.check_token = secrets.token_hex(16)
    subject.check_expires_at = now + timedelta(seconds=seconds)
    outbox.hold(session, subject_id, subject.check_expires_at)
    return Check("model" if table is Model else "dataset", subject_id, subject.check_token, seconds)


def extend_check(session: Session, check: Check, now: datetime | None = None) -> bool:
    """Extend the check's lease; False if it is lost (deleted, or somebody else's): stop."""
    now = now or now_utc()
    try:
        subject = _checked(session, check)
    except LeaseLost:
        return False
    subject.check_expires_at = now + timedelta(seconds=check.seconds)
    outbox.hold(session, check.subject_id, subject.check_expires_at)
    return True


def release_check(
    session: Session, check: Check, now: datetime | None = None, *, delay: float = 0.0, died: bool = False
) -> None:
    """Give the check back, to be taken again: a worker that stops in an orderly way, or cannot work just now, in which
    case it is not rung for in the next `delay` seconds. `died`: it counts among those that died at it.

    Raises `LeaseLost`.
    """
    now = now or now_utc()
    subject = _checked(session, check)
    subject.check_token = subject.check_expires_at = None
    if died:
        counters.count(session, "checks_died", kind=check.kind)
    else:
        subject.check_count -= 1
    _ring(session, subject, now, delay)


def set_ready(
    session: Session, check: Check, summary: Mapping[str, Any], now: datetime | None = None, *,
    graph: tuple[str, int] | None = None, contact_sheet: tuple[str, int] | None = None,
) -> None:  # fmt: skip
    """The upload may be used; `summary` says what it is. `graph`, `contact_sheet`: sha256 and bytes of the description
    of a model's graph and of a dataset's PNG, which are in the storage already. Raises `LeaseLost`."""
    subject = _checked(session, check)
    if graph is not None and isinstance(subject, Model):
        subject.graph_sha256, subject.graph_bytes = graph
    if contact_sheet is not None and isinstance(subject, Dataset):
        subject.contact_sheet_sha256, subject.contact_sheet_bytes = contact_sheet
    _close(session, subject, "ready", now or now_utc(), summary=storable(summary))


def set_refused(session: Session, check: Check, error: Mapping[str, Any], now: datetime | None = None) -> None:
    """The upload cannot be used; `error` ({code, message, faults}) says why. Raises `LeaseLost`."""
    _close(session, _checked(session, check), "refused", now or now_utc(), refusal=storable(error))


def _close(
    session: Session, subject: Model | Dataset, state: Literal["ready", "refused"], now: datetime, *,
    summary: dict[str, Any] | None = None, refusal: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    subject.state = state
    subject.summary = summary
    subject.refusal = refusal
    subject.checked_at = now
    subject.check_token = subject.check_expires_at = None
    outbox.settle(session, subject.id)
    counters.count(session, "uploads_checked", kind="model" if isinstance(subject, Model) else "dataset", state=state)


def _checked(session: Session, check: Check) -> Model | Dataset:
    subject = _locked(session, _table(check.subject_id), check.subject_id)
    if subject is None or subject.state != "checking" or subject.check_token is None:
        raise LeaseLost(f"{check.subject_id} is not being checked any more")
    if not secrets.compare_digest(subject.check_token, check.token):
        raise LeaseLost(f"{check.subject_id} is being checked by another worker")
    return subject


def _locked(session: Session, table: type[Model] | type[Dataset], subject_id: str) -> Model | Dataset | None:
    if table is Model:
        return session.get(Model, subject_id, with_for_update=True, populate_existing=True)
    return session.get(Dataset, subject_id, with_for_update=True, populate_existing=True)


def _table(subject_id: str) -> type[Model] | type[Dataset]:
    return Model if subject_id.startswith("mdl_") else Dataset
