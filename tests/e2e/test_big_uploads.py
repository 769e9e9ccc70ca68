"""Uploads past 2 GB over a real socket to a real server process; and those that break, of which nothing stays."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from bench.sending import Content, Form, Server, answer, send, serving
from tests.s3_server import BUCKET, S3

SIZE = 2 * 2**30 + 12_345
GROWTH_BYTES = 100 * 10**6
PART_BYTES = 8 * 2**20


@pytest.fixture(params=["folder", "s3"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    variables = {"BILLHOOK_UPLOAD_IDLE_SECONDS": "30", "BILLHOOK_MIN_FREE_BYTES": "0"}
    if request.param == "s3":
        s3: S3 = request.getfixturevalue("s3")
        variables |= {"BILLHOOK_STORAGE_URL": f"s3://{BUCKET}/store", **s3.variables()}
    with serving(tmp_path / "data", variables) as server:
        yield server


def uploads(server: Server) -> list[Path]:
    return list((server.data_dir / "uploads").glob("*"))


def models(server: Server) -> list[object]:
    found: list[object] = httpx.get(
        f"{server.url}/v1/models", headers={"Authorization": f"Bearer {server.key}"}, timeout=60
    ).json()["items"]
    return found


def objects(server: Server) -> list[Path]:
    return [path for path in (server.data_dir / "artifacts").glob("sha256/**/*") if path.is_file()]


def wait_until_nothing_is_left(server: Server) -> None:
    until = time.monotonic() + 60
    while uploads(server):
        assert time.monotonic() < until, uploads(server)
        time.sleep(0.05)
    assert (models(server), objects(server)) == ([], [])


class Growth:
    """Of the resident memory of a process, while the block lasts, in bytes."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._before = self.peak = process.memory_info().rss
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Growth:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self.peak - self._before

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", ["raw", "multipart"])
@pytest.mark.parametrize("server", ["folder"], indirect=True)
def test_two_gigabytes_take_little_memory(server: Server, form: Form) -> None:
    content = Content.new(SIZE)
    with Growth(server.api()) as growth:
        status, document = answer(send(server, content, form))
    assert status == 201, document
    assert (document["bytes"], document["sha256"]) == (SIZE, content.sha256())
    assert growth.bytes < GROWTH_BYTES
    assert uploads(server) == []
    (stored,) = objects(server)
    assert (stored.name, stored.stat().st_size) == (document["sha256"], SIZE)


@pytest.mark.parametrize("server", ["folder"], indirect=True)
def test_many_uploads_at_once_take_little_memory(server: Server) -> None:
    contents = [Content.new(12 * 2**20) for _ in range(40)]
    answers: list[tuple[int, str]] = []

    def one(content: Content) -> None:
        status, document = answer(send(server, content, "raw"))
        answers.append((status, document["sha256"]))

    with Growth(server.api()) as growth:
        threads = [threading.Thread(target=one, args=(content,)) for content in contents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answers) == sorted((201, content.sha256()) for content in contents)
    assert growth.bytes < GROWTH_BYTES, "480 MiB came in"
    assert uploads(server) == []


@pytest.mark.parametrize("form", ["raw", "multipart"])
def test_a_connection_that_is_cut(server: Server, form: Form, request: pytest.FixtureRequest) -> None:
    content = Content.new(20_000_000)
    for until in (0, 1, 3_000_000, 19_999_999):
        connection = send(server, content, form, until)
        # reset, as by a machine that went away, and not closed
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    wait_until_nothing_is_left(server)
    if "s3" in request.fixturenames and "s3" in request.node.name:
        s3: S3 = request.getfixturevalue("s3")
        assert (s3.keys(), s3.pending()) == ([], [])


def test_a_server_that_is_killed_in_the_middle(server: Server) -> None:
    """Its successor, which `billhook-server` starts, removes what it left."""
    api = server.api()
    with send(server, Content.new(50_000_000), "raw", 30_000_000):
        until = time.monotonic() + 60
        while not any(path.stat().st_size > 20_000_000 for path in uploads(server)):
            assert time.monotonic() < until
            time.sleep(0.02)
        api.kill()
    while True:
        try:
            wait_until_nothing_is_left(server)
            break
        except httpx.TransportError:  # the next one is about to start
            assert time.monotonic() < until + 60
            time.sleep(0.1)


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_a_server_that_is_killed_while_it_stores(server: Server, s3: S3) -> None:
    """There is neither a record nor an object. The parts stay until a lifecycle rule of the bucket removes them, as
    docs/storage.md says: obstore cannot list them."""
    s3.fail("PUT .*partNumber=2", seconds=20)
    api = server.api()
    with send(server, Content.new(3 * PART_BYTES), "raw"):
        until = time.monotonic() + 60
        while not s3.pending():
            assert time.monotonic() < until
            time.sleep(0.05)
        api.kill()
    while True:
        try:
            wait_until_nothing_is_left(server)
            break
        except httpx.TransportError:
            assert time.monotonic() < until + 60
            time.sleep(0.1)
    assert s3.keys() in ([], ["store/ready"])
    assert len(s3.pending()) == 1
