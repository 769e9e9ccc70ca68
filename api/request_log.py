"""The outermost layer: request ids, one log line and one count per request, problem documents for the unforeseen."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Any

import anyio
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from api.errors import problem, problem_of
from api.metrics import Metrics

log = structlog.get_logger()
DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 10.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SUBJECT = re.compile(r"/v1/(?:models|datasets)/((?:mdl|ds)_[A-Za-z0-9_-]{1,40})(?:/.*)?")
_JOB = re.compile(r"/v1/jobs/(job_[A-Za-z0-9_-]{1,40})(?:/.*)?")


class RequestLog:
    """Gives each request an id (`X-Request-ID`, the client's own if it is a plain word), logs and counts how it ended.

    The job, model or dataset that it is about stands in every line of it; one that it made, in the last.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        exchange = _Exchange(scope, receive, send, request_id)
        began = time.monotonic()
        self.metrics.began()
        with bound_contextvars(request_id=request_id, **_about(scope["path"])):
            try:
                if any(character < " " or character == "\x7f" for character in scope["path"]):
                    await problem("not_found", "there is nothing at this address")(scope, receive, exchange.send)
                elif b"%00" in scope["query_string"]:
                    detail = "a parameter holds U+0000"
                    await problem("parameter_invalid", detail)(scope, receive, exchange.send)
                else:
                    await self.app(scope, exchange.receive, exchange.send)
            except asyncio.CancelledError:  # the server stops, and this request took longer than it waits
                if exchange.status is None:
                    await problem("stopping", "this server is stopping; try again")(scope, receive, exchange.send_now)
                raise
            except Exception as error:
                answer = problem_of(error)
                if exchange.status is not None:  # too late for another answer: break the connection
                    raise
                await answer(scope, receive, exchange.send)
            finally:
                ended = time.monotonic()
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=exchange.status,
                    seconds=round(ended - began, 4),
                    **_about(exchange.location),
                )
                query = scope["query_string"]
                waited = b"wait=" in query or b"dry_run=" in query  # as long as it was told to, or a worker took
                self.metrics.ended(
                    scope["method"],
                    getattr(scope.get("route"), "path", "none"),
                    exchange.status,
                    None if waited else (exchange.answered or ended) - began,
                )


def _about(path: str) -> dict[str, str]:
    """The record that an address is of, as it is called in the log."""
    if (job := _JOB.fullmatch(path)) is not None:
        return {"job": job[1]}
    subject = _SUBJECT.fullmatch(path)
    return {} if subject is None else {"subject": subject[1]}


class _Exchange:
    """One request and its answer, watched."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        headers = Headers(scope=scope)
        self.status: int | None = None
        self.answered: float | None = None
        self.location = ""
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._more = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        # such a client sends its body only when it is told to: nothing is on its way
        self._waits = headers.get("expect", "").lower() == "100-continue"

    async def receive(self) -> Message:
        message = await self._receive()
        self._waits = False
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            await self._drain()
        await self.send_now(message)

    async def send_now(self, message: Message) -> None:
        """`send`, whatever is still coming in."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.answered = time.monotonic()
            headers = MutableHeaders(scope=message)
            self.location = headers.get("location", "")
            headers["X-Request-ID"] = self._request_id
            headers["X-Content-Type-Options"] = "nosniff"
        await self._send(message)

    async def _drain(self) -> None:
        """Read the rest of a refused body, within bounds.

        A connection closed with unread bytes in it is reset, and a client that is still sending then never sees why.
        """
        read = 0
        with anyio.move_on_after(DRAIN_SECONDS):
            while self._more and not self._waits and read < DRAIN_BYTES:
                message: dict[str, Any] = dict(await self.receive())
                read += len(message.get("body", b""))
