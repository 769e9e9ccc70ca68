"""One look at the database for all who wait."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, update
from sqlalchemy.exc import OperationalError

from api import hub
from api.hub import Hub, Watch
from api.streams import event_stream
from store import jobs, leases, uploads
from store.database import transaction
from store.keys import add_key, new_secret
from store.leases import Lease
from store.records import ApiKey, Event, Job, Model, OutboxMessage
from tests.store.conftest import NOW, OWNER, engine, inputs, postgres, postgres_url, sqlite_template

__all__ = ["engine", "inputs", "postgres", "postgres_url", "sqlite_template"]  # fixtures
INTERVAL = 0.02


def run(main: Any) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(INTERVAL / 4)


@contextlib.contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """What is asked of the database meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


@pytest.fixture
def job(engine: Engine, inputs: tuple[str, str]) -> str:
    with transaction(engine) as session:
        return jobs.create_job(session, owner=OWNER, model_id=inputs[0], dataset_ids=[inputs[1]], recipe={}).id


@pytest.fixture
def lease(engine: Engine, job: str) -> Lease:
    with transaction(engine) as session:
        lease = leases.claim(session, job, "host:1", "cpu")
    assert lease is not None
    return lease


def say(engine: Engine, lease: Lease, count: int, body: Any = "x") -> None:
    with transaction(engine) as session:
        leases.append_events(session, lease, [("prune/said", {"says": body})] * count)


def test_a_hundred_who_watch_cost_one_look(engine: Engine, lease: Lease) -> None:
    async def main() -> None:
        all_of_them = Hub(engine, INTERVAL, 5)
        with contextlib.ExitStack() as stack:
            watches = [stack.enter_context(all_of_them.watch(lease.job_id, after=2)) for _ in range(100)]
            await until(lambda: all(watch.pulse for watch in watches))
            say(engine, lease, 3)
            with statements(engine) as asked:
                await until(lambda: all(watch.page for watch in watches))
            pages = [statement for statement in asked if "events" in statement and "INSERT" not in statement]
            assert len(pages) == 2, "their sizes, and they"
            assert len({id(watch.page) for watch in watches}) == 1, "shared"
            assert all(watch.pulse is not None and watch.pulse.last_seq == 5 for watch in watches)
            began = time.monotonic()
            with statements(engine) as asked:
                await asyncio.sleep(10 * INTERVAL)
            looks = [statement for statement in asked if "FROM jobs" in statement]
            assert 0 < len(looks) <= (time.monotonic() - began) / INTERVAL + 2, "not one for each of the hundred"
        await until(lambda: not all_of_them.watched)
        await asyncio.sleep(2 * INTERVAL)
        with statements(engine) as asked:
            await asyncio.sleep(5 * INTERVAL)
        assert asked == [], "nobody watches"

    run(main())


async def read(watch: Watch, last: int) -> list[bytes]:
    pages = []
    while watch.after != last:
        if (page := watch.take()) is None:
            await watch.news(10)
        else:
            pages.append(page.content)
    return pages


