"""The API as a process of its own, a job whose worker is the test, and listeners that read a stream as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from billhook.event_stream import EventStream, Message
from store import jobs, leases
from store.database import transaction
from store.keys import add_key, new_secret, replace_key
from store.leases import Lease
from tests.store.conftest import OWNER, add_inputs

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Live:
    """A running server on `engine`'s database."""

    engine: Engine
    process: subprocess.Popen[bytes]
    address: tuple[str, int]
    key: str
    inputs: tuple[str, str]
    log: Path

    def job(self) -> tuple[str, Lease]:
        """A running job, and the right to write its events."""
        model, dataset = self.inputs
        with transaction(self.engine) as session:
            job_id = jobs.create_job(session, owner=OWNER, model_id=model, dataset_ids=[dataset], recipe={}).id
            lease = leases.claim(session, job_id, "host:1", "cpu", lease_seconds=600)
            assert lease is not None
        return job_id, lease

    def say(self, lease: Lease, *bodies: Any, progress: float | None = None) -> None:
        with transaction(self.engine) as session:
            leases.append_events(session, lease, [("fine_tune/0/epoch/1", {"says": body}) for body in bodies])
            if progress is not None:
                leases.set_progress(session, lease, "fine_tune", progress, 1.0)

    def finish(self, lease: Lease) -> None:
        with transaction(self.engine) as session:
            leases.finish(session, lease, "succeeded", {})

    def revoke(self) -> None:
        with transaction(self.engine) as session:
            replace_key(session, new_secret(), owner=OWNER, name="live")


@contextlib.contextmanager
def serve(engine: Engine, folder: Path, **settings: object) -> Iterator[Live]:
    key = new_secret()
    with transaction(engine) as session:
        add_key(session, key, owner=OWNER, name="live")
    given = {
        "data_dir": folder, "database_url": engine.url.render_as_string(hide_password=False), "log_level": "error",
        "watch_seconds": 0.05, "key_seconds": 0.5, **settings,
    }  # fmt: skip
    environment = os.environ | {f"BILLHOOK_{name.upper()}": str(value) for name, value in given.items()}
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener, (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "api.listen", "--fd", str(listener.fileno())], cwd=ROOT, stdout=log, stderr=log,
            env=environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"}, pass_fds=(listener.fileno(),),
        )  # fmt: skip
        address = listener.getsockname()
    try:
        end = time.monotonic() + 60
        while not _answers(address):
            assert process.poll() is None, (folder / "api.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield Live(engine, process, address, key, add_inputs(engine), folder / "api.log")
    finally:
        process.terminate()
        process.wait(20)
        print((folder / "api.log").read_text()[-5_000:])


def _answers(address: tuple[str, int]) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address[0]}:{address[1]}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@dataclass
class Listener:
    """A connection to a job's stream. `status` and `headers` are those of the answer."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    """Whether the answer was brought to its end; else the connection broke."""

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, as it comes."""
        if self.headers.get("transfer-encoding") != "chunked":
            yield await self.reader.read()
            return
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
            self.ended = True

    async def messages(self) -> AsyncIterator[Message]:
        stream = EventStream()
        async for piece in self.pieces():
            for message in stream.feed(piece):
                yield message


@contextlib.asynccontextmanager
async def listen(
    live: Live, job_id: str, last_event_id: int | None = None, *, receive_buffer: int | None = None
) -> AsyncIterator[Listener]:
    client = socket.socket()
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, live.address)
    reader, writer = await asyncio.open_connection(sock=client, limit=2**16)
    resume = [f"Last-Event-ID: {last_event_id}"] if last_event_id else []
    lines = [f"GET /v1/jobs/{job_id}/events HTTP/1.1", "Host: x", f"Authorization: Bearer {live.key}",
             "Accept: text/event-stream", *resume, "", ""]  # fmt: skip
    writer.write("\r\n".join(lines).encode())
    try:
        listener = Listener(reader, writer)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        listener.status = int(head[0].split()[1])
        listener.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        yield listener
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
