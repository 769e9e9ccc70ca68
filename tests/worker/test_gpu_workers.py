"""A worker of one GPU, without one."""

from __future__ import annotations

from tests.worker.house import FAKE_CHILD, House
from worker.attempt import run_job
from worker.context import make_context


def test_a_gpu_job_at_the_wrong_worker_fails_clearly(house: House) -> None:
    job_id = house.job(do="train", epochs=0, device="cuda:1")
    run_job(house.context, job_id)
    job = house.read(job_id)
    assert job.error is not None
    assert job.error["code"] == "device_unavailable"
    assert "cuda:1" in job.error["message"]


def test_the_child_of_a_gpu_worker_sees_its_gpu_only(house: House) -> None:
    context = make_context(house.settings, name="gpu:1", gpu=3, command=FAKE_CHILD)
    job_id = house.job(do="look_round", device="auto")
    run_job(context, job_id)
    context.engine.dispose()
    (seen,) = [event.body for event in house.events(job_id) if event.name == "import/seen"]
    assert seen["environment"]["CUDA_VISIBLE_DEVICES"] == "3"
    assert house.attempts(job_id)[0].device == "cuda:3"
