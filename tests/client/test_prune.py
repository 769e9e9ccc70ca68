"""The whole path by the class: files in, a verified file and a report out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import billhook
from billhook.operations import prune
from tests.client.either import Either
from tests.client.fake_server import KEY, PRUNED, FakeServer, report

MODELS, DATASETS, JOBS = "POST /v1/models", "POST /v1/datasets", "POST /v1/jobs"


def test_prune(client: Either, fake: FakeServer, model_file: Path, data_file: Path, tmp_path: Path) -> None:
    phases: list[str] = []
    result = client.prune(
        model_file, data_file, "half", tmp_path / "out.onnx", name="a/b", device="cpu", timeout=60,
        on_progress=lambda progress: phases.append(progress.phase),
    )  # fmt: skip
    assert (tmp_path / "out.onnx").read_bytes() == PRUNED
    assert result.report.ratios["latency"] == 0.5
    assert list(dict.fromkeys(phases)) == ["upload model", "upload dataset", "run", "download"]
    again = client.prune(result.model.id, result.dataset.id, "half", tmp_path / "again.onnx")
    assert (again.model, again.dataset) == (result.model, result.dataset)
    assert (fake.count(MODELS), fake.count(DATASETS), len(fake.jobs)) == (1, 1, 2)


def test_missed_requirements_are_raised_with_the_result(
    client: Either, fake: FakeServer, model_file: Path, tmp_path: Path
) -> None:
    fake.requirements_met = False
    with pytest.raises(billhook.RequirementsMissed, match=r"latency_ratio is 0\.7, required <= 0\.6") as caught:
        client.prune(model_file, "builtin:digits", "half", tmp_path / "out.onnx")
    assert caught.value.result.file.path.read_bytes() == PRUNED


def test_what_is_wrong_here_is_found_before_anything_is_sent(
    client: Either, fake: FakeServer, model_file: Path, tmp_path: Path
) -> None:
    for recipe, output in ((tmp_path / "no.yaml", tmp_path / "out.onnx"), ("half", tmp_path / "no" / "out.onnx")):
        with pytest.raises(billhook.InputInvalid):
            client.prune(model_file, "builtin:digits", recipe, output)
    assert fake.log == []


def test_a_recipe_with_faults_is_found_before_anything_is_uploaded(
    client: Either, fake: FakeServer, model_file: Path, data_file: Path, tmp_path: Path
) -> None:
    faults = [{"pointer": "/recipe/seed", "message": "negative", "expected": None},
              {"pointer": "/device", "message": "unknown", "expected": "cpu"}]  # fmt: skip
    fake.recipe_problem = {"status": 422, "code": "request_invalid", "detail": "2 faults", "faults": faults}
    recipe, requirements = {"seed": -1, "steps": []}, {"accuracy_drop": "<= 0.01"}
    with pytest.raises(billhook.ApiError) as caught:
        client.prune(
            model_file, data_file, recipe, tmp_path / "out.onnx", requirements=requirements, device="tpu", timeout=60
        )
    assert [fault.pointer for fault in caught.value.faults] == ["/recipe/seed", "/device"]
    assert fake.log == ["POST /v1/recipes/check"]
    assert json.loads(fake.bodies[0]) == {"recipe": recipe, "requirements": requirements, "device": "tpu"}


def test_the_output_may_be_a_folder(client: Either, fake: FakeServer, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    file = client.prune(model_file, "builtin:digits", "half", tmp_path / "results").file
    assert file.path == tmp_path / "results" / "pruned.onnx"
    assert file.path.read_bytes() == PRUNED


def test_the_time_being_up_cancels_the_job(client: Either, fake: FakeServer, model_file: Path, tmp_path: Path) -> None:
    fake.job_plan = [{"state": "running"}]
    with pytest.raises(billhook.Timeout, match=r"the time was up while job_0+1 was running; job_0+1 was cancelled$"):
        client.prune(model_file, "builtin:digits", "half", tmp_path / "out.onnx", timeout=0.5)
    assert [job["state"] for job in fake.jobs.values()] == ["cancelled"]


class Interrupted(BaseException):
    """As KeyboardInterrupt, which would end the test run where it slipped through."""


def interrupted_at(
    client: Either, model_file: Path, tmp_path: Path, *moments: str
) -> list[tuple[str, billhook.Job | None]]:
    """All phases and jobs that `prune` tells of, interrupted when the job runs and at the phases `moments`."""
    told: list[tuple[str, billhook.Job | None]] = []

    def tell(progress: billhook.Progress) -> None:
        told.append((progress.phase, progress.job))
        if progress.phase in moments or (progress.phase == "run" and progress.job and progress.job.state == "running"):
            raise Interrupted

    with pytest.raises(Interrupted):
        client.prune(model_file, "builtin:digits", "half", tmp_path / "out.onnx", on_progress=tell)
    return told


def test_an_interruption_cancels_the_job(client: Either, fake: FakeServer, model_file: Path, tmp_path: Path) -> None:
    fake.job_plan = [{"state": "running"}]
    *_, cancelling, (phase, job) = interrupted_at(client, model_file, tmp_path)
    assert [job["state"] for job in fake.jobs.values()] == ["cancelled"]
    assert fake.log[-2].endswith("/cancel")
    assert (cancelling[0], phase) == ("cancelling", "cancelled")
    assert job is not None
    assert job.state == "cancelled"  # read once more, not as it was when the request arrived


def test_a_second_interruption_tells_that_the_job_goes_on(
    client: Either, fake: FakeServer, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.job_plan = [{"state": "running"}]
    cancel = prune.jobs.cancel_job

    def interrupted(core: Any, job_id: str) -> Any:
        raise Interrupted
        yield from cancel(core, job_id)

    monkeypatch.setattr(prune.jobs, "cancel_job", interrupted)
    phase, job = interrupted_at(client, model_file, tmp_path)[-1]
    assert phase == "not cancelled"
    assert job is not None
    assert prune.how_left(billhook.Progress("not cancelled", None, job)) == (
        f"{job.id} was not cancelled and may go on; cancel it with: billhook jobs cancel {job.id}"
    )


def test_a_job_that_ended_meanwhile_was_not_cancelled(
    client: Either, fake: FakeServer, model_file: Path, tmp_path: Path
) -> None:
    fake.job_plan = [{"state": "running"}, {"state": "succeeded"}]

    def tell(progress: billhook.Progress) -> None:
        left.append(progress)
        if progress.job is not None and progress.job.state == "running" and progress.phase == "run":
            fake.look_at_job(fake.jobs[progress.job.id])
            raise Interrupted

    left: list[billhook.Progress] = []
    with pytest.raises(Interrupted):
        client.prune(model_file, "builtin:digits", "half", tmp_path / "out.onnx", on_progress=tell)
    assert left[-1].phase == "not cancelled"
    assert prune.how_left(left[-1]) == "job_00000000000000000000000001 had succeeded before it could be cancelled"


@pytest.mark.parametrize("how", ["task", "scope"])
def test_a_cancelled_task_cancels_its_job(how: str, fake: FakeServer, model_file: Path, tmp_path: Path) -> None:
    fake.job_plan = [{"state": "running"}]

    async def main() -> None:
        stop: list[Callable[[], object]] = []

        def tell(progress: billhook.Progress) -> None:
            if progress.job is not None and progress.job.state == "running":
                stop[0]()

        async with billhook.AsyncClient(fake.url, KEY) as client:
            pruning = client.prune(model_file, "builtin:digits", "half", tmp_path / "out.onnx", on_progress=tell)
            if how == "task":
                task = asyncio.create_task(pruning)
                stop.append(task.cancel)
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                with anyio.move_on_after(30) as scope:
                    stop.append(scope.cancel)
                    await pruning
                assert scope.cancelled_caught

    anyio.run(main)
    assert [job["state"] for job in fake.jobs.values()] == ["cancelled"]


def test_a_job_whose_id_never_arrived_is_found_and_cancelled(
    fake: FakeServer, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while POST /v1/jobs was on its way: the same idempotency key finds the job."""
    request = billhook.Client._request
    interrupted: list[bool] = []

    def interrupting(self: billhook.Client, call: Any) -> Any:
        reply = request(self, call)
        if call.path == "/v1/jobs" and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return reply

    monkeypatch.setattr(billhook.Client, "_request", interrupting)
    with billhook.Client(fake.url, KEY) as client, pytest.raises(KeyboardInterrupt):
        client.prune(model_file, "builtin:digits", "half", tmp_path / "out.onnx")
    assert [job["state"] for job in fake.jobs.values()] == ["cancelled"]


def test_a_requirement_that_could_not_be_measured_says_why(
    client: Either, fake: FakeServer, model_file: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = {"name": "peak_memory_ratio", "required": "<= 1", "measured": None, "passed": False, "note": "too small"}
    told = report(met=False) | {"requirements": [missed]}
    monkeypatch.setattr("tests.client.fake_server.report", lambda met: told)
    with pytest.raises(billhook.RequirementsMissed, match="peak_memory_ratio is too small, required <= 1"):
        client.prune(model_file, data_file, "half", tmp_path / "out.onnx")
