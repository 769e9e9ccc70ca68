"""Counters: written with what they count or not at all, whoever counts at once; and the figures made of the records."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from store import counters, jobs, leases, outbox, uploads
from store.counters import Labels, count
from store.database import reading, transaction
from store.figures import Waiting, figures, overdue_seconds
from store.leases import MAX_DEATHS, Lease
from store.records import Counter, Job
from tests.store.conftest import NOW, OWNER

LATER = NOW + timedelta(seconds=100)


def counted(engine: Engine, name: str) -> dict[Labels, float]:
    with reading(engine) as session:
        return counters.read(session).get(name, {})


def job(engine: Engine, inputs: tuple[str, str]) -> str:
    with transaction(engine) as session:
        return jobs.create_job(session, owner=OWNER, model_id=inputs[0], dataset_ids=[inputs[1]], recipe={}, now=NOW).id


def claim(engine: Engine, job_id: str, seconds: int = 0) -> Lease:
    with transaction(engine) as session:
        lease = leases.claim(session, job_id, "host:1", "cpu", NOW + timedelta(seconds=seconds))
        assert lease is not None
        return lease


def test_what_is_counted_in_one_transaction_and_in_several_adds_up(engine: Engine) -> None:
    for _ in range(2):
        with transaction(engine) as session:
            count(session, "images", 2.5, device="cpu", stage="prune")
            count(session, "images", 1, stage="prune", device="cpu")
            count(session, "images", 7, device="cuda:0", stage="prune")
    assert counted(engine, "images") == {
        (("device", "cpu"), ("stage", "prune")): 7.0, (("device", "cuda:0"), ("stage", "prune")): 14.0,
    }  # fmt: skip


def test_what_is_rolled_back_is_not_counted_and_what_is_tried_again_counts_once(engine: Engine) -> None:
    with transaction(engine) as session:
        session.add(Counter(name="taken", labels="{}", stripe=0, value=0))

    def write(stripe: int) -> None:
        with transaction(engine) as session:
            count(session, "tries")
            session.add(Counter(name="taken", labels="{}", stripe=stripe, value=0))

    with pytest.raises(IntegrityError):
        write(0)
    assert counted(engine, "tries") == {}
    write(1)
    assert counted(engine, "tries") == {(): 1.0}


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_a_counter_only_grows(engine: Engine, amount: float) -> None:
    with reading(engine) as session, pytest.raises(ValueError, match="only grows"):
        count(session, "images", amount)


def test_many_count_at_once_in_whatever_order_while_they_hold_jobs(engine: Engine, inputs: tuple[str, str]) -> None:
    """Counters are written last and in one order, so that nobody waits for a job while holding a counter."""
    ids = [job(engine, inputs) for _ in range(4)]
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                with transaction(engine) as session:
                    for name in ("a", "b", "c")[:: 1 if (number + turn) % 2 else -1]:
                        count(session, name)
                    first, second = sorted((ids[number], ids[(number + turn) % 4]))
                    for job_id in (first, second):
                        session.scalars(select(Job).where(Job.id == job_id).with_for_update()).one()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert [counted(engine, name) for name in "abc"] == [{(): 40.0}] * 3


def test_a_job_that_ends_well(engine: Engine, inputs: tuple[str, str]) -> None:
    lease = claim(engine, job(engine, inputs), seconds=30)
    with transaction(engine) as session:
        leases.finish(session, lease, "succeeded", now=LATER)
    assert counted(engine, "jobs_submitted") == {(): 1.0}
    assert counted(engine, "queue_wait") == {(("queue", "cpu"),): 1.0}
    assert counted(engine, "queue_wait_seconds") == {(("queue", "cpu"),): 30.0}
    assert counted(engine, "attempts") == {(("outcome", "succeeded"),): 1.0}
    assert counted(engine, "jobs_finished") == {(("state", "succeeded"),): 1.0}
    assert counted(engine, "jobs_failed") == {}


@pytest.mark.parametrize(("code", "label"), [("baseline_near_chance", "baseline_near_chance"), ("x" * 99, "other")])
def test_a_failed_job_counts_by_a_code_that_is_known(
    engine: Engine, inputs: tuple[str, str], code: str, label: str
) -> None:
    lease = claim(engine, job(engine, inputs))
    with transaction(engine) as session:
        leases.finish(session, lease, "failed", error={"code": code, "message": "", "faults": []}, now=LATER)
    assert counted(engine, "jobs_failed") == {(("code", label),): 1.0}


def test_workers_that_fall_silent_and_children_that_die(engine: Engine, inputs: tuple[str, str]) -> None:
    job_id = job(engine, inputs)
    claim(engine, job_id)
    with transaction(engine) as session:
        assert leases.reap(session, LATER) == [job_id]
    with transaction(engine) as session:
        assert leases.reap(session, LATER) == []
    assert counted(engine, "leases_lost") == {(): 1.0}
    for _ in range(1, MAX_DEATHS):
        lease = claim(engine, job_id, seconds=200)
        with transaction(engine) as session:
            leases.died(session, lease, {"code": "child_died", "message": "", "faults": []}, LATER)
    assert counted(engine, "children_died") == {(): MAX_DEATHS - 1.0}
    assert counted(engine, "attempts") == {(("outcome", "lost"),): float(MAX_DEATHS)}
    assert counted(engine, "jobs_failed") == {(("code", "poison"),): 1.0}


def test_cancelled_and_given_back(engine: Engine, inputs: tuple[str, str]) -> None:
    with transaction(engine) as session:
        lease_of = jobs.create_job(session, owner=OWNER, model_id=inputs[0], dataset_ids=[inputs[1]], recipe={})
    with transaction(engine) as session:
        jobs.request_cancel(session, OWNER, lease_of.id)
    assert counted(engine, "jobs_finished") == {(("state", "cancelled"),): 1.0}
    lease = claim(engine, job(engine, inputs))
    with transaction(engine) as session:
        jobs.request_cancel(session, OWNER, lease.job_id)
        leases.release(session, lease, LATER)
    assert counted(engine, "attempts") == {(("outcome", "released"),): 1.0}
    assert counted(engine, "jobs_finished") == {(("state", "cancelled"),): 2.0}


def test_checks_of_uploads(engine: Engine, inputs: tuple[str, str]) -> None:
    with transaction(engine) as session:
        check = uploads.claim_check(session, inputs[0], NOW)
        assert check is not None
        uploads.release_check(session, check, NOW, died=True)
    with transaction(engine) as session:
        check = uploads.claim_check(session, inputs[0], NOW)
        assert check is not None
        uploads.set_refused(session, check, {"code": "model_unreadable", "message": "", "faults": []}, NOW)
    assert counted(engine, "checks_died") == {(("kind", "model"),): 1.0}
    assert counted(engine, "uploads_checked") == {(("kind", "model"), ("state", "refused")): 1.0}


# --- figures ---------------------------------------------------------------------------------------------------------


def test_the_figures_of_an_empty_service(engine: Engine) -> None:
    with reading(engine) as session:
        found = figures(session, NOW)
    assert not found.queues
    assert not found.jobs
    assert not found.attempts
    assert found.overdue_seconds == 0


def test_what_waits_and_what_runs(engine: Engine, inputs: tuple[str, str]) -> None:
    first = claim(engine, job(engine, inputs))
    job(engine, inputs)
    with transaction(engine) as session:
        check = uploads.claim_check(session, inputs[0], LATER)
        assert check is not None
    with reading(engine) as session:
        found = figures(session, LATER)
    assert found.queues == {"cpu": Waiting(1, 100.0), "inspect": Waiting(1, 100.0)}, "the dataset; the model is taken"
    assert found.uploads == {"inspect_model": Waiting(1, 100.0), "inspect_dataset": Waiting(1, 100.0)}
    assert found.jobs == {"queued": 1, "running": 1}
    assert found.attempts == {"cpu": 1}
    assert found.outbox == {"run": 1, "inspect_model": 1, "inspect_dataset": 1}
    assert found.overdue_seconds == 100.0, "no relay has published"
    with transaction(engine) as session:
        leases.release(session, first, LATER + timedelta(seconds=10))
    with reading(engine) as session:
        found = figures(session, LATER + timedelta(seconds=20))
    assert found.queues["cpu"] == Waiting(2, 120.0)
    assert found.attempts == {}


def test_a_job_waits_from_when_it_was_queued_last(engine: Engine, inputs: tuple[str, str]) -> None:
    lease = claim(engine, job(engine, inputs))
    with transaction(engine) as session:
        leases.release(session, lease, LATER)
    with reading(engine) as session:
        assert figures(session, LATER + timedelta(seconds=5)).queues["cpu"] == Waiting(1, 5.0)


def test_a_dataset_waits_anew_in_the_queue_that_it_comes_to(engine: Engine) -> None:
    with transaction(engine) as session:
        outbox.add(session, "fetch_dataset", "ds_1", outbox.FETCH_QUEUE, NOW)
        outbox.add(session, "inspect_dataset", "ds_1", outbox.INSPECT_QUEUE, LATER)
    with reading(engine) as session:
        assert figures(session, LATER + timedelta(seconds=5)).queues == {"inspect": Waiting(1, 5.0)}


def test_what_is_held_or_rung_is_not_overdue(engine: Engine) -> None:
    with transaction(engine) as session:
        outbox.add(session, "run", "job_1", "cpu", NOW)
        outbox.hold(session, "job_1", LATER)
    with reading(engine) as session:
        assert overdue_seconds(session, NOW + timedelta(seconds=50)) == 0
        assert overdue_seconds(session, LATER + timedelta(seconds=50)) == 50


def test_no_figure_reads_all_jobs_attempts_or_events(engine: Engine, inputs: tuple[str, str]) -> None:
    """Each query has an index to go by, however many jobs are over."""
    asked: list[tuple[str, object]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters))

    postgres = engine.dialect.name == "postgresql"
    event.listen(engine, "before_cursor_execute", note)
    try:
        with reading(engine) as session:
            figures(session, NOW)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    plans = []
    with Session(engine) as session:
        if postgres:
            session.execute(text("SET LOCAL enable_seqscan = off"))  # of a small table it is the quickest
        for statement, parameters in asked:
            if statement.startswith("SELECT"):
                explain = "EXPLAIN " if postgres else "EXPLAIN QUERY PLAN "
                rows = session.connection().exec_driver_sql(explain + statement, parameters)  # type: ignore[arg-type]
                plans += [str(row[-1]).strip() for row in rows]
    assert len(plans) > 7
    whole = ("Seq Scan on", "SCAN jobs", "SCAN attempts", "SCAN models", "SCAN datasets", "SCAN events")
    assert not [plan for plan in plans if any(scan in plan for scan in whole)], plans
