"""Relay and reaper: any number of them, and brokers and databases that go away."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from structlog.testing import CapturingLogger

from store import leases
from store.columns import now_utc
from store.database import connect, transaction
from store.migrate import upgrade
from store.reaper import reap
from store.settings import Settings
from tests.store.conftest import empty, postgres_url
from tests.worker.house import House, wait_for
from worker import loops
from worker.loops import Loop, relay

__all__ = ["postgres_url"]  # a fixture


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """On either database: they lock rows differently."""
    if request.param == "sqlite":
        return settings
    url: str = request.getfixturevalue("postgres_url")
    engine = connect(url)
    upgrade(engine)
    empty(engine)
    engine.dispose()
    return settings.model_copy(update={"database_url": url})


def test_each_message_is_sent_once_by_many_relays(house: House) -> None:
    for number in range(20):
        house.job(do="train", epochs=0, number=number)
    sent: list[str] = []
    threads = [
        threading.Thread(target=relay, args=(house.context, lambda _topic, subject_id, _queue: sent.append(subject_id)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == 22, "20 jobs, a model, a dataset"
    assert len(set(sent)) == 22


def test_a_message_goes_to_the_queue_and_task_of_its_subject(house: House) -> None:
    job_id = house.job(queue="gpu-1", do="train")
    house.source("https://data.example.com/set.zip")
    sent: list[tuple[str, str, str]] = []
    relay(house.context, lambda *message: sent.append(message))
    assert ("run", job_id, "gpu-1") in sent
    assert sorted((topic, queue) for topic, _, queue in sent) == [
        ("fetch_dataset", "fetch"), ("inspect_dataset", "inspect"), ("inspect_model", "inspect"), ("run", "gpu-1"),
    ]  # fmt: skip


def test_a_broker_that_is_away_costs_no_message(house: House) -> None:
    job_id = house.job(do="train", epochs=0)

    def away(*_: str) -> None:
        raise ConnectionError("no broker")

    with pytest.raises(ConnectionError):
        relay(house.context, away)
    assert house.next_ring(job_id) > now_utc(), "it rings again"
    house.ring_now(job_id)
    sent: list[str] = []
    relay(house.context, lambda _topic, subject_id, _queue: sent.append(subject_id))
    assert sent == [job_id]


def test_a_claimed_job_is_not_rung_for(house: House) -> None:
    job_id = house.job(do="train", epochs=0)
    with transaction(house.context.engine) as session:
        assert leases.claim(session, job_id, "there:2", "cpu") is not None
    sent: list[str] = []
    relay(house.context, lambda _topic, subject_id, _queue: sent.append(subject_id))
    assert job_id not in sent


def test_two_reapers_count_one_death(house: House) -> None:
    job_id = house.job(do="train", epochs=0)
    with transaction(house.context.engine) as session:
        leases.claim(session, job_id, "there:2", "cpu", now_utc() - timedelta(minutes=1), lease_seconds=1)
    threads = [threading.Thread(target=reap, args=(house.context.engine,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    job = house.read(job_id)
    assert (job.state, job.deaths) == ("queued", 1)
    house.assert_no_gaps(job_id)


def test_an_outage_is_told_once_and_over_when_something_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the outbox is empty between two failures does not show that the broker is back."""
    told = CapturingLogger()
    monkeypatch.setattr(loops, "log", told)
    stopping = threading.Event()
    calls: list[int] = []

    def sent() -> int:
        calls.append(0)
        if len(calls) < 10 and len(calls) % 2:
            raise ConnectionError("no broker")
        return 0 if len(calls) < 12 else 1

    loop = Loop("relay", sent, 0.01, stopping, lambda count: count > 0)
    loop.start()
    wait_for(lambda: len(calls) >= 14)
    stopping.set()
    loop.join(2)
    events = [call.args[0] for call in told.calls]
    assert events == ["relay failed; it goes on trying", "relay works again"]


def test_a_loop_survives_what_it_does() -> None:
    stopping = threading.Event()
    calls: list[float] = []

    def fails_at_first() -> None:
        calls.append(time.monotonic())
        if len(calls) < 3:
            raise ConnectionError("away")

    loop = Loop("relay", fails_at_first, 0.01, stopping)
    loop.start()
    wait_for(lambda: len(calls) >= 5)
    stopping.set()
    loop.join(2)
    assert not loop.is_alive()
