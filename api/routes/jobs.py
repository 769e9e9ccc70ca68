"""Jobs: submit, list, read, cancel, retry, clone."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session
from structlog.contextvars import get_contextvars

from api import submission
from api.bodies import parse_json, read_body, read_optional, require_json, validate
from api.errors import Refused
from api.idempotency import Idempotent, answered
from api.openapi import JOB_CLONE, JOB_SUBMISSION
from api.pages import JobToken, PageSize, cut
from api.routes import dry_runs
from api.routes.dry_runs import DRY_RUN_ANSWERS, DryRunWait
from api.schemas.base import NoFields
from api.schemas.dry_runs import DryRunOut
from api.schemas.jobs import JobOut, JobPage, JobRequest
from api.services import Caller, Services, Shared, Wait
from api.submission import Submission
from core.errors import Fault
from store import jobs
from store.idempotency import Answer
from store.records import TERMINAL, Attempt, Job, JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post(
    "", status_code=202, response_model=JobOut | DryRunOut, openapi_extra=JOB_SUBMISSION, responses=DRY_RUN_ANSWERS
)
async def submit_job(
    request: Request,
    services: Shared,
    caller: Caller,
    once: Idempotent,
    dry_run: Annotated[
        bool, Query(description="only say what the job would come to; nothing is trained or kept")
    ] = False,
    wait: DryRunWait = None,
) -> Response:
    """Queue a job. All faults of the request are found together; with an `Idempotency-Key` it is made once only.

    With `?dry_run=true` no job is made: 200 with what it would come to, or the problem that it would end with; 202 with
    the address to ask at where that takes longer than `?wait=`. An `Idempotency-Key` has no meaning then.
    """
    require_json(request)
    if wait is not None and not dry_run:
        fault = Fault("/wait", "a job is not waited for as it is submitted", "GET /v1/jobs/{id}?wait=; or dry_run=true")
        raise Refused("parameter_invalid", "wait goes with dry_run=true", faults=[fault])
    body = await read_body(request, services.settings)
    if dry_run:
        return await dry_runs.ask(request, services, caller.owner, body, wait)
    document = parse_json(body)

    def make(session: Session) -> Answer:
        asked = submission.check(session, caller.owner, document, services.recipes, services.settings.devices)
        return _queued(session, services, caller.owner, asked)

    return await once.answer(body, make)


def _queued(
    session: Session, services: Services, owner: str, asked: Submission[JobRequest], source: Job | None = None
) -> Answer:
    """A new job, made from the job `source` where there is one."""
    job = jobs.create_job(
        session,
        owner=owner,
        model_id=asked.request.model,
        dataset_ids=asked.request.datasets,
        recipe=asked.recipe.model_dump(mode="json"),
        recipe_name=asked.recipe_name,
        requirements=asked.request.requirements.model_dump(mode="json"),
        device=asked.request.device,
        queue=asked.queue,
        run_seconds_limit=services.settings.run_seconds_limit,
        name=asked.request.name,
        kind=asked.request.kind,
        tags=asked.request.tags,
        cloned_from=None if source is None else source.id,
        request_id=get_contextvars().get("request_id"),
    )
    return _accepted(job, [])


def _accepted(job: Job, attempts: list[Attempt]) -> Answer:
    return answered(JobOut.of(job, attempts), 202, {"Location": f"/v1/jobs/{job.id}", "Retry-After": "1"})


@router.get("")
def list_jobs(
    services: Shared,
    caller: Caller,
    state: Annotated[list[JobState] | None, Query(description="one of these states; may be repeated")] = None,
    kind: str | None = None,
    name: Annotated[str | None, Query(description="names that begin with this")] = None,
    tag: str | None = None,
    page_size: PageSize = 50,
    page_token: JobToken = None,
) -> JobPage:
    """Your jobs, newest first; every filter that is given must hold."""

    def look(session: Session) -> JobPage:
        found = jobs.list_jobs(
            session, caller.owner, states=state or (), kind=kind, name_prefix=name, tag=tag, before=page_token,
            limit=page_size + 1,
        )  # fmt: skip
        items, token = cut(found, page_size)
        tries = jobs.attempts(session, [job.id for job in items])
        return JobPage(items=[JobOut.of(job, tries[job.id]) for job in items], next_page_token=token)

    return services.read(look)


@router.get("/{job_id}")
async def get_job(request: Request, job_id: str, services: Shared, caller: Caller, wait: Wait = 0) -> JobOut:
    """One job; `?wait=` waits until it is over."""

    def look(session: Session) -> tuple[Job, list[Attempt]]:
        return jobs.get_with_attempts(session, caller.owner, job_id)

    job, attempts = await services.wait(
        request, job_id, look, lambda found: found[0].state in TERMINAL, lambda pulse: pulse.state in TERMINAL, wait
    )
    return JobOut.of(job, attempts)


@router.post("/{job_id}/cancel", status_code=202, response_model=JobOut)
async def cancel_job(request: Request, job_id: str, services: Shared, caller: Caller, once: Idempotent) -> Response:
    """Stop a job: at once if it is queued, within seconds if it runs. 409 `job_terminal` if it is over."""
    body = await _no_fields(request, services)

    def make(session: Session) -> Answer:
        job = jobs.request_cancel(session, caller.owner, job_id)
        return _accepted(job, jobs.attempts(session, [job_id])[job_id])

    return await once.answer(body, make)


@router.post("/{job_id}/retry", status_code=202, response_model=JobOut)
async def retry_job(request: Request, job_id: str, services: Shared, caller: Caller, once: Idempotent) -> Response:
    """Try a job again. One that is over stays as it is: a new one like it is queued (`cloned_from`), and answered. One
    that is queued is offered to the workers at once. 409 `job_running` while it is being tried or cancelled.

    422 with all faults where the same job would be refused today: its model is gone, say.
    """
    body = await _no_fields(request, services)

    def make(session: Session) -> Answer:
        job = jobs.ring(session, caller.owner, job_id)
        if job.state not in TERMINAL:
            return _accepted(job, jobs.attempts(session, [job_id])[job_id])
        return _queued(session, services, caller.owner, _like(session, services, job, {}), job)

    return await once.answer(body, make)


@router.post("/{job_id}/clone", status_code=202, response_model=JobOut, openapi_extra=JOB_CLONE)
async def clone_job(request: Request, job_id: str, services: Shared, caller: Caller, once: Idempotent) -> Response:
    """Queue a new job like this one, whatever its state, but for the fields that are given. Its `cloned_from` says of
    which job. It is checked as a new one is: all faults together, in what was given and in what the job brings along.
    """
    body, changes = await read_optional(request, services.settings)

    def make(session: Session) -> Answer:
        job = jobs.get_job(session, caller.owner, job_id)
        return _queued(session, services, caller.owner, _like(session, services, job, changes), job)

    return await once.answer(body, make)


def _like(session: Session, services: Services, job: Job, changes: Any) -> Submission[JobRequest]:
    return submission.check_clone(session, job, changes, services.recipes, services.settings.devices)


async def _no_fields(request: Request, services: Services) -> bytes:
    """The body of a request that says all by its address: nothing, or an empty object. Raises `Refused`."""
    body, document = await read_optional(request, services.settings)
    _, faults = validate(NoFields, document)
    if faults:
        raise Refused("request_invalid", "the request takes no fields", faults=faults)
    return body
