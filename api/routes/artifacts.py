"""What a job left: its report and its files. Strong ETags (the sha256), conditional and partial requests."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.conditional import send_stored
from api.errors import Refused
from api.pages import PageSize
from api.schemas.artifacts import ArtifactOut, ArtifactPage
from api.services import Caller, Shared
from core.errors import Fault
from core.report import Report
from store import jobs
from store.errors import NotFound
from store.records import Artifact

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["artifacts"])
REPORTS = {"application/json": "report.json", "text/markdown": "report.md"}
_FILES = {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    "application/json": {"schema": {"type": ["object", "array"], "description": "report.json, plan.json, …"}},
    "text/markdown": {"schema": {"type": "string"}},
    "image/svg+xml": {"schema": {"type": "string"}},
}


@router.get(
    "/report",
    response_model=Report,
    responses={200: {"content": {"text/markdown": {"schema": {"type": "string"}}}}},
)
async def get_report(request: Request, job_id: str, services: Shared, caller: Caller) -> Response:
    """What the job measured, as JSON or, by `Accept`, as Markdown. 409 before it has succeeded."""
    chosen = preferred(request.headers.get("accept", "*/*"), tuple(REPORTS))
    if chosen is None:
        fault = Fault("/Accept", "the report does not come in that form", ", ".join(REPORTS))
        raise Refused("not_acceptable", "no form of the report is acceptable", faults=[fault])

    def look(session: Session) -> Artifact:
        job = jobs.get_job(session, caller.owner, job_id)
        if job.state != "succeeded":
            raise Refused("job_not_succeeded", f"there is no report: the job is {job.state}")
        return jobs.artifact(session, job_id, REPORTS[chosen])

    artifact = await run_in_threadpool(services.read, look)
    answer = await send_stored(request, services, artifact.sha256, artifact.bytes, media_type=chosen)
    answer.headers["Vary"] = "Accept"
    return answer


@router.get("/artifacts")
def list_artifacts(
    job_id: str,
    services: Shared,
    caller: Caller,
    page_size: PageSize = 50,
    page_token: Annotated[str | None, Query(max_length=255, description="next_page_token of a page")] = None,
) -> ArtifactPage:
    """The job's files, by name."""

    def look(session: Session) -> ArtifactPage:
        jobs.get_job(session, caller.owner, job_id)
        found = jobs.artifacts(session, job_id, after=page_token, limit=page_size + 1)
        items = [ArtifactOut.of(artifact) for artifact in found[:page_size]]
        return ArtifactPage(items=items, next_page_token=items[-1].name if len(found) > page_size else None)

    return services.read(look)


@router.get("/artifacts/{name}", response_class=StreamingResponse, responses={200: {"content": _FILES}})
async def get_artifact(request: Request, job_id: str, name: str, services: Shared, caller: Caller) -> Response:
    """The bytes of a file. `ETag` is its sha256; `If-None-Match`, `If-Match`, `Range` and `If-Range` are honoured."""

    def look(session: Session) -> Artifact:
        jobs.get_job(session, caller.owner, job_id)
        return jobs.artifact(session, job_id, name)

    try:
        artifact = await run_in_threadpool(services.read, look)
    except NotFound as error:
        raise Refused("not_found", error.message) from None
    return await send_stored(
        request, services, artifact.sha256, artifact.bytes, media_type=artifact.media_type, filename=artifact.name
    )


def preferred(accept: str, offers: tuple[str, ...]) -> str | None:
    """The media type of `offers` that an Accept header likes best, the first of equals; None if it takes none."""
    best: tuple[float, int, int] | None = None
    chosen = None
    for position, offer in enumerate(offers):
        quality, precision = _quality(accept, offer)
        rank = (quality, precision, -position)
        if quality > 0 and (best is None or rank > best):
            best, chosen = rank, offer
    return chosen


def _quality(accept: str, offer: str) -> tuple[float, int]:
    """How much the header likes the offer (0-1), by its most precise entry for it, and how precise that is (0-2)."""
    found = (-1, 0.0)
    kind = offer.partition("/")[0]
    for entry in accept.split(","):
        name, *parameters = (part.strip().lower() for part in entry.split(";"))
        precision = {offer: 2, f"{kind}/*": 1, "*/*": 0}.get(name)
        if precision is None or precision <= found[0]:
            continue
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        quality = float(weight) if re.fullmatch(r"[01](\.\d{0,3})?", weight) else 0.0
        found = (precision, quality)
    return found[1], max(found[0], 0)
