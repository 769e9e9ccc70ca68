"""The server process itself: uvicorn on a socket that `billhook-server` opened and handed down."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence

import uvicorn

GRACEFUL_SECONDS = 3  # a waiting long poll is cut off then; the client asks again


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the API on the listening socket `--fd` until SIGTERM or SIGINT; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m api.listen", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="number of the listening socket")
    options = parser.parse_args(arguments)
    config = uvicorn.Config(
        "api.app:app",
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