@pytest.mark.parametrize(("count", "size"), [(3_000, 10), (7, 300_000)])
def test_who_reads_slowly_holds_one_page(engine: Engine, lease: Lease, count: int, size: int) -> None:
    async def main() -> None:
        with Hub(engine, INTERVAL, 5).watch(lease.job_id, after=2) as watch:
            for _ in range(count // 1_000 or 1):
                say(engine, lease, min(count, 1_000), "é" * size)
                await asyncio.sleep(2 * INTERVAL)
            await until(lambda: watch.page)
            assert watch.page is not None
            assert len(watch.page.content) <= max(4 * hub.PAGE_BYTES, 3 * size), "however much there is"
            pages = await read(watch, count + 2)
            assert b"".join(pages).count(b"\n\n") == count
            numbers = [int(line[4:]) for line in b"".join(pages).splitlines() if line.startswith(b"id: ")]
            assert numbers == list(range(3, count + 3))
            assert len(pages) > 3

    run(main())


def test_news_comes_at_once_however_long_the_interval(engine: Engine, lease: Lease) -> None:
    """Of a new watch, and of the pages behind the first one: only what happens later waits for the next look."""
    say(engine, lease, 2_000)

    async def main() -> None:
        with (hub_ := Hub(engine, 50, 5)).watch(lease.job_id, after=0) as watch:
            await read(watch, 2_002)
            with hub_.watch(lease.job_id, after=2_000) as another:
                await read(another, 2_002)

    run(main())


def test_uploads_and_what_is_not_there(engine: Engine, inputs: tuple[str, str]) -> None:
    async def main() -> None:
        watched = Hub(engine, INTERVAL, 5)
        with (
            watched.watch(inputs[0]) as model, watched.watch(inputs[1]) as dataset, watched.watch("job_none") as none,
            watched.watch("nothing\0") as odd,
        ):  # fmt: skip
            await until(lambda: model.pulse and dataset.pulse and none.ended and odd.ended)
            assert model.pulse is not None
            assert model.pulse.state == "checking"
            with transaction(engine) as session:
                check = uploads.claim_check(session, inputs[0])
                assert check is not None
                uploads.set_ready(session, check, {})
            await until(lambda: model.pulse and model.pulse.state == "ready")
            with transaction(engine) as session:
                uploads.delete(session, Model, OWNER, inputs[0])
            await until(lambda: model.ended)
            assert not dataset.ended

    run(main())


def test_a_job_that_is_gone(engine: Engine, job: str) -> None:
    async def main() -> None:
        with Hub(engine, INTERVAL, 5).watch(job, after=0) as watch:
            await read(watch, 1)
            with transaction(engine) as session:
                for table, column in ((Event, Event.job_id), (OutboxMessage, OutboxMessage.subject_id), (Job, Job.id)):
                    session.execute(table.__table__.delete().where(column == job))
            await until(lambda: watch.ended)

    run(main())


@pytest.mark.parametrize("change", [{"revoked_at": NOW}, {"expires_at": NOW}])
def test_a_key_that_is_no_longer_good(engine: Engine, job: str, change: dict[str, Any]) -> None:
    with transaction(engine) as session:
        keys = [add_key(session, new_secret(), owner=OWNER, name=name).id for name in "ab"]

    async def main() -> None:
        both = Hub(engine, INTERVAL, 0.05)
        with both.watch(job, key_id=keys[0]) as watch, both.watch(job, key_id=keys[1]) as other:
            await until(lambda: watch.pulse and other.pulse)
            await asyncio.sleep(0.2)
            assert not watch.ended
            with transaction(engine) as session:
                session.execute(update(ApiKey).where(ApiKey.id == keys[0]).values(change))
            await until(lambda: watch.ended)
            assert not other.ended

    run(main())


def test_a_database_that_is_away_for_a_while(engine: Engine, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 3

    def broken(*arguments: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise OperationalError("SELECT", {}, Exception("it is away"))
        return pulses(*arguments)

    pulses = hub.pulses
    monkeypatch.setattr(hub, "pulses", broken)

    async def main() -> None:
        with Hub(engine, INTERVAL, 5).watch(lease.job_id, after=0) as watch:
            await read(watch, 2)

    run(main())


def test_the_end(engine: Engine, job: str) -> None:
    async def main() -> None:
        closing = Hub(engine, INTERVAL, 5)
        with closing.watch(job) as watch:
            await until(lambda: watch.pulse)
            closing.close()
            assert watch.ended
            assert await watch.news(10)
            with closing.watch(job) as late:
                assert late.ended
                assert await late.news(10)

    run(main())


@pytest.mark.parametrize("reads", [True, False])
def test_who_hangs_up_is_forgotten(engine: Engine, lease: Lease, reads: bool) -> None:
    """Whoever reads, and whoever has not read for a while, so that the stream is stuck in the middle of a write."""
    say(engine, lease, 100)

    async def main() -> None:
        watched = Hub(engine, INTERVAL, 5)
        begun = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if b"id: 100" in message.get("body", b""):
                begun.set()
                await asyncio.sleep(0 if reads else 600)

        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        with transaction(engine) as session:
            key = add_key(session, new_secret(), owner=OWNER, name="x").id
        await event_stream(watched, lease.job_id, 0, key, 15)(scope, receive, send)
        await until(lambda: not watched.watched)

    run(main())
