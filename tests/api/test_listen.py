"""Clients that take their time: heads, JSON bodies and forms that never end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from sqlalchemy import Engine

from api import listen
from api.bodies import read_body
from api.errors import Refused
from store import idempotency
from store.database import transaction
from store.idempotency import Slot
from tests.api.conftest import Api, problem
from tests.api.live import serve
from tests.store.conftest import OWNER, engine, postgres, postgres_url, sqlite_template

__all__ = ["engine", "postgres", "postgres_url", "sqlite_template"]  # fixtures


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A server that waits half a second for heads, with an answer that takes longer."""
    monkeypatch.setattr(listen, "HEAD_SECONDS", 0.5)
    app = FastAPI()

    @app.get("/")
    def answer() -> str:
        time.sleep(0.8)
        return "late"

    server = uvicorn.Server(uvicorn.Config(app, http=listen.Connection, log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        host, port = listener.getsockname()
        yield host, port
        server.should_exit = True
        thread.join(20)


@pytest.mark.parametrize("beginning", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow"])
def test_a_head_that_does_not_come_is_given_up(address: tuple[str, int], beginning: bytes) -> None:
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(beginning)
        assert connection.recv(100) == b"", "closed"


def test_an_answer_may_take_longer_and_a_second_head_may_not(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while b"late" not in answer:
            part = connection.recv(1_000)
            assert part, "closed"
            answer += part
        began = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\n")
        assert connection.recv(100) == b""
        assert 0.3 < time.monotonic() - began < 3


def test_a_head_that_comes_at_once_is_not_taken_either(address: tuple[str, int]) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"
    for sent, status in ((head, b"431"), (head.replace(b"y" * 50_000, b""), b"200")):
        with socket.create_connection(address, timeout=5) as connection:
            connection.sendall(sent)
            assert connection.recv(1_000).split()[1] == status


def test_an_upload_that_is_cut_off_by_the_end_of_the_server_holds_no_key(engine: Engine, tmp_path: Path) -> None:
    with serve(engine, tmp_path) as live, socket.create_connection(live.address, timeout=20) as connection:
        head = [
            "POST /v1/models?filename=m.onnx HTTP/1.1", "Host: x", f"Authorization: Bearer {live.key}",
            "Content-Type: application/octet-stream", "Content-Length: 1000", "Idempotency-Key: again", "", "x",
        ]  # fmt: skip
        connection.sendall("\r\n".join(head).encode())
        uploads = tmp_path / "uploads"
        deadline = time.monotonic() + 20
        while not (uploads.is_dir() and any(uploads.iterdir())):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        live.process.terminate()
        answer = connection.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 503")
        live.process.wait(20)
        assert not any(uploads.iterdir())
        with transaction(engine) as session:  # else it raises `IdempotencyKeyInFlight` for half a minute
            held = idempotency.reserve(session, Slot(OWNER, "POST /v1/models", "again"))
        assert isinstance(held, idempotency.Reservation)


def test_a_json_body_that_trickles_in_is_given_up(api: Api) -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.05)  # never idle for as long as the setting says
        return {"type": "http.request", "body": b" ", "more_body": True}

    settings = api.settings.model_copy(update={"upload_idle_seconds": 0.3})
    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(Refused) as caught:
        asyncio.run(asyncio.wait_for(read_body(request, settings), 10))
    assert caught.value.code == "upload_timeout"


def test_a_form_does_not_go_on_for_ever(api: Api) -> None:
    """Behind the last boundary anything may stand, and is not looked at."""
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="m.onnx"\r\n\r\nx\r\n--b--\r\n'
        while sent < 100:
            sent += 1
            yield b"\r\n" + b"y" * 100_000

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(api.http.post("/v1/models", content=body(), headers=headers), 413, "body_too_large")
    assert api.http.get("/v1/models").json()["items"] == []
