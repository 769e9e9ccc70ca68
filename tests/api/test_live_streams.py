"""Streams of events out of a real server: all of it once and in order, for a hundred listeners on a few connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine

import billhook
from tests.api.live import Listener, Live, listen, serve
from tests.store.conftest import engine, postgres, postgres_url, sqlite_template

__all__ = ["engine", "postgres", "postgres_url", "sqlite_template"]  # fixtures
POOL = 2
DEADLINE = 120


@pytest.fixture
def live(engine: Engine, tmp_path: Path) -> Iterator[Live]:
    with serve(engine, tmp_path, database_pool_size=POOL, keep_alive_seconds=0.3) as server:
        yield server


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, DEADLINE))


@contextlib.contextmanager
def in_background(work: Callable[[], None]) -> Iterator[None]:
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join(DEADLINE)
    assert not failed, failed


def database_connections(live: Live) -> int:
    process = psutil.Process(live.process.pid)
    if live.engine.dialect.name == "postgresql":
        port = live.engine.url.port or 5432
        return sum(bool(each.raddr) and each.raddr.port == port for each in process.net_connections())
    return sum(each.path == live.engine.url.database for each in process.open_files())


async def follow(live: Live, job_id: str, leave_after: int) -> list[int]:
    """The numbers of all events, over two connections; the first is left in the middle."""
    numbers: list[int] = []
    for first in (True, False):
        async with listen(live, job_id, numbers[-1] if numbers else None) as listener:
            assert listener.status == 200
            async for message in listener.messages():
                if message.event == "message":
                    assert message.id == str(json.loads(message.data)["seq"])
                    numbers.append(int(message.id))
                    if first and len(numbers) >= leave_after:
                        break
                elif message.event == "end":
                    return numbers
    pytest.fail(f"the stream of {job_id} has no end: {len(numbers)} events")


@pytest.mark.parametrize("several_jobs", [False, True], ids=["one_job", "a_job_each"])
def test_a_hundred_listeners(live: Live, several_jobs: bool) -> None:
    made = [live.job() for _ in range(100 if several_jobs else 1)]
    rounds, most = 2 if several_jobs else 30, 0

    def work() -> None:
        nonlocal most
        for number in range(rounds):
            for _, lease in made:
                live.say(lease, *range(10), progress=number / rounds)
            most = max(most, database_connections(live))
        for _, lease in made:
            live.finish(lease)

    async def main() -> list[list[int]]:
        followers = [follow(live, made[number % len(made)][0], 3 + number % 15) for number in range(100)]
        with in_background(work):
            return await asyncio.gather(*followers)

    expected = list(range(1, 2 + 10 * rounds + 1 + 1))  # two states, what was said, the last state
    assert run(main()) == [expected] * 100
    assert 0 < most <= POOL


def test_a_stream_from_beginning_to_end(live: Live) -> None:
    job_id, lease = live.job()

    async def main() -> None:
        async with listen(live, job_id) as listener:
            assert listener.headers["content-type"].startswith("text/event-stream")
            assert listener.headers["cache-control"] == "no-cache, no-transform"
            assert listener.headers["x-accel-buffering"] == "no"
            pieces: list[bytes] = []
            async for piece in listener.pieces():
                pieces.append(piece)
                sent = b"".join(pieces)
                if len(pieces) == 1:
                    assert piece == b"retry: 2000\n\n"
                if piece.startswith(b":"):
                    break
            assert sent.count(b"\nid: 2\n") == 1
            assert b'event: progress\ndata: {"state":"running","stage":null,"progress":0.0' in sent
            assert pieces[-1] == b": ping\n\n", "nothing is new: a sign of life"
            live.say(lease, "a\nb\u2028\U0001fa93", progress=0.5)
            seen = await _read_until(listener, b'"progress":0.5')
            assert '"says":"a\\nb\u2028\U0001fa93"'.encode() in seen
            live.say(lease, progress=0.75)  # no event: the progress alone
            seen = await _read_until(listener, b'"progress":0.75')
            assert b"id:" not in seen
            live.finish(lease)
            seen = await _read_until(listener, b"event: end")
            assert seen.endswith(b'event: end\ndata: {"state":"succeeded"}\n\n')
            assert [piece async for piece in listener.pieces()] == []
            assert listener.ended
        async with listen(live, job_id, 4) as listener:
            assert listener.status == 204, "an EventSource stops at that"
        async with listen(live, job_id, 3) as listener:
            messages = [message async for message in listener.messages()]
            assert [message.event for message in messages] == ["message", "progress", "end"]

    run(main())


async def _read_until(listener: Listener, mark: bytes) -> bytes:
    seen = b""
    async for piece in listener.pieces():
        seen += piece if not piece.startswith(b":") else b""
        if mark in seen:
            return seen
    pytest.fail(f"the stream ended without {mark!r}: {seen!r}")


def test_who_stops_reading_takes_no_memory_and_misses_nothing(live: Live) -> None:
    job_id, lease = live.job()
    events, size = 40, 500_000

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            slow = [await stack.enter_async_context(listen(live, job_id, receive_buffer=4096)) for _ in range(10)]
            process = psutil.Process(live.process.pid)
            async with listen(live, job_id) as quick:
                await _read_until(quick, b'"progress"')
                before = process.memory_info().rss

                async def read_on() -> int:
                    count = 0
                    async for message in quick.messages():
                        count += message.event == "message"
                    return count

                reading = asyncio.create_task(read_on())
                for _ in range(events):
                    await asyncio.to_thread(live.say, lease, "x" * size)
                live.finish(lease)
                assert await reading == events + 1
            grown = process.memory_info().rss - before
            assert grown < 15_000_000, f"{grown / 1e6:.0f} MB more, of the {events * size * 10 / 1e6:.0f} to be sent"
            for listener in slow[:2]:
                numbers = [int(message.id) async for message in listener.messages() if message.event == "message"]
                assert numbers == list(range(1, events + 4))

    run(main())


def test_a_revoked_key_ends_its_streams(live: Live) -> None:
    job_id, _ = live.job()

    async def main() -> None:
        async with listen(live, job_id) as listener:
            await _read_until(listener, b"progress")
            live.revoke()
            async for message in listener.messages():
                assert message.event != "end"
            assert listener.ended
        async with listen(live, job_id) as listener:
            assert listener.status == 401
            assert listener.headers["content-type"] == "application/problem+json"

    run(main())


def test_a_server_that_stops_ends_streams_and_long_polls_in_order(live: Live) -> None:
    job_id, _ = live.job()

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            listeners = [await stack.enter_async_context(listen(live, job_id)) for _ in range(20)]
            for listener in listeners:
                await _read_until(listener, b"progress")
            reader, writer = await asyncio.open_connection(*live.address)
            writer.write(f"GET /v1/jobs/{job_id}?wait=50 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {live.key}\r\n"
                         "Connection: close\r\n\r\n".encode())  # fmt: skip
            await asyncio.sleep(0.5)
            live.process.terminate()
            for listener in listeners:
                assert b"event: end" not in b"".join([piece async for piece in listener.pieces()])
                assert listener.ended, "not cut off"
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200")
            assert b'"state":"running"' in answer
            writer.close()

    run(main())
    live.process.wait(20)
    assert "Cancel" not in live.log.read_text(), "uvicorn had nothing to cut off"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_client_on_a_real_stream(live: Live, kind: str) -> None:
    job_id, lease = live.job()
    url = f"http://{live.address[0]}:{live.address[1]}"

    def work() -> None:
        for number in range(20):
            live.say(lease, number, progress=number / 20)
        live.finish(lease)

    async def watch() -> list[billhook.Update]:
        async with billhook.AsyncClient(url, live.key) as client:
            return [update async for update in client.watch_job(job_id)]

    with in_background(work):
        if kind == "sync":
            with billhook.Client(url, live.key) as client:
                updates = list(client.watch_job(job_id))
                assert client.wait_for_job(job_id).state == "succeeded"
        else:
            updates = run(watch())
    assert [event.seq for update in updates for event in update.events] == list(range(1, 24))
    assert (updates[-1].job.state, updates[-1].job.progress) == ("succeeded", 1.0)
    assert all(update.job.stage == "fine_tune" for update in updates[2:])
