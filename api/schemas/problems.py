"""What is wrong: faults, reasons, problem documents."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel

from api.schemas.base import Out, unreadable_is


class FaultOut(Out):
    pointer: str
    message: str
    expected: str | None = None


class Reason(BaseModel):
    """Why an upload was refused, or a job or attempt failed."""

    code: str
    message: str
    faults: Annotated[list[FaultOut], unreadable_is([])] = []


StoredReason = Annotated[
    Reason | None,
    unreadable_is(Reason(code="internal_error", message="the reason was stored in a form that cannot be read")),
]


class ProblemOut(Out):
    """RFC 9457. `code` is stable; `faults` lists everything that was found."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    faults: list[FaultOut]
    instance: str | None = None
