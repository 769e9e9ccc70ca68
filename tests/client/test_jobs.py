"""Jobs: submitted once, watched, cancelled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import billhook
from billhook.operations import jobs
from tests.client.either import Either
from tests.client.fake_server import FakeServer

MODELS, DATASETS, JOBS = "POST /v1/models", "POST /v1/datasets", "POST /v1/jobs"


def test_a_lost_answer_never_makes_two_jobs(client: Either, fake: FakeServer) -> None:
    fake.failures[JOBS] = ["lose", "drop", (502, {})]
    job = client.submit_job("mdl_1", ["ds_1"], {"version": 1}, tags=["a"], requirements={"params_ratio": "<= 0.5"})
    assert list(fake.jobs) == [job.id]
    keys = {headers["Idempotency-Key"] for request, headers in zip(fake.log, fake.headers, strict=True)
            if request == JOBS}  # fmt: skip
    assert fake.count(JOBS) == 4
    assert len(keys) == 1
    assert json.loads(fake.bodies[-1]) == {"model": "mdl_1", "datasets": ["ds_1"], "recipe": {"version": 1},
                                           "tags": ["a"], "requirements": {"params_ratio": "<= 0.5"}}  # fmt: skip
    assert client.submit_job("mdl_1", ["ds_1"], "half").id != job.id


def test_recipe_files(client: Either, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("version: 1\nsteps: [{method: filter_norm, target: {params: 0.5}}]\n")
    client.submit_job("mdl_1", ["ds_1"], path)
    assert json.loads(fake.bodies[-1])["recipe"]["steps"][0]["target"] == {"params": 0.5}
    path.unlink()
    with pytest.raises(billhook.InputInvalid, match="no file"):
        client.submit_job("mdl_1", ["ds_1"], path)


def test_all_faults_of_a_recipe_arrive(client: Either, fake: FakeServer) -> None:
    fake.submit_problem = {"status": 422, "code": "recipe_invalid", "detail": "the recipe has 2 faults", "faults": [
        {"pointer": "/recipe/steps/0/target", "message": "needs one", "expected": "params"},
        {"pointer": "/recipe/seed", "message": "not a number", "expected": None}]}  # fmt: skip
    with pytest.raises(billhook.ApiError, match="2 faults") as caught:
        client.submit_job("mdl_1", ["ds_1"], {})
    assert (caught.value.status, caught.value.code) == (422, "recipe_invalid")
    assert [fault.pointer for fault in caught.value.faults] == ["/recipe/steps/0/target", "/recipe/seed"]


def test_waiting_for_the_end(client: Either, fake: FakeServer, job_id: str) -> None:
    job = client.wait_for_job(job_id)
    assert (job.state, job.over, job.created_at.year) == ("succeeded", True, 2026)


def test_a_failed_job_says_why(client: Either, fake: FakeServer, job_id: str) -> None:
    error = {"code": "dataset_mismatch", "message": "the images are 8x8", "faults": []}
    fake.job_plan = [{"state": "failed", "error": error}]
    with pytest.raises(billhook.JobFailed, match="the images are 8x8") as caught:
        client.wait_for_job(job_id)
    assert caught.value.code == "dataset_mismatch"
    assert caught.value.job.id == job_id


def test_waiting_no_longer_than_asked(client: Either, fake: FakeServer, job_id: str) -> None:
    fake.job_plan = [{"state": "running"}]
    with pytest.raises(billhook.Timeout, match="running"):
        client.wait_for_job(job_id, timeout=0.1)
    with pytest.raises(billhook.Timeout):
        client.watch_job(job_id, timeout=0.1)
    assert fake.jobs[job_id]["state"] == "running"


def test_watching_misses_and_repeats_nothing(
    client: Either, fake: FakeServer, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "EVENTS_PER_PAGE", 2)
    fake.job_plan = [{"state": "running", "progress": number / 10} for number in range(9)] + fake.job_plan
    fake.looks[job_id] = 3
    fake.failures[f"GET /v1/jobs/{job_id}"] = [(503, {}), "drop"]
    updates = client.watch_job(job_id)
    assert [event.seq for update in updates for event in update.events] == list(range(1, fake.looks[job_id] + 2))
    assert [update.job.state for update in updates][-1] == "succeeded"
    assert updates[0].job.progress == 0.3
    assert client.list_events(job_id, after=4)[0].seq == 5


def test_cancelling(client: Either, fake: FakeServer, job_id: str) -> None:
    cancel = f"POST /v1/jobs/{job_id}/cancel"
    fake.failures[cancel] = ["lose"]
    job = client.cancel_job(job_id)  # queued: cancelled by the first try, whose answer was lost
    assert (job.state, fake.count(cancel)) == ("cancelled", 2)
    with pytest.raises(billhook.ApiError) as caught:
        client.cancel_job(job_id)
    assert caught.value.code == "job_terminal"
    with pytest.raises(billhook.JobCancelled):
        client.wait_for_job(job_id)


def test_the_lost_answer_of_a_retry_or_a_clone_makes_one_job(client: Either, fake: FakeServer, job_id: str) -> None:
    client.cancel_job(job_id)
    fake.failures[f"POST /v1/jobs/{job_id}/retry"] = ["lose", (503, {})]
    again = client.retry_job(job_id)
    assert (again.cloned_from, again.state, len(fake.jobs)) == (job_id, "queued", 2)
    assert client.retry_job(again.id).id == again.id, "queued: the same"
    fake.failures[f"POST /v1/jobs/{again.id}/clone"] = ["lose"]
    clone = client.clone_job(again.id, name="b", tags=[], recipe={"version": 1}, device="cpu", kind="k")
    assert (clone.cloned_from, clone.name, clone.device, len(fake.jobs)) == (again.id, "b", "cpu", 3)
    sent = {"name": "b", "tags": [], "recipe": {"version": 1}, "device": "cpu", "kind": "k"}
    assert json.loads(fake.bodies[-1]) == sent
    client.clone_job(again.id)
    assert json.loads(fake.bodies[-1]) == {}
    client.clone_job(again.id, idempotency_key="mine")
    assert fake.headers[-1]["Idempotency-Key"] == "mine"
    fake.jobs[again.id]["state"] = "running"
    with pytest.raises(billhook.ApiError) as caught:
        client.retry_job(again.id)
    assert caught.value.code == "job_running"


def test_reports_recipes_and_files(client: Either, finished: str) -> None:
    report = client.get_report(finished)
    assert report.variants["pruned"]["params"] == 120000
    assert report.requirements[0].passed
    assert client.get_report_markdown(finished) == "| a | b |\n"
    assert client.list_artifacts(finished)[0].name == "pruned.onnx"
    assert client.list_recipes()[0].name == "half"
    assert client.get_recipe("half")["version"] == 1
    assert client.recipe_schema() == {"type": "object"}
    with pytest.raises(billhook.ApiError, match="not_found"):
        client.get_recipe("../jobs")
