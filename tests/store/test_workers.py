"""Workers come, beat, fall silent, are forgotten and come back."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Engine

from store import jobs, workers
from store.database import reading, transaction
from store.ids import new_id
from store.reaper import reap
from store.records import Worker
from store.workers import FORGOTTEN_AFTER, Identity
from tests.store.conftest import NOW, OWNER


def someone(name: str = "one", device: str | None = "cpu") -> Identity:
    return Identity(new_id("wrk"), name, "host", ("cpu",), device, "1.0")


def beat(engine: Engine, who: Identity, now: datetime = NOW, subject_id: str | None = None) -> None:
    with transaction(engine) as session:
        workers.beat(session, who, started_at=NOW, seconds=30, subject_id=subject_id, now=now)


def known(engine: Engine) -> list[Worker]:
    with reading(engine) as session:
        return list(workers.page(session))


def test_a_worker_comes_beats_and_goes(engine: Engine) -> None:
    who = someone()
    beat(engine, who)
    beat(engine, who, NOW + timedelta(seconds=5), "job_1")
    (worker,) = known(engine)
    assert (worker.name, worker.host, worker.queues, worker.device) == ("one", "host", ["cpu"], "cpu")
    assert (worker.started_at, worker.seen_at) == (NOW, NOW + timedelta(seconds=5))
    assert (worker.expires_at, worker.subject_id) == (NOW + timedelta(seconds=35), "job_1")
    with transaction(engine) as session:
        workers.leave(session, who.id)
    assert known(engine) == []


def test_the_reaper_forgets_who_has_been_silent_for_long_and_who_wakes_up_is_there_again(engine: Engine) -> None:
    silent, alive = someone("silent"), someone("alive")
    beat(engine, silent)
    late = NOW + timedelta(seconds=30) + FORGOTTEN_AFTER
    beat(engine, alive, late)
    reap(engine, late)
    assert len(known(engine)) == 2, "shown as silent until then"
    reap(engine, late + timedelta(seconds=1))
    assert [worker.name for worker in known(engine)] == ["alive"]
    beat(engine, silent, late)
    assert {worker.name for worker in known(engine)} == {"silent", "alive"}


def test_the_devices_are_those_of_workers_that_are_not_silent_and_run_jobs(engine: Engine) -> None:
    for number, device in enumerate(("cuda:1", "cpu", "cuda:1", None)):
        beat(engine, someone(f"{number}", device))
    beat(engine, someone("gone", "cuda:7"), NOW - timedelta(seconds=31))
    with reading(engine) as session:
        assert workers.living_devices(session, NOW) == ["cpu", "cuda:1"]
        assert workers.living_devices(session, NOW + timedelta(seconds=31)) == []


def test_pages_go_back_from_the_last_that_started(engine: Engine) -> None:
    names = [f"{number}" for number in range(5)]
    for name in names:
        beat(engine, someone(name))
    with reading(engine) as session:
        first = workers.page(session, limit=2)
        second = workers.page(session, before=first[-1].id, limit=9)
    assert [worker.name for worker in (*first, *second)] == names[::-1]


def test_what_is_whose(engine: Engine, inputs: tuple[str, str]) -> None:
    with transaction(engine) as session:
        job = jobs.create_job(session, owner=OWNER, model_id=inputs[0], dataset_ids=[inputs[1]], recipe={}, now=NOW)
    with reading(engine) as session:
        assert workers.owned(session, OWNER, [job.id, *inputs, "job_x"]) == {job.id, *inputs}
        assert workers.owned(session, "bob", [job.id, *inputs]) == frozenset()
        assert workers.owned(session, OWNER, []) == frozenset()


def test_names_that_no_database_takes_are_made_to_fit(engine: Engine) -> None:
    beat(engine, someone("a\0b" + "x" * 300))
    (worker,) = known(engine)
    assert worker.name.startswith("a\ufffdb")
    assert len(worker.name) == 200
