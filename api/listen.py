"""The server process itself: uvicorn on a socket that `billhook-server` opened and handed down."""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

GRACEFUL_SECONDS = 3  # a waiting long poll is cut off then; the client asks again
HEAD_SECONDS = 20.0


class Connection(H11Protocol):
    """uvicorn's, which waits for the rest of a request's head for ever: here it is given up after `HEAD_SECONDS`."""

    _giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        waits_for_a_head = self.cycle is None or self.cycle.response_complete
        if not waits_for_a_head:
            self._stop_watching()
        elif self._giving_up is None:
            self._giving_up = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_watching(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the API on the listening socket `--fd` until SIGTERM or SIGINT; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m api.listen", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="number of the listening socket")
    options = parser.parse_args(arguments)
    config = uvicorn.Config(
        "api.app:app",
        http=Connection,
        log_config=None,  # api/request_log.py logs requests
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=64 * 1024,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    server = uvicorn.Server(config)
    server.run(sockets=[socket.socket(fileno=options.fd)])
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
