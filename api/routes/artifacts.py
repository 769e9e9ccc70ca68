"""What a job left: its report and its files. Strong ETags (the sha256), conditional and partial requests."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.errors import Refused
from api.schemas import ArtifactOut, ArtifactPage
from api.services import Caller, Services, Shared
from core.errors import Fault
from core.report import Report
from store import jobs
from store.errors import NotFound
from store.records import Artifact

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["artifacts"])
REPORTS = {"application/json": "report.json", "text/markdown": "report.md"}
_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.ASCII)
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


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
def list_artifacts(job_id: str, services: Shared, caller: Caller) -> ArtifactPage:
    """The job's files, by name."""

    def look(session: Session) -> ArtifactPage:
        jobs.get_job(session, caller.owner, job_id)
        return ArtifactPage(items=[ArtifactOut.of(found) for found in jobs.artifacts(session, job_id)])

    return services.read(look)


@router.get("/artifacts/{name}", response_class=StreamingResponse, responses={200: {"content": _BINARY}})
@router.head("/artifacts/{name}", response_class=StreamingResponse, include_in_schema=False)
async def get_artifact(request: Request, job_id: str, name: str, services: Shared, caller: Caller) -> Response:
    """The bytes of a file. `ETag` is its sha256; `If-None-Match`, `Range` and `If-Range` are honoured."""

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


async def send_stored(
    request: Request, services: Services, sha256: str, size: int, *, media_type: str, filename: str | None = None
) -> Response:
    """The answer to a GET or HEAD of an object in the storage; a `filename` is for what is to be saved."""
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",  # a name may get another content; the tag tells
    }
    if filename is not None:
        headers["Content-Disposition"] = f"attachment; filename*=utf-8''{quote(filename, safe='')}"
    if _none_match(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    start, end = 0, size
    asked = request.headers.get("range")
    partial = None
    if asked is not None and request.headers.get("if-range", etag) == etag:
        partial = byte_range(asked, size)
    if partial is not None:
        start, end = partial
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    status = 200 if partial is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    chunks = services.artifacts.stream(sha256, start, end)
    # the first chunk before the head of the answer: an object that is not there is still an error then
    first = await anext(chunks, b"")
    return StreamingResponse(_chain(first, chunks), status_code=status, headers=headers, media_type=media_type)


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def _none_match(header: str | None, etag: str) -> bool:
    """RFC 9110, 13.1.2: weak comparison."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """The one range asked for as (start, end), the end not included; None if the header is to be ignored.

    Several ranges, other units and malformed headers are ignored, as RFC 9110 (14.2) allows. Raises `Refused`
    (`range_not_satisfiable`).
    """
    match = _RANGE.fullmatch(header.strip().lower())
    if match is None or not (match[1] or match[2]):
        return None
    if match[1]:
        start, end = int(match[1]), min(int(match[2] or size), size - 1) + 1
        if match[2] and int(match[2]) < int(match[1]):
            return None
    else:
        start, end = max(0, size - int(match[2])), size
    if start >= size or start >= end:
        raise Refused(
            "range_not_satisfiable", f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, end


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
