"""The outermost layer: request ids, one structured log line per request, problem documents for the unforeseen."""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from typing import Any

import anyio
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars, merge_contextvars

from api.errors import problem, problem_of

log = structlog.get_logger()
DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 10.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(level: str = "info") -> None:
    """One JSON object a line on standard error, with time, level and the request's id."""
    structlog.configure(
        processors=[
            merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,  # without the values of variables: a key may be among them
            structlog.processors.JSONRenderer(default=repr),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # whatever it is by then
        cache_logger_on_first_use=False,
    )


class RequestLog:
    """Gives each request an id (`X-Request-ID`, the client's own if it is a plain word) and logs how it ended."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        exchange = _Exchange(scope, receive, send, request_id)
        began = time.monotonic()
        with bound_contextvars(request_id=request_id):
            try:
                if any(character < " " or character == "\x7f" for character in scope["path"]):
                    await problem("not_found", "there is nothing at this address")(scope, receive, exchange.send)
                elif b"%00" in scope["query_string"]:
                    detail = "a parameter holds U+0000"
                    await problem("parameter_invalid", detail)(scope, receive, exchange.send)
                else:
                    await self.app(scope, exchange.receive, exchange.send)
            except Exception as error:
                answer = problem_of(error)
                if exchange.status is not None:  # too late for another answer: break the connection
                    raise
                await answer(scope, receive, exchange.send)
            finally:
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=exchange.status,
                    seconds=round(time.monotonic() - began, 4),
                )


class _Exchange:
    """One request and its answer, watched."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        headers = Headers(scope=scope)
        self.status: int | None = None
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
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                await self._drain()
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
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
