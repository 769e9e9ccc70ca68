"""Every error as an RFC 9457 problem document, and THE table of which code has which status.

What goes out names no path of this machine and shows no traceback; those go to the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from core.errors import BillhookError, Fault
from core.faults import plain_words

MEDIA_TYPE = "application/problem+json"
log = structlog.get_logger()

STATUSES: Mapping[str, int] = {
    # the request
    "bad_request": 400,
    "json_invalid": 400,
    "multipart_invalid": 400,
    "parameter_invalid": 400,
    "upload_incomplete": 400,
    "unauthenticated": 401,
    "scope_missing": 403,
    "grant_refused": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "upload_timeout": 408,
    "length_required": 411,
    "precondition_failed": 412,
    "body_too_large": 413,
    "media_type_unsupported": 415,
    "range_not_satisfiable": 416,
    "headers_too_large": 431,
    # what it says
    "request_invalid": 422,
    "recipe_invalid": 422,
    "model_refused": 422,
    "dataset_refused": 422,
    "idempotency_key_reused": 422,
    # what a dry run finds, with the codes that the job would fail with
    "model_unreadable": 422,
    "model_too_large": 422,
    "operator_unknown": 422,
    "dataset_unreadable": 422,
    "dataset_too_large": 422,
    "dataset_unsuitable": 422,
    "dataset_mismatch": 422,
    "baseline_near_chance": 422,
    "pruning_failed": 422,
    "nothing_removed": 422,
    "target_unreachable": 422,
    "cut_refused": 422,
    "training_diverged": 422,
    "device_unavailable": 422,
    "time_limit": 422,
    "memory_limit": 422,
    "disk_limit": 422,
    # what it meets
    "idempotency_key_in_flight": 409,
    "illegal_transition": 409,
    "in_use": 409,
    "input_not_ready": 409,
    "input_refused": 409,
    "job_not_succeeded": 409,
    "job_running": 409,
    "job_terminal": 409,
    "too_many_dry_runs": 429,
    # what failed here
    "internal_error": 500,
    "artifact_corrupt": 500,
    "artifact_missing": 500,
    "poison": 500,
    "not_implemented": 501,
    "database_unavailable": 503,
    "migration_blocked": 503,
    "schema_mismatch": 503,
    "storage_unavailable": 503,
    "not_ready": 503,
    "stopping": 503,
    "disk_full": 507,
    "storage_full": 507,
}
_OF_STATUS: Mapping[int, str] = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "body_too_large",
    415: "media_type_unsupported",
    416: "range_not_satisfiable",
}
RETRY_AFTER_SECONDS: Mapping[str, int] = {
    "idempotency_key_in_flight": 1,
    "too_many_dry_runs": 5,
    "input_not_ready": 2,
    "database_unavailable": 5,
    "migration_blocked": 5,
    "schema_mismatch": 5,
    "storage_unavailable": 5,
    "not_ready": 5,
    "stopping": 5,
    "storage_full": 60,
}


class Refused(BillhookError):
    """What the API itself refuses; `code` is one of `STATUSES`."""

    def __init__(
        self, code: str, message: str, *, faults: Iterable[Fault] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, faults=faults)
        self.code = code
        self.headers = dict(headers or {})


def problem(
    code: str, detail: str, *, faults: Sequence[Fault] = (), headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The problem document for `code`, with its status from `STATUSES`; a code that is not there is a fault of ours."""
    status = STATUSES.get(code, 500)
    body = {
        "type": f"urn:billhook:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "faults": [fault.as_dict() for fault in faults],
    }
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    if request_id:
        body["instance"] = f"urn:billhook:request:{request_id}"
    sent = dict(headers or {})
    if code in RETRY_AFTER_SECONDS:
        sent.setdefault("Retry-After", str(RETRY_AFTER_SECONDS[code]))
    return JSONResponse(body, status_code=status, headers=sent, media_type=MEDIA_TYPE)


def problem_of(error: Exception) -> JSONResponse:
    """The problem document that an exception stands for. One that nobody foresaw is logged and says nothing."""
    if isinstance(error, BillhookError):
        if STATUSES.get(error.code, 500) >= 500:
            log.error("request failed", code=error.code, exc_info=error)
        headers = error.headers if isinstance(error, Refused) else None
        if error.code not in STATUSES:
            return problem("internal_error", "something went wrong here; the log says what")
        return problem(error.code, error.message, faults=error.faults, headers=headers)
    if isinstance(error, RequestValidationError):
        return _invalid_parameters(error)
    if isinstance(error, HTTPException):
        code = _OF_STATUS.get(error.status_code, "bad_request" if error.status_code < 500 else "internal_error")
        return problem(code, _DETAILS.get(code, str(error.detail)), headers=error.headers)
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    ):
        log.error("the database does not answer", exc_info=error)
        return problem("database_unavailable", "the database does not answer; try again")
    log.error("unexpected error", exc_info=error)
    return problem("internal_error", "something went wrong here; the log says what")


_DETAILS: Mapping[str, str] = {
    "not_found": "there is nothing at this address",
    "method_not_allowed": "this address does not know that method; see the header Allow",
}


def _invalid_parameters(error: RequestValidationError) -> JSONResponse:
    """Bodies are validated by the routes themselves, so this is about parameters of the query, path and headers."""
    faults = []
    for item in error.errors():
        name = str(item["loc"][1])  # behind `query`, `path` or `header`; a position in a repeated one may follow
        message, expected = plain_words(item)
        faults.append(Fault(f"/{name}", f"the parameter {name}: {message}", expected))
    return problem("parameter_invalid", f"{len(faults)} parameter(s) cannot be used", faults=faults)


def _allowed(request: Request, found: str) -> str:
    """The methods of an address. The framework `found` those of the first route that matches, and not the others; of
    paths that match, one without parameters is meant."""
    app: FastAPI = request.app
    paths = app.openapi()["paths"]
    here = request.url.path
    matching = (
        [paths[here]] if here in paths else [paths[path] for path in paths if compile_path(path)[0].fullmatch(here)]
    )
    methods = {method.upper() for operations in matching for method in operations}
    methods |= set() if methods else {method for method in found.split(", ") if method}
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods | {"OPTIONS"}))


def install(app: FastAPI) -> None:
    """Every exception that a route raises, the framework's own too, becomes a problem document."""

    async def handle(request: Request, error: Exception) -> Response:
        answer: Response = problem_of(error)
        if answer.status_code == 405:
            headers = {"Allow": _allowed(request, answer.headers.get("allow", ""))}
            if request.method == "OPTIONS":  # no route's own: what it asks is what the others are
                return Response(status_code=204, headers=headers)
            answer.headers.update(headers)
        return answer

    for kind in (BillhookError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
