"""A server of files on this machine, over TLS or not, that breaks off, stalls, redirects and lies as it is told."""

from __future__ import annotations

import hashlib
import random
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTENT = random.Random(0).randbytes(100_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Served:
    """One file. `breaks`: after how many bytes each of the next answers breaks off."""

    content: bytes = b""
    etag: str | None = '"one"'
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    etag_in_ranges: bool = True
    chunked: bool = False
    length: bool = True
    stalls_at: int | None = None
    seconds_per_kib: float = 0.0


@dataclass
class Server:
    """`asked`: the method, path and headers of every request, in order; `sent`: bytes of content for each."""

    url: str
    files: dict[str, Served]
    asked: list[tuple[str, str, dict[str, str]]]
    sent: list[int]
    released: threading.Event

    def ranges(self) -> list[str | None]:
        return [headers.get("range") for _, _, headers in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        state: Server = self.server.state
        headers = {name.lower(): value for name, value in self.headers.items()}
        state.asked.append((self.command, self.path, headers))
        served = state.files.get(self.path, Served(b"nothing", status=404))
        content, status, extra = served.content, served.status, dict(served.headers)
        if served.etag is not None:
            extra.setdefault("ETag", served.etag)
        wanted = headers.get("range")
        current = headers.get("if-range", headers.get("if-match", served.etag)) in (
            served.etag, served.headers.get("Last-Modified"),
        )  # fmt: skip
        start = 0
        if "if-match" in headers and not current:
            status, content = 412, b""
        elif wanted and served.ranges and current and status == 200:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) if last else len(content) - 1
            extra.setdefault("Content-Range", f"bytes {start}-{end}/{len(content)}")
            status, content = 206, content[start : end + 1]
            if not served.etag_in_ranges:
                extra.pop("ETag")
        self.send_response(status)
        for name, value in extra.items():
            self.send_header(name, value)
        if served.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif served.length:
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")  # said, or a client sends its next request into a closed connection
        self.end_headers()
        state.sent.append(0)
        if self.command == "GET":
            self._send(state, served, content)

    def _send(self, state: Server, served: Served, content: bytes) -> None:
        limit = served.breaks.pop(0) if served.breaks else None
        for place in range(0, len(content), 1024):
            piece = content[place : place + 1024]
            if limit is not None and place + len(piece) > limit:
                piece = piece[: limit - place]
            if served.stalls_at is not None and place >= served.stalls_at:
                state.released.wait(60)
            time.sleep(served.seconds_per_kib)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if served.chunked else piece)
            state.sent[-1] += len(piece)
            if limit is not None and place + len(piece) >= limit:
                return
        if served.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that break off are what is tested."""


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server on a free port of localhost."""
    with _Quiet(("127.0.0.1", 0), _Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "http" if tls is None else "https"
        state = Server(f"{scheme}://localhost:{server.server_address[1]}", {}, [], [], threading.Event())
        server.state = state  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            server.shutdown()
            thread.join()
