"""A worker among the others: what it says of itself, whatever the database does."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import text

from store import workers
from store.database import reading
from store.records import Worker
from tests.worker.conftest import StartWorker
from tests.worker.house import House, child_of, over, wait_for
from worker.attempt import run_job
from worker.context import make_context
from worker.inspection import check_upload


def known(house: House) -> list[Worker]:
    with reading(house.context.engine) as session:
        return list(workers.page(session))


def test_it_says_what_it_works_on(house: House) -> None:
    presence = house.context.presence
    presence.enter("here:1", ["cpu", "inspect"], "cpu", "1.0")
    (worker,) = known(house)
    assert (worker.name, worker.queues, worker.device, worker.subject_id) == ("here:1", ["cpu", "inspect"], "cpu", None)
    job_id, model_id = house.job(do="train", epochs=10, seconds=0.1), house.model("fine")
    for work, subject in ((run_job, job_id), (check_upload, model_id)):
        thread = threading.Thread(target=work, args=(house.context, subject))
        thread.start()
        wait_for(lambda subject=subject: known(house)[0].subject_id == subject)  # type: ignore[misc]
        thread.join()
        assert known(house)[0].subject_id is None
    presence.leave()
    presence.beat()
    with presence.at_work("job_1"):
        pass
    assert known(house) == [], "a beat that comes late does not bring it back"


def test_a_database_that_does_not_take_it_costs_no_job(house: House) -> None:
    house.context.presence.enter("here:1", ["cpu"], "cpu", None)
    job_id = house.job(do="train", epochs=1)
    with house.context.engine.begin() as connection:
        connection.execute(text("ALTER TABLE workers RENAME TO elsewhere"))
    run_job(house.context, job_id)
    assert house.read(job_id).state == "succeeded"
    house.context.presence.leave()
    with house.context.engine.begin() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO workers"))
    assert len(known(house)) == 1, "it is forgotten later"


@pytest.mark.parametrize(
    ("gpu", "queues", "device"),
    [(None, ["cpu"], "cpu"), (1, ["gpu", "gpu-1"], "cuda:1"), (None, ["inspect"], None), (None, ["fetch"], None)],
)
def test_what_its_jobs_run_on(house: House, gpu: int | None, queues: list[str], device: str | None) -> None:
    context = make_context(house.settings, gpu=gpu)
    assert context.device_of(queues) == device
    context.engine.dispose()


def test_processes_come_and_go(house: House, start_worker: StartWorker) -> None:
    """One is killed, one ends in order, one joins while a job waits."""
    killed, ended = start_worker("cpu"), start_worker("inspect")
    wait_for(lambda: {worker.name for worker in known(house)} == {"host:1", "host:2"})
    seen = {worker.name: worker.seen_at for worker in known(house)}
    wait_for(lambda: all(worker.seen_at > seen[worker.name] for worker in known(house)))
    killed.kill()
    killed.wait(10)
    ended.terminate()
    assert ended.wait(10) == 0
    assert [worker.name for worker in known(house)] == ["host:1"]
    job_id = house.job(do="train", epochs=5, seconds=0.2)
    start_worker("cpu")
    child_of(house, job_id, 1)
    wait_for(lambda: known(house)[0].subject_id == job_id)
    wait_for(lambda: over(house, job_id))
    wait_for(lambda: known(house)[0].subject_id is None)
