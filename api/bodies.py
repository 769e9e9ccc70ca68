"""Reading JSON bodies: bounded, strict, and with every fault of the document found together."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from api.errors import Refused
from core.documents import pointer_to
from core.errors import Fault
from core.faults import faults_of
from store.settings import Settings

Document = TypeVar("Document", bound=BaseModel)


async def read_body(request: Request, settings: Settings) -> bytes:
    """The whole body. Raises `Refused` (`body_too_large`, `media_type_unsupported`, `upload_incomplete`,
    `upload_timeout`)."""
    refuse_encoding(request)
    check_length(request, settings.max_json_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(settings.upload_idle_seconds):  # in all: it is small
            async for chunk in request.stream():
                body += chunk
                if len(body) > settings.max_json_bytes:
                    raise too_large(settings.max_json_bytes)
    except TimeoutError:
        raise Refused("upload_timeout", "the body took too long and was given up") from None
    except ClientDisconnect:
        raise Refused("upload_incomplete", "the connection broke before the body was complete") from None
    return bytes(body)


async def read_optional(request: Request, settings: Settings) -> tuple[bytes, Any]:
    """A body that need not be there, and what its JSON says: an empty object where there is none. Raises `Refused`."""
    body = await read_body(request, settings)
    if not body.strip():
        return body, {}
    require_json(request)
    return body, parse_json(body)


def refuse_encoding(request: Request) -> None:
    """Raises `Refused` (`media_type_unsupported`) for a body that comes compressed: its bytes would be taken for what
    they stand for, and an upload's hash would be that of something else (RFC 9110, 15.5.16)."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise Refused(
            "media_type_unsupported",
            "the body must come as it is, not compressed",
            faults=[Fault("", f"the header Content-Encoding says {encoding[:60]}", "no Content-Encoding")],
            headers={"Accept-Encoding": "identity"},
        )


def check_length(request: Request, limit: int, slack: int = 0) -> int | None:
    """The length that the client announces, refused early if it is over the limit."""
    announced = request.headers.get("content-length", "")
    if not (announced.isascii() and announced.isdigit()):
        return None
    if len(announced) > 18 or int(announced) > limit + slack:
        raise too_large(limit)
    return int(announced)


def too_large(limit: int) -> Refused:
    fault = Fault("", "the body is larger than this server takes", f"at most {limit} bytes")
    return Refused("body_too_large", f"the body is over the limit of {limit} bytes", faults=[fault])


def parse_json(text: bytes | str, pointer: str = "") -> Any:
    """What JSON text says.

    Raises `Refused` (`json_invalid`) for anything that is not JSON by the standard (NaN, …), and for a name that is
    there twice in one object: the parser would drop all but the last.
    """
    try:
        document = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_object)
        json.dumps(document, ensure_ascii=False).encode()  # a lone surrogate can be neither stored nor sent on
        if _has_nul(document):  # PostgreSQL refuses it
            raise ValueError("text must not hold U+0000")
    except (ValueError, RecursionError) as error:
        fault = Fault(pointer, _reason(error), "JSON (RFC 8259)")
        raise Refused("json_invalid", "the body is not valid JSON", faults=[fault]) from None
    if repeated := list(_repeated(document, pointer)):
        faults = [Fault(where, "the name is there more than once", "each name once") for where in repeated]
        raise Refused("json_invalid", "the body gives the same name twice", faults=faults)
    return document


class _Repeating(dict[str, Any]):
    """An object of the text with the names that it gives more than once."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(document := dict(pairs)) == len(pairs):
        return document
    repeating = _Repeating(document)
    repeating.repeated = tuple(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return repeating


def _repeated(value: Any, pointer: str) -> Iterator[str]:
    """Pointers to the names that are given more than once."""
    if isinstance(value, _Repeating):
        yield from (pointer + pointer_to(name) for name in value.repeated)
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _repeated(item, pointer + pointer_to(key))


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _has_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(_has_nul(item) for item in value)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeError):
        return "not UTF-8, or with a lone surrogate"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return number


def require_json(request: Request) -> None:
    """Raises `Refused` (`media_type_unsupported`) unless the body is said to be JSON."""
    if media_type(request) != "application/json":
        raise Refused(
            "media_type_unsupported",
            "the body must be JSON",
            faults=[Fault("", "the header Content-Type says something else", "Content-Type: application/json")],
        )


def media_type(request: Request) -> str:
    """The media type of the body, without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def validate(model: type[Document], document: Any, prefix: str = "") -> tuple[Document | None, list[Fault]]:
    """`document` as `model`, or None and all its faults."""
    try:
        return model.model_validate(document), []
    except ValidationError as error:
        return None, faults_of(error, model, prefix=prefix)
