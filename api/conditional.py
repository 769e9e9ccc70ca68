"""Conditional and partial answers (RFC 9110, 13 and 14): strong ETags, 304, 412, 206, 416."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from api.errors import Refused
from api.head import is_head
from api.services import Services
from store.columns import to_json

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.ASCII)


async def send_stored(
    request: Request, services: Services, sha256: str, size: int, *, media_type: str, filename: str | None = None
) -> Response:
    """The answer to a GET or HEAD of an object in the storage; a `filename` is for what is to be saved."""
    etag = f'"{sha256}"'
    check_match(request, etag)
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
    asked = None if is_head(request) else request.headers.get("range")  # defined for GET alone
    partial = None
    if asked is not None and request.headers.get("if-range", etag) == etag:
        partial = byte_range(asked, size)
    if partial is not None:
        start, end = partial
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    status = 200 if partial is None else 206
    if is_head(request):
        return Response(status_code=status, headers=headers, media_type=media_type)
    chunks = services.artifacts.stream(sha256, start, end)
    # the first chunk before the head of the answer: an object that is not there is still an error then
    first = await anext(chunks, b"")
    return StreamingResponse(_chain(first, chunks), status_code=status, headers=headers, media_type=media_type)


def send_document(request: Request, document: dict[str, Any]) -> Response:
    """The answer to a GET or HEAD of a JSON document, with a strong ETag: the sha256 of its text."""
    content = to_json(document).encode()
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    check_match(request, etag)
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if _none_match(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type="application/json")


def check_match(request: Request, etag: str) -> None:
    """Raises `Refused` (`precondition_failed`) where `If-Match` asks for another content (RFC 9110, 13.1.1)."""
    header = request.headers.get("if-match")
    if header is not None and not {"*", etag} & {tag.strip() for tag in header.split(",")}:
        raise Refused("precondition_failed", "If-Match asks for another content than there is", headers={"ETag": etag})


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
