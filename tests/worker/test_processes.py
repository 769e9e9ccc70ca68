"""Real worker processes over a real broker: what is left of a job when one of them is killed, and how it goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
from sqlalchemy import text

from store import migrate
from store.settings import Settings
from tests.worker.conftest import StartWorker
from tests.worker.house import House, child_of, epoch_reached, over, wait_for
from tests.worker.source_server import Served, Server
from worker.loops import relay


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def epochs_of(house: House, job_id: str) -> list[tuple[int | None, int]]:
    return [(event.attempt, event.body["epoch"]) for event in house.events(job_id) if "/epoch/" in event.name]


def assert_taken_over(house: House, job_id: str, epochs: int, *, attempts: int = 2) -> None:
    """Succeeded once, in the last attempt, which went on behind the last checkpoint; no event is missing."""
    assert house.read(job_id).state == "succeeded", house.read(job_id).error
    outcomes = [attempt.outcome for attempt in house.attempts(job_id)]
    assert len(outcomes) == attempts
    assert outcomes[-1] == "succeeded"
    assert outcomes.count("succeeded") == 1
    house.assert_no_gaps(job_id)
    events = house.events(job_id)
    last = max(event.body["number"] for event in events if event.name == "checkpoint" and event.attempt == 1)
    done = epochs_of(house, job_id)
    assert [epoch for attempt, epoch in done if attempt == attempts] == list(range(last + 1, epochs))
    assert [event.body["state"] for event in events if event.name == "state"].count("succeeded") == 1


def test_kill_9_of_the_whole_group_then_another_worker_takes_over(house: House, start_worker: StartWorker) -> None:
    job_id = house.job(do="train", epochs=12, seconds=0.2)
    worker = start_worker()
    child = child_of(house, job_id, 1)
    epoch_reached(house, job_id, 2)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait(10)
    wait_for(lambda: gone(child), 2)
    assert house.read(job_id).state == "running"
    killed = time.monotonic()
    start_worker()
    wait_for(lambda: house.read(job_id).attempt_count == 2)
    assert time.monotonic() - killed < 10
    wait_for(lambda: over(house, job_id))
    assert_taken_over(house, job_id, 12)
    assert house.attempts(job_id)[0].outcome == "lost"
    left = list(house.context.work_root.iterdir())
    assert not left, "the second worker removes what the first left behind"


def test_kill_9_of_the_parent_alone_ends_the_child_too(house: House, start_worker: StartWorker) -> None:
    job_id = house.job(do="hang", every=0.05)
    worker = start_worker()
    child = child_of(house, job_id, 1)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(10)
    wait_for(lambda: gone(child), 2)
    before = len(house.events(job_id))
    time.sleep(0.5)
    assert len(house.events(job_id)) == before
    house.assert_no_gaps(job_id)


def test_kill_9_of_the_child_alone_is_noticed_at_once(house: House, start_worker: StartWorker) -> None:
    job_id = house.job(do="train", epochs=8, seconds=0.2)
    start_worker(lease_seconds=30)  # so it is not the lease that notices
    child = child_of(house, job_id, 1)
    epoch_reached(house, job_id, 1)
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: over(house, job_id), 15)
    assert_taken_over(house, job_id, 8)


def test_sigterm_gives_the_job_back_and_another_worker_has_it_at_once(house: House, start_worker: StartWorker) -> None:
    job_id = house.job(do="train", epochs=12, seconds=0.2)
    worker = start_worker(lease_seconds=30)
    child = child_of(house, job_id, 1)
    start_worker(lease_seconds=30)
    epoch_reached(house, job_id, 2)
    began = time.monotonic()
    worker.terminate()
    assert worker.wait(5) == 0
    assert time.monotonic() - began < 4
    assert gone(child)
    wait_for(lambda: house.read(job_id).attempt_count == 2, 10)
    wait_for(lambda: over(house, job_id))
    assert_taken_over(house, job_id, 12)
    assert house.attempts(job_id)[0].outcome == "released"
    assert house.read(job_id).deaths == 0


def test_a_frozen_worker_loses_its_job_and_cannot_write_when_it_wakes(house: House, start_worker: StartWorker) -> None:
    job_id = house.job(do="train", epochs=10, seconds=0.3)
    worker = start_worker()
    child = child_of(house, job_id, 1)
    epoch_reached(house, job_id, 1)
    worker.send_signal(signal.SIGSTOP)
    start_worker()
    wait_for(lambda: house.read(job_id).attempt_count == 2)
    worker.send_signal(signal.SIGCONT)
    wait_for(lambda: gone(child), 5)
    wait_for(lambda: over(house, job_id))
    assert_taken_over(house, job_id, 10)
    numbers = [event.attempt for event in house.events(job_id) if event.attempt is not None]
    assert numbers == sorted(numbers), "nothing of the first attempt comes after the second began"


def test_a_lost_doorbell_only_delays(house: House, start_worker: StartWorker) -> None:
    job_id = house.job(do="train", epochs=1)
    lost: list[str] = []
    assert relay(house.context, lambda _topic, subject_id, _queue: lost.append(subject_id)) == 3
    assert job_id in lost
    start_worker()
    time.sleep(1.5)
    assert house.read(job_id).state == "queued"
    wait_for(lambda: over(house, job_id), 10)
    assert house.read(job_id).state == "succeeded"


def test_a_source_that_stalls_holds_up_no_upload(
    house: House, allowing: Settings, server: Server, start_worker: StartWorker
) -> None:  # fmt: skip
    server.files["/set.zip"] = Served(b"fine", stalls_at=0)
    stalled = house.source(f"{server.url}/set.zip")
    for queue in ("fetch", "inspect"):
        start_worker(
            queue, lease_seconds=30, dataset_hosts=allowing.dataset_hosts[0], dataset_private_addresses=True,
            dataset_ca_file=allowing.dataset_ca_file,
        )  # fmt: skip
    wait_for(lambda: bool(server.asked))
    model_id = house.model("fine")
    wait_for(lambda: house.upload(model_id).state == "ready")
    assert house.upload(stalled).state == "checking"
    server.released.set()
    wait_for(lambda: house.upload(stalled).state == "ready")
    assert len(server.asked) == 1


def test_uploads_are_checked(house: House, start_worker: StartWorker) -> None:
    fine, wrong, deadly, dataset = house.model("fine"), house.model("refuse"), house.model("die"), house.dataset()
    worker = start_worker("inspect", lease_seconds=30)  # so it is not the check's lease that notices
    wait_for(lambda: all(house.upload(subject).state != "checking" for subject in (fine, wrong, deadly, dataset)))
    summary = house.upload(fine).summary
    assert summary is not None
    assert summary["content"] == "fine"
    assert house.upload(dataset).state == "ready"
    assert house.upload(wrong).state == "refused"
    refusal = house.upload(wrong).refusal
    assert refusal is not None
    assert refusal["code"] == "model_unreadable"
    assert refusal["faults"][0]["pointer"] == "/model"
    poison = house.upload(deadly).refusal
    assert poison is not None
    assert poison["code"] == "poison"
    worker.terminate()
    assert worker.wait(5) == 0


def test_two_workers_with_separate_data_folders_share_a_folder_of_messages(
    house: House, start_worker: StartWorker, tmp_path: Path
) -> None:
    """`filesystem:///folder`; database and storage are given by their addresses too."""
    shared = {
        "broker_url": f"filesystem://{tmp_path}/a queue", "database_url": house.settings.database_url,
        "storage_url": house.settings.storage_url,
    }  # fmt: skip
    jobs = [house.job(do="train", epochs=4, seconds=0.3) for _ in range(2)]
    for number in range(2):
        start_worker("cpu", data_dir=tmp_path / f"machine-{number}", **shared)
    wait_for(lambda: all(over(house, job_id) for job_id in jobs))
    assert {house.attempts(job_id)[0].worker for job_id in jobs} == {"host:1", "host:2"}
    assert (tmp_path / "a queue" / "messages" / "billhook.cpu").is_dir()
    assert not (tmp_path / "queue").exists()


def test_a_worker_waits_for_a_database_that_is_migrated_later(
    house: House, start_worker: StartWorker, tmp_path: Path
) -> None:
    migrate.downgrade(house.context.engine, "base")
    worker = start_worker("cpu")
    wait_for(lambda: "waiting for the database" in (tmp_path / "worker1.log").read_text())
    assert worker.poll() is None
    migrate.upgrade(house.context.engine)
    job_id = house.job(do="train", epochs=1)
    wait_for(lambda: over(house, job_id))
    assert house.read(job_id).state == "succeeded"


def test_a_worker_that_waits_for_the_database_can_be_stopped(
    house: House, start_worker: StartWorker, tmp_path: Path
) -> None:
    migrate.downgrade(house.context.engine, "base")
    worker = start_worker("cpu")
    wait_for(lambda: "waiting for the database" in (tmp_path / "worker1.log").read_text())
    worker.terminate()
    assert worker.wait(10) == 0


def test_a_worker_older_than_the_database_says_so_and_ends(
    house: House, start_worker: StartWorker, tmp_path: Path
) -> None:
    with house.context.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    worker = start_worker("cpu")
    assert worker.wait(20) == 1
    log = (tmp_path / "worker1.log").read_text()
    assert "is newer than this version of Billhook" in log
    assert "Traceback" not in log
