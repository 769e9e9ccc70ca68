"""The server process itself: uvicorn on a socket that `billhook-server` opened and handed down."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import socket
import sys
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import h11
import structlog
import uvicorn
from fastapi import FastAPI
from structlog.contextvars import bound_contextvars
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.app import create_app
from api.errors import problem
from api.hub import Hub

GRACEFUL_SECONDS = 3  # what is still being answered then is cut off
CUT_OFF_SECONDS = 5.0  # what was cut off has so long to put its things in order
HEAD_SECONDS = 20.0
MAX_HEAD_BYTES = 64 * 1024
PIECE_BYTES = 16 * 1024  # of a head: h11 measures only what it has of one that is not complete


LINGER_SECONDS = 1.0  # for which a connection with a refused request is read on: closed at once, it would be reset
_CODES = {431: "headers_too_large", 501: "not_implemented"}
_DETAILS = {
    "bad_request": "this is not HTTP, or not such as can be read",
    "headers_too_large": f"the head of the request is over {MAX_HEAD_BYTES} bytes",
    "not_implemented": "that transfer coding is not known here",
}
M_TOP_PAD = -2  # malloc.h
KEPT_BYTES = 16 * 2**20
log = structlog.get_logger()


class Connection(H11Protocol):
    """uvicorn's, but for three things: it waits for the rest of a request's head for ever, here it is given up after
    `HEAD_SECONDS`; it takes a large head if only it comes at once, here no head is; it answers what is no request by
    plain text, here by a problem document."""

    _giving_up: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        while data and not self._refused:
            size = PIECE_BYTES if self._waits_for_a_head() else len(data)
            super().data_received(data[:size])
            data = data[size:]
        if not self._refused:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what h11 cannot read, with the status that it finds fit; it is handling h11's error when it calls."""
        error = sys.exc_info()[1]
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way: break it off
            self.transport.close()
            return
        code = _CODES.get(getattr(error, "error_status_hint", 400), "bad_request")
        request_id = uuid.uuid4().hex
        with bound_contextvars(request_id=request_id):
            answer = problem(code, _DETAILS[code])
            log.info("request refused", status=answer.status_code, reason=str(error)[:200])
        answer.headers.update({"X-Request-ID": request_id, "X-Content-Type-Options": "nosniff", "Connection": "close"})
        reason = HTTPStatus(answer.status_code).phrase.encode()
        for event in (
            h11.Response(status_code=answer.status_code, headers=answer.raw_headers, reason=reason),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self._refused = True
        if self.cycle is not None:  # whoever reads its body sees it break off, and need not answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._stop_watching()
        self._giving_up = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _unsupported_upgrade_warning(self) -> None:
        """Whoever asks for a websocket gets the answer of HTTP, and that is in the log as any other."""

    def _watch(self) -> None:
        if not self._waits_for_a_head():
            self._stop_watching()
        elif self._giving_up is None:
            self._giving_up = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _waits_for_a_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _stop_watching(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None


def configuration(app: FastAPI | str) -> uvicorn.Config:
    """How the application (or where it is to be imported from) is served."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,  # store/logs.py; api/request_log.py logs requests
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )


def keep_freed_memory() -> None:
    """Have the C library keep some of the memory that is freed, instead of giving it back to the kernel at once.

    Each piece of an upload is allocated and freed several times on its way; with glibc's defaults each time its pages
    are taken from the kernel anew, which costs more processor time than everything else about it.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(M_TOP_PAD, KEPT_BYTES)


class Server(uvicorn.Server):
    """uvicorn's, which lets requests end before it tells the application that it stops: streams and long polls, which
    would not end, are told first. Clients then ask again."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._hub.close()
        await super().shutdown(sockets)
        # uvicorn ends the process by its signal now, under requests that it has just cut off: they put in order what
        # they hold (an idempotency key, a file) and say why
        if self.server_state.tasks:
            await asyncio.wait(set(self.server_state.tasks), timeout=CUT_OFF_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the API on the listening socket `--fd` until SIGTERM or SIGINT; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m api.listen", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="number of the listening socket")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    app = create_app()
    server = Server(configuration(app), app.state.services.hub)
    server.run(sockets=[socket.socket(fileno=options.fd)])
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
