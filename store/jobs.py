"""Jobs as their owner sees them: make, read, list, cancel. Another owner's job does not exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from store import counters, outbox
from store.columns import now_utc, storable, storable_text
from store.errors import JobHeld, JobTerminal, NotFound
from store.events import append_to, lock_job
from store.ids import new_id
from store.leases import state_event
from store.records import HELD, TERMINAL, Artifact, Attempt, Dataset, DryRun, Event, Job, JobState, Model, move


def create_job(
    session: Session,
    *,
    owner: str,
    model_id: str,
    dataset_ids: Sequence[str],
    recipe: Mapping[str, Any],
    requirements: Mapping[str, Any] | None = None,
    device: str = "auto",
    queue: str = "cpu",
    run_seconds_limit: int = 86_400,
    name: str = "",
    kind: str = "prune",
    tags: Sequence[str] = (),
    recipe_name: str | None = None,
    request_id: str | None = None,
    cloned_from: str | None = None,
    now: datetime | None = None,
) -> Job:
    """A queued job, its first event, and the message that rings for a worker, all in this transaction.

    `request_id` is that of the request that asks for it: it stands in the first event, and in the worker's log.
    `cloned_from`: the id of the job that it was made from.
    Raises `NotFound` if the model, that of the recipe's `weights` or a dataset is not there, or not this owner's: their
    rows are held until the transaction ends, so that none is deleted meanwhile.
    """
    now = now or now_utc()
    _hold_input(session, Model, owner, model_id)
    for dataset_id in dataset_ids:
        _hold_input(session, Dataset, owner, dataset_id)
    job = Job(
        id=new_id("job"),
        owner=owner,
        name=storable_text(name),
        kind=storable_text(kind),
        tags=[storable_text(tag) for tag in tags],
        model_id=model_id,
        dataset_ids=list(dataset_ids),
        recipe=storable(recipe),
        recipe_name=recipe_name,
        cloned_from=cloned_from,
        requirements=storable(requirements or {}),
        device=device,
        queue=queue,
        run_seconds_limit=run_seconds_limit,
        created_at=now,
    )
    if job.weights_id is not None:
        _hold_input(session, Model, owner, job.weights_id)
    session.add(job)
    session.flush()
    asked = {name: value for name, value in (("request_id", request_id), ("cloned_from", cloned_from)) if value}
    append_to(session, job, None, [state_event(job, device=device, queue=queue, **asked)], now)
    counters.count(session, "jobs_submitted")
    outbox.add(session, "run", job.id, queue, now)
    return job


def _hold_input(session: Session, table: type[Model] | type[Dataset], owner: str, subject_id: str) -> None:
    found = session.scalar(select(table.id).where(table.id == subject_id, table.owner == owner).with_for_update())
    if found is None:
        raise NotFound(f"there is no {table.__name__.lower()} {subject_id}")


def get_job(session: Session, owner: str, job_id: str) -> Job:
    """Raises `NotFound`."""
    job = session.scalars(select(Job).where(Job.id == job_id, Job.owner == owner)).one_or_none()
    if job is None:
        raise NotFound(f"there is no job {job_id}")
    return job


def request_id_of(session: Session, job_id: str) -> str | None:
    """The id of the request that asked for the job, as its first event has it."""
    first = session.get(Event, (job_id, 1))
    found = None if first is None else first.body.get("request_id")
    return found if isinstance(found, str) else None


def get_with_attempts(session: Session, owner: str, job_id: str) -> tuple[Job, list[Attempt]]:
    """A job and its attempts, in order, by one query: what is asked for again and again. Raises `NotFound`."""
    query = (
        select(Job, Attempt)
        .outerjoin(Attempt, Attempt.job_id == Job.id)
        .where(Job.id == job_id, Job.owner == owner)
        .order_by(Attempt.number)
    )
    rows = session.execute(query).all()
    if not rows:
        raise NotFound(f"there is no job {job_id}")
    return rows[0][0], [attempt for _, attempt in rows if attempt is not None]


def list_jobs(
    session: Session,
    owner: str,
    *,
    states: Iterable[JobState] = (),
    kind: str | None = None,
    name_prefix: str | None = None,
    tag: str | None = None,
    before: str | None = None,
    limit: int = 50,
) -> Sequence[Job]:
    """Newest first, at most `limit`, older than the job `before`; every filter that is given must hold."""
    query = select(Job).where(Job.owner == owner)
    if wanted := list(states):
        query = query.where(Job.state.in_(wanted))
    if kind is not None:
        query = query.where(Job.kind == kind)
    if name_prefix is not None:
        query = query.where(Job.name.startswith(name_prefix, autoescape=True))
    if tag is not None:
        query = query.where(_has_tag(session, tag))
    if before is not None:
        query = query.where(Job.id < before)
    return session.scalars(query.order_by(Job.id.desc()).limit(limit)).all()


def _has_tag(session: Session, tag: str) -> ColumnElement[bool]:
    if session.get_bind().dialect.name == "postgresql":
        return Job.tags.op("@>", is_comparison=True)([tag])
    each = func.json_each(Job.tags).table_valued("value")
    return select(1).select_from(each).where(each.c.value == tag).exists()


def request_cancel(session: Session, owner: str, job_id: str, now: datetime | None = None) -> Job:
    """A queued job is cancelled at once, a running one as soon as its worker hears of it; asking twice is harmless.

    Raises `NotFound`, or `JobTerminal` if the job is over.
    """
    now = now or now_utc()
    get_job(session, owner, job_id)
    job = lock_job(session, job_id)
    if job.state in TERMINAL:
        raise JobTerminal(f"the job is {job.state} already")
    if job.state == "cancelling":
        return job
    job.cancel_requested_at = now
    move(job, "cancelled" if job.state == "queued" else "cancelling", now)
    append_to(session, job, None, [state_event(job)], now)
    if job.state == "cancelled":
        outbox.settle(session, job.id)
        counters.count_finished(session, "cancelled")
    return job


def ring(session: Session, owner: str, job_id: str, now: datetime | None = None) -> Job:
    """Have a queued job rung for at once, and then as often as a new one; one that is over is returned as it is.

    Raises `NotFound`, or `JobHeld` while an attempt holds the job.
    """
    get_job(session, owner, job_id)
    job = lock_job(session, job_id)
    if job.state in HELD:
        doing = "tried" if job.state == "running" else "cancelled"
        raise JobHeld(
            f"the job is being {doing} already: attempt {job.attempt_count}; it can be retried once it is over"
        )
    if job.state == "queued":
        outbox.add(session, "run", job.id, job.queue, now)
    return job


def attempts(session: Session, job_ids: Iterable[str]) -> dict[str, list[Attempt]]:
    """The attempts of each job, in order."""
    found: dict[str, list[Attempt]] = {job_id: [] for job_id in job_ids}
    query = select(Attempt).where(Attempt.job_id.in_(found)).order_by(Attempt.job_id, Attempt.number)
    for attempt in session.scalars(query):
        found[attempt.job_id].append(attempt)
    return found


def artifacts(
    session: Session, job_id: str, *, after: str | None = None, limit: int | None = None
) -> Sequence[Artifact]:
    """A job's files, by name: those behind the name `after`, at most `limit`."""
    query = select(Artifact).where(Artifact.job_id == job_id)
    if after is not None:
        query = query.where(Artifact.name > after)
    return session.scalars(query.order_by(Artifact.name).limit(limit)).all()


def artifact(session: Session, job_id: str, name: str) -> Artifact:
    """Raises `NotFound`."""
    found = session.get(Artifact, (job_id, name))
    if found is None:
        raise NotFound(f"the job has no artifact of that name: {name}")
    return found


def inputs_of(session: Session, job: Job | DryRun) -> tuple[Model, list[Dataset]]:
    """The model and datasets of a job or a dry run, for the worker. Raises `NotFound` if one was deleted."""
    model = session.get(Model, job.model_id)
    if model is None:
        raise NotFound(f"there is no model {job.model_id}")
    found = []
    for dataset_id in job.dataset_ids:
        dataset = session.get(Dataset, dataset_id)
        if dataset is None:
            raise NotFound(f"there is no dataset {dataset_id}")
        found.append(dataset)
    return model, found


def weights_of(session: Session, job: Job | DryRun) -> Model | None:
    """The model whose weights the job's recipe begins with, if it names one. Raises `NotFound` if it was deleted."""
    if job.weights_id is None:
        return None
    model = session.get(Model, job.weights_id)
    if model is None:
        raise NotFound(f"there is no model {job.weights_id}")
    return model
