"""Dry runs: what a job would come to. One is asked by `POST /v1/jobs?dry_run=true`; here is where a long one is waited
for, or given up."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from api import submission
from api.bodies import parse_json
from api.errors import STATUSES, Refused
from api.schemas.dry_runs import DryRunOut
from api.schemas.problems import Reason
from api.services import Caller, Services, Shared, Wait
from core.dry_run_report import DryRunReport
from core.errors import Fault
from store import dry_runs
from store.database import transaction
from store.errors import NotFound
from store.pulses import Pulse
from store.records import DryRun

router = APIRouter(prefix="/v1/dry-runs", tags=["jobs"])
DEFAULT_WAIT = 60.0
ANSWERED = frozenset({"done", "refused"})
DryRunWait = Annotated[
    float | None,
    Query(ge=0, le=600, allow_inf_nan=False, description="of a dry run: seconds to wait for its answer; default 60"),
]
_RETRY_AFTER_SECONDS = 1
DRY_RUN_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": DryRunReport, "description": "what the job would come to (`?dry_run=true`)"},
    202: {"description": "the job; or a dry run that takes longer than it was waited for"},
}


async def ask(request: Request, services: Services, owner: str, body: bytes, wait: float | None) -> JSONResponse:
    """Answer a dry run of what `body` submits, or say where its answer will be.

    Raises `Refused` as the submission of the job would, or with what the job would fail with.
    """
    seconds = min(DEFAULT_WAIT if wait is None else wait, services.settings.long_poll_seconds)
    dry_run_id = await run_in_threadpool(_create, services, owner, body, seconds)
    found = await _waited(request, services, owner, dry_run_id, seconds)
    if found.state in ANSWERED or await request.is_disconnected():  # nobody else knows of it
        await run_in_threadpool(_delete, services, owner, dry_run_id)
    return _answer(found)


def _create(services: Services, owner: str, body: bytes, seconds: float) -> str:
    document = parse_json(body)
    with transaction(services.engine) as session:
        asked = submission.check(session, owner, document, services.recipes, services.settings.devices)
        return dry_runs.create(
            session,
            owner=owner,
            model_id=asked.request.model,
            dataset_ids=asked.request.datasets,
            recipe=asked.recipe.model_dump(mode="json"),
            requirements=asked.request.requirements.model_dump(mode="json"),
            elsewhere=asked.queue != "cpu",
            wait=seconds,
        ).id


def _delete(services: Services, owner: str, dry_run_id: str) -> None:
    try:
        with transaction(services.engine) as session:
            dry_runs.delete(session, owner, dry_run_id)
    except NotFound:  # forgotten already
        pass


async def _waited(request: Request, services: Services, owner: str, dry_run_id: str, seconds: float) -> DryRun:
    return await services.wait(
        request,
        dry_run_id,
        lambda session: dry_runs.get(session, owner, dry_run_id),
        _is_answered,
        _is_answered,
        seconds,
    )


def _is_answered(found: DryRun | Pulse) -> bool:
    return found.state in ANSWERED


def _answer(found: DryRun) -> JSONResponse:
    """Raises `Refused` with what the job would fail with."""
    if found.state == "done":
        return JSONResponse(DryRunReport.model_validate(found.result).model_dump(mode="json"))
    if found.state == "refused":
        reason = Reason.model_validate(found.refusal)
        code = reason.code if reason.code in STATUSES else "internal_error"  # a proof that failed, a worker's defect
        faults = [Fault(fault.pointer, fault.message, fault.expected) for fault in reason.faults]
        raise Refused(code, reason.message, faults=faults)
    headers = {"Location": f"/v1/dry-runs/{found.id}", "Retry-After": str(_RETRY_AFTER_SECONDS)}
    return JSONResponse(DryRunOut.of(found).model_dump(mode="json"), status_code=202, headers=headers)


@router.get(
    "/{dry_run_id}",
    response_model=DryRunReport,
    responses={202: {"model": DryRunOut, "description": "not answered yet"}},
)
async def get_dry_run(
    request: Request, dry_run_id: str, services: Shared, caller: Caller, wait: Wait = 0
) -> JSONResponse:
    """What the job would come to, or the problem that it would end with; 202 as long as it is not known.

    A dry run that nobody asks about for a minute is given up and forgotten.
    """
    seconds = min(wait, services.settings.long_poll_seconds)

    def want() -> None:
        with transaction(services.engine) as session:
            dry_runs.want(session, caller.owner, dry_run_id, seconds)

    await run_in_threadpool(want)
    return _answer(await _waited(request, services, caller.owner, dry_run_id, seconds))


@router.delete("/{dry_run_id}", status_code=204)
def delete_dry_run(dry_run_id: str, services: Shared, caller: Caller) -> None:
    """Give up a dry run: the worker that is at it stops within seconds."""
    with transaction(services.engine) as session:
        dry_runs.delete(session, caller.owner, dry_run_id)
