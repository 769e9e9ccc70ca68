"""Claims, heartbeats, fencing, the reaper: on both databases."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select

from store import events, jobs, leases, outbox
from store.database import reading, transaction
from store.errors import IllegalTransition, JobTerminal, LeaseLost, NotFound
from store.leases import Lease
from store.records import TERMINAL, TRANSITIONS, Artifact, Attempt, Event, Job, JobState, OutboxMessage, move
from tests.store.conftest import NOW, OWNER


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.fixture
def job_id(engine: Engine, inputs: tuple[str, str]) -> str:
    with transaction(engine) as session:
        return new_job(session, inputs)


def new_job(session: Any, inputs: tuple[str, str], **given: Any) -> str:
    values: dict[str, Any] = {"owner": OWNER, "recipe": {"version": 1}, "now": NOW} | given
    return jobs.create_job(session, model_id=inputs[0], dataset_ids=[inputs[1]], **values).id


def claimed(engine: Engine, job_id: str, seconds: float = 0) -> Lease:
    with transaction(engine) as session:
        lease = leases.claim(session, job_id, "host:1", "cpu", at(seconds))
    assert lease is not None
    return lease


def read(engine: Engine, job_id: str) -> Job:
    with reading(engine) as session:
        return jobs.get_job(session, OWNER, job_id)


def names(engine: Engine, job_id: str) -> list[tuple[int, int | None, str, Any]]:
    with reading(engine) as session:
        return [(event.seq, event.attempt, event.name, event.body.get("state"))
                for event in events.page(session, job_id)]  # fmt: skip


def test_a_job_from_claim_to_success(engine: Engine, job_id: str) -> None:
    lease = claimed(engine, job_id, 10)
    with transaction(engine) as session:
        assert leases.append_events(session, lease, [("import/done", {"layers": 3}), ("prune/x", {})], at(11)) == 4
        leases.set_progress(session, lease, "prune", 0.25, 30.0)
        assert leases.heartbeat(session, lease, at(12)) == "held"
    job = read(engine, job_id)
    assert (job.state, job.stage, job.progress, job.eta_seconds) == ("running", "prune", 0.25, 30.0)
    with transaction(engine) as session:
        leases.add_artifact(session, lease, "pruned.onnx", "output", "b" * 64, 9, "application/octet-stream", at(13))
        leases.finish(
            session, lease, "succeeded", {"ratios": {"params": 0.5}}, now=at(14), events=[("measure/done", {})]
        )
    job = read(engine, job_id)
    assert (job.state, job.progress, job.results, job.error) == ("succeeded", 1.0, {"ratios": {"params": 0.5}}, None)
    assert (job.started_at, job.finished_at, job.run_seconds) == (at(10), at(14), 4.0)
    assert names(engine, job_id) == [
        (1, None, "state", "queued"), (2, 1, "state", "running"), (3, 1, "import/done", None), (4, 1, "prune/x", None),
        (5, 1, "measure/done", None), (6, 1, "state", "succeeded"),
    ]  # fmt: skip
    with reading(engine) as session:
        (attempt,) = jobs.attempts(session, [job_id])[job_id]
        assert (attempt.outcome, attempt.ended_at, attempt.host) == ("succeeded", at(14), "host")
        assert session.scalars(select(OutboxMessage).where(OutboxMessage.topic == "run")).all() == []


def test_a_job_is_claimed_once(engine: Engine, job_id: str) -> None:
    claimed(engine, job_id)
    with transaction(engine) as session:
        assert leases.claim(session, job_id, "host:2", "cpu", at(1)) is None
        assert leases.claim(session, "job_nothing", "host:2", "cpu", at(1)) is None


def test_of_many_workers_one_gets_the_job(engine: Engine, job_id: str) -> None:
    found: list[Lease | None] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        with transaction(engine) as session:
            lease = leases.claim(session, job_id, f"host:{number}", "cpu", NOW)
        found.append(lease)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert sum(lease is not None for lease in found) == 1
    assert read(engine, job_id).attempt_count == 1


def test_numbers_have_no_gaps_when_many_write(engine: Engine, job_id: str) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                with transaction(engine) as session:
                    events.append(session, job_id, None, [("x", {"by": number, "turn": turn})] * 2, NOW)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with reading(engine) as session:
        assert [event.seq for event in events.page(session, job_id, 0, 1000)] == list(range(1, 82))


def test_an_expired_lease_goes_to_another_attempt_and_the_first_writes_nothing_more(
    engine: Engine, job_id: str
) -> None:
    first = claimed(engine, job_id)
    with transaction(engine) as session:
        assert leases.reap(session, at(29)) == []
        assert leases.reap(session, at(31)) == [job_id]
    assert read(engine, job_id).state == "queued"
    second = claimed(engine, job_id, 40)
    before = names(engine, job_id)
    with transaction(engine) as session:
        assert leases.heartbeat(session, first, at(41)) == "lost"
    for write in (
        lambda session: leases.append_events(session, first, [("late", {})], at(41)),
        lambda session: leases.set_progress(session, first, "prune", 0.9),
        lambda session: leases.add_artifact(session, first, "x", "output", "c" * 64, 1, "text/plain", at(41)),
        lambda session: leases.finish(session, first, "succeeded", {}, now=at(41)),
        lambda session: leases.release(session, first, at(41)),
    ):
        with pytest.raises(LeaseLost), transaction(engine) as session:
            write(session)
    assert names(engine, job_id) == before
    job = read(engine, job_id)
    assert (job.state, job.progress, job.current_attempt_id) == ("running", 0.0, second.attempt_id)
    with reading(engine) as session:
        assert session.scalars(select(Artifact)).all() == []
        assert [attempt.outcome for attempt in jobs.attempts(session, [job_id])[job_id]] == ["lost", None]


def test_a_lease_with_a_forged_token_is_lost(engine: Engine, job_id: str) -> None:
    lease = claimed(engine, job_id)
    forged = Lease(lease.job_id, lease.attempt_id, lease.number, "0" * 32, 30, 1)
    with transaction(engine) as session:
        assert leases.heartbeat(session, forged, at(1)) == "lost"


def test_a_heartbeat_keeps_the_lease(engine: Engine, job_id: str) -> None:
    lease = claimed(engine, job_id)
    with transaction(engine) as session:
        leases.heartbeat(session, lease, at(25))
        assert leases.reap(session, at(54)) == []
        assert leases.reap(session, at(56)) == [job_id]


def die(engine: Engine, job_id: str, seconds: float, checkpoint: str | None = None) -> None:
    lease = claimed(engine, job_id, seconds)
    with transaction(engine) as session:
        if checkpoint is not None:
            leases.add_artifact(
                session, lease, "checkpoint.safetensors", "checkpoint", checkpoint * 64, 1, "x/y", at(0)
            )
        assert leases.reap(session, at(seconds + 31)) == [job_id]


def test_three_deaths_in_a_row_are_the_end(engine: Engine, job_id: str) -> None:
    for number in range(3):
        assert read(engine, job_id).state == "queued"
        die(engine, job_id, 100 * number)
    job = read(engine, job_id)
    assert (job.state, (job.error or {}).get("code"), job.deaths) == ("failed", "poison", 3)
    assert names(engine, job_id)[-1][3] == "failed"
    with transaction(engine) as session:
        assert outbox.due(session, at(10_000)) == [] or all(m.topic != "run" for m in outbox.due(session, at(10_000)))


def test_a_new_checkpoint_starts_the_count_of_deaths_again_and_an_old_one_does_not(engine: Engine, job_id: str) -> None:
    die(engine, job_id, 0)
    die(engine, job_id, 100, checkpoint="1")
    assert read(engine, job_id).deaths == 1
    die(engine, job_id, 200, checkpoint="2")
    assert read(engine, job_id).deaths == 1
    die(engine, job_id, 300, checkpoint="2")  # the same again: it did not get on
    assert read(engine, job_id).deaths == 2
    die(engine, job_id, 400, checkpoint="2")
    assert read(engine, job_id).state == "failed"


def test_a_replaced_artifact_keeps_its_name(engine: Engine, job_id: str) -> None:
    lease = claimed(engine, job_id)
    with transaction(engine) as session:
        for digit in "12":
            leases.add_artifact(session, lease, "checkpoint.safetensors", "checkpoint", digit * 64, 5, "x/y", at(1))
    with reading(engine) as session:
        (found,) = jobs.artifacts(session, job_id)
        assert found.sha256 == "2" * 64
        with pytest.raises(NotFound):
            jobs.artifact(session, job_id, "other")


def test_time_in_the_queue_is_not_counted(engine: Engine, inputs: tuple[str, str]) -> None:
    with transaction(engine) as session:
        job_id = new_job(session, inputs, run_seconds_limit=100)
    first = claimed(engine, job_id, 5_000)
    assert first.run_seconds_left == 100
    with transaction(engine) as session:
        leases.heartbeat(session, first, at(5_010))
        leases.reap(session, at(6_000))  # silent since 5010: only those ten seconds were run
    second = claimed(engine, job_id, 9_000)
    assert second.run_seconds_left == 90
    with transaction(engine) as session:
        leases.release(session, second, at(9_020))
    assert claimed(engine, job_id, 99_000).run_seconds_left == 70


def test_a_released_job_is_queued_again_without_a_death(engine: Engine, job_id: str) -> None:
    lease = claimed(engine, job_id)
    with transaction(engine) as session:
        leases.release(session, lease, at(1))
    job = read(engine, job_id)
    assert (job.state, job.deaths) == ("queued", 0)
    with transaction(engine) as session:
        assert [message.subject_id for message in outbox.due(session, at(1)) if message.topic == "run"] == [job_id]


def test_cancel_while_queued(engine: Engine, job_id: str) -> None:
    with transaction(engine) as session:
        jobs.request_cancel(session, OWNER, job_id, at(1))
    job = read(engine, job_id)
    assert (job.state, job.finished_at) == ("cancelled", at(1))
    with transaction(engine) as session:
        assert leases.claim(session, job_id, "w", "cpu", at(2)) is None
        assert all(message.topic != "run" for message in outbox.due(session, at(2)))
    with pytest.raises(JobTerminal), transaction(engine) as session:
        jobs.request_cancel(session, OWNER, job_id, at(3))


def test_cancel_while_running_reaches_the_worker(engine: Engine, job_id: str) -> None:
    lease = claimed(engine, job_id)
    with transaction(engine) as session:
        jobs.request_cancel(session, OWNER, job_id, at(1))
        jobs.request_cancel(session, OWNER, job_id, at(2))  # twice is harmless
        assert leases.heartbeat(session, lease, at(3)) == "cancelling"
        leases.finish(session, lease, "cancelled", now=at(4))
    assert [state for *_, state in names(engine, job_id)] == ["queued", "running", "cancelling", "cancelled"]


@pytest.mark.parametrize("how", ["reap", "release"])
def test_a_job_that_is_being_cancelled_is_not_queued_again(engine: Engine, job_id: str, how: str) -> None:
    lease = claimed(engine, job_id)
    with transaction(engine) as session:
        jobs.request_cancel(session, OWNER, job_id, at(1))
        if how == "reap":
            leases.reap(session, at(40))
        else:
            leases.release(session, lease, at(2))
    assert read(engine, job_id).state == "cancelled"


def test_finish_needs_an_end(engine: Engine, job_id: str) -> None:
    lease = claimed(engine, job_id)
    with transaction(engine) as session:
        with pytest.raises(ValueError, match="finished as one of"):
            leases.finish(session, lease, "running")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="needs an error"):
            leases.finish(session, lease, "failed")


def test_another_owner_sees_nothing(engine: Engine, job_id: str) -> None:
    with transaction(engine) as session:
        for call in (jobs.get_job, jobs.request_cancel):
            with pytest.raises(NotFound):
                call(session, "bob", job_id)
        assert jobs.list_jobs(session, "bob") == []


@pytest.mark.parametrize("old", TRANSITIONS)
@pytest.mark.parametrize("new", TRANSITIONS)
def test_the_transition_table_is_the_only_way(old: JobState, new: JobState) -> None:
    job = Job(
        id="job_x", owner="o", name="", kind="", tags=[], model_id="", dataset_ids=[], recipe={}, requirements={},
        device="cpu", queue="cpu", run_seconds_limit=1, created_at=NOW, state=old,
    )  # fmt: skip
    if new in TRANSITIONS[old]:
        move(job, new, NOW)
        assert job.state == new
        return
    with pytest.raises(JobTerminal if old in TERMINAL else IllegalTransition):
        move(job, new, NOW)
    with pytest.raises(JobTerminal if old in TERMINAL else IllegalTransition):
        job.state = new
    assert job.state == old


def test_what_an_event_holds_is_made_storable(engine: Engine, job_id: str) -> None:
    body = {"loss": float("nan"), "scores": (1.0, float("-inf")), "node": "a\0b\ud800", "nested": {"k\0": [1]}}
    with transaction(engine) as session:
        events.append(session, job_id, None, [("odd\0name", body)], NOW)
    with reading(engine) as session:
        event = session.get(Event, (job_id, 2))
        assert event is not None
        assert event.name == "odd\ufffdname"
        assert event.body["loss"] == {"$float": "nan"}
        assert event.body["scores"] == [1.0, {"$float": "-inf"}]
        assert event.body["node"].startswith("a\ufffdb\ufffd")
        assert event.body["nested"] == {"k\ufffd": [1]}
        assert event.created_at == NOW
        assert event.created_at.tzinfo is not None


def test_an_attempt_keeps_what_it_ran_on(engine: Engine, job_id: str) -> None:
    with transaction(engine) as session:
        lease = leases.claim(session, job_id, "w", "cpu", NOW, host="box", environment={"torch": "2.13"})
        assert lease is not None
        error = {"code": "training_diverged", "message": "m", "faults": []}
        leases.finish(session, lease, "failed", error=error, now=at(1), output_tail="last\0words")
    with reading(engine) as session:
        attempt = session.get(Attempt, lease.attempt_id)
        assert attempt is not None
        assert (attempt.host, attempt.environment, attempt.error) == ("box", {"torch": "2.13"}, error)
        assert attempt.output_tail == "last\ufffdwords"
        assert jobs.get_job(session, OWNER, job_id).error == error
