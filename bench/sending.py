"""A server of our own, and large uploads to it: one block again and again, so that the sender takes neither time nor
memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).resolve().parent.parent
BLOCK_BYTES = 2**20
BOUNDARY = b"a-boundary-that-no-file-holds"
BEGINNING = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="m.onnx"\r\n\r\n' % BOUNDARY
END = b"\r\n--%b--\r\n" % BOUNDARY
Form = Literal["raw", "multipart"]


@dataclass(frozen=True)
class Server:
    """A `billhook-server` without workers."""

    process: subprocess.Popen[bytes]
    data_dir: Path

    @property
    def url(self) -> str:
        return (self.data_dir / "address").read_text().strip()

    @property
    def key(self) -> str:
        return (self.data_dir / "key").read_text().strip()

    def api(self) -> psutil.Process:
        """The process that serves the API."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        (found,) = [child for child in children if "api.listen" in child.cmdline()]
        return found


@contextmanager
def serving(data_dir: Path, variables: Mapping[str, str] | None = None) -> Iterator[Server]:
    """The server for as long as the block; its data folder goes, too."""
    command = [sys.executable, "-m", "api.serve", "--no-worker", "--data-dir", str(data_dir), "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | dict(variables or {}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 90
        while not (data_dir / "address").exists():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the server does not start")
            time.sleep(0.05)
        yield Server(process, data_dir)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(data_dir, ignore_errors=True)


@dataclass(frozen=True)
class Content:
    """`size` bytes: `block` again and again, the last of them cut, behind a `beginning` that is its own."""

    beginning: bytes
    block: bytes
    size: int

    @classmethod
    def new(cls, size: int) -> Content:
        return cls(os.urandom(16), os.urandom(BLOCK_BYTES), size)

    def blocks(self, until: int | None = None) -> Iterator[bytes | memoryview]:
        """Up to the byte `until`."""
        left = self.size if until is None else until
        block: bytes | memoryview = self.beginning + self.block[len(self.beginning) :]
        while left > 0:
            yield block if len(block) <= left else memoryview(block)[:left]
            left -= len(block)
            block = self.block

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()


def send(server: Server, content: Content, form: Form, until: int | None = None) -> socket.socket:
    """Send a model, or its first `until` bytes, and leave the connection open."""
    around = (BEGINNING, END) if form == "multipart" else (b"", b"")
    length = content.size + sum(map(len, around))
    kind = f"multipart/form-data; boundary={BOUNDARY.decode()}" if form == "multipart" else "application/octet-stream"
    query = "" if form == "multipart" else "?filename=m.onnx"
    head = (f"POST /v1/models{query} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.key}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n").encode()  # fmt: skip
    parts = urlsplit(server.url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=300)
    try:
        connection.sendall(head + around[0])
        for block in content.blocks(until):
            connection.sendall(block)
        if until is None:
            connection.sendall(around[1])
    except BaseException:
        connection.close()
        raise
    return connection


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """The status and document that come back. Closes the connection."""
    with connection, connection.makefile("rb") as lines:
        status = int(lines.readline().split()[1])
        length = 0
        while (line := lines.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, json.loads(lines.read(length))
