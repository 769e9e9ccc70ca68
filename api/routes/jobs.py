"""Jobs: submit, list, read, cancel, and their events."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api import submission
from api.bodies import parse_json, read_body, require_json
from api.errors import Refused
from api.openapi import JOB_SUBMISSION
from api.pages import PageSize, PageToken, cut
from api.schemas import EventOut, EventPage, JobOut, JobPage
from api.services import Caller, Services, Shared, Wait
from core.errors import Fault
from store import events, idempotency, jobs
from store.database import transaction
from store.idempotency import Answer
from store.records import TERMINAL, Attempt, Event, Job, JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
ROUTE = "POST /v1/jobs"
_KEY = re.compile(r"[!-~]{1,255}")


@router.post("", status_code=202, response_model=JobOut, openapi_extra=JOB_SUBMISSION)
async def submit_job(request: Request, services: Shared, caller: Caller) -> JSONResponse:
    """Queue a job. All faults of the request are found together; with an `Idempotency-Key` it is made once only."""
    require_json(request)
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        fault = Fault("/Idempotency-Key", "the header is empty, too long or not plain text", "1 to 255 of ! to ~")
        raise Refused("parameter_invalid", "the Idempotency-Key cannot be used", faults=[fault])
    body = await read_body(request, services.settings)
    answer, replayed = await run_in_threadpool(_submit, services, caller.owner, key, body)
    headers = answer.headers | ({"Idempotent-Replayed": "true"} if replayed else {})
    return JSONResponse(answer.body, status_code=answer.status, headers=headers)


def _submit(services: Services, owner: str, key: str | None, body: bytes) -> tuple[Answer, bool]:
    """The answer, and whether it was given before."""
    document = parse_json(body)
    sha256 = hashlib.sha256(body).hexdigest()
    try:
        return _submit_once(services, owner, key, sha256, document)
    except IntegrityError:  # the same key, a moment earlier, elsewhere: its answer is there now
        return _submit_once(services, owner, key, sha256, document)


def _submit_once(services: Services, owner: str, key: str | None, sha256: str, document: Any) -> tuple[Answer, bool]:
    with transaction(services.engine) as session:
        if key is not None and (known := idempotency.recall(session, owner, ROUTE, key, sha256)) is not None:
            return known, True
        asked = submission.check(session, owner, document, services.recipes, services.settings.devices)
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
        )
        headers = {"Location": f"/v1/jobs/{job.id}", "Retry-After": "1"}
        answer = Answer(202, headers, JobOut.of(job, []).model_dump(mode="json"))
        if key is not None:
            idempotency.keep(session, owner, ROUTE, key, sha256, answer)
        return answer, False


@router.get("")
def list_jobs(
    services: Shared,
    caller: Caller,
    state: Annotated[list[JobState] | None, Query(description="one of these states; may be repeated")] = None,
    kind: str | None = None,
    name: Annotated[str | None, Query(description="names that begin with this")] = None,
    tag: str | None = None,
    page_size: PageSize = 50,
    page_token: PageToken = None,
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
        return jobs.get_job(session, caller.owner, job_id), jobs.attempts(session, [job_id])[job_id]

    job, attempts = await services.wait(request, look, lambda found: found[0].state in TERMINAL, wait)
    return JobOut.of(job, attempts)


@router.post("/{job_id}/cancel", status_code=202)
def cancel_job(job_id: str, services: Shared, caller: Caller) -> JobOut:
    """Stop a job: at once if it is queued, within seconds if it runs. 409 if it is over."""
    with transaction(services.engine) as session:
        job = jobs.request_cancel(session, caller.owner, job_id)
        return JobOut.of(job, jobs.attempts(session, [job_id])[job_id])


@router.get("/{job_id}/events")
async def list_events(
    request: Request,
    job_id: str,
    services: Shared,
    caller: Caller,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="events with a higher number")] = 0,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    wait: Wait = 0,
) -> EventPage:
    """The job's event log, in order; `?wait=` waits for the first event of the page."""

    def look(session: Session) -> tuple[Job, list[Event]]:
        job = jobs.get_job(session, caller.owner, job_id)
        return job, list(events.page(session, job_id, after, limit + 1))

    _, found = await services.wait(request, look, lambda seen: bool(seen[1]) or seen[0].state in TERMINAL, wait)
    shown = found[:limit]
    more = shown[-1].seq if len(found) > limit else None
    return EventPage(items=[EventOut.of(event) for event in shown], next_after=more)
