"""Both clients against a server at the HTTP port: each test runs with `Client` and with `AsyncClient`."""

from __future__ import annotations

import inspect
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import billhook
from billhook import retries
from billhook.operations import jobs, uploads
from core.job import DatasetOptions
from tests.client.fake_server import KEY, PRUNED, FakeServer

MODELS, DATASETS, JOBS = "POST /v1/models", "POST /v1/datasets", "POST /v1/jobs"


class Either:
    """One of the clients, called in the same way."""

    def __init__(self, kind: str, server: str, **options: Any) -> None:
        self.kind, self.server, self.options = kind, server, options

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if self.kind == "sync":

            def call(*args: Any, **kwargs: Any) -> Any:
                with billhook.Client(self.server, KEY, **self.options) as client:
                    result = getattr(client, name)(*args, **kwargs)
                    return list(result) if inspect.isgenerator(result) else result

            return call

        async def acall(*args: Any, **kwargs: Any) -> Any:
            async with billhook.AsyncClient(self.server, KEY, **self.options) as client:
                result = getattr(client, name)(*args, **kwargs)
                return [item async for item in result] if inspect.isasyncgen(result) else await result

        return lambda *args, **kwargs: anyio.run(lambda: acall(*args, **kwargs))


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Either:
    monkeypatch.setattr(jobs, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(uploads, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.02)
    return Either(request.param, fake.url)


@pytest.fixture
def job_id(client: Either) -> str:
    job: billhook.Job = client.submit_job("mdl_1", ["ds_1"], "half")
    return job.id


@pytest.fixture
def finished(client: Either, job_id: str) -> str:
    client.wait_for_job(job_id)
    return job_id


# --- the two classes -------------------------------------------------------------------------------------------------


def test_both_have_the_same_methods_and_help() -> None:
    def public(kind: type) -> dict[str, Any]:
        return {name: value for name, value in vars(kind).items() if inspect.isfunction(value) and name[0] != "_"}

    sync, asynchronous = public(billhook.Client), public(billhook.AsyncClient)
    assert set(sync) - {"close"} == set(asynchronous) - {"aclose"}
    for name, method in sync.items():
        assert method.__doc__ or name == "close"
        if name != "close":
            ours, theirs = inspect.signature(method), inspect.signature(asynchronous[name])
            assert list(ours.parameters) == list(theirs.parameters)
            assert next(iter(ours.parameters)) == "self"
            assert "Operation" not in str(ours)
    operations = {name for module in (uploads, jobs) for name, value in vars(module).items()
                  if inspect.isgeneratorfunction(value) or "Stream" in str(getattr(value, "__annotations__", {}).get("return"))}  # fmt: skip
    assert {name for name in operations if name[0] != "_"} - set(sync) <= {"page", "pages", "fetch", "send", "blocking"}


# --- uploads ---------------------------------------------------------------------------------------------------------


def test_a_file_is_uploaded_once(client: Either, fake: FakeServer, model_file: Path) -> None:
    sent: list[tuple[int, int]] = []
    model = client.upload_model(model_file, on_bytes=lambda done, total: sent.append((done, total)))
    assert (model.state, model.filename, model.bytes) == ("ready", "model.onnx", model_file.stat().st_size)
    assert sent[-1] == (model.bytes, model.bytes)
    again = client.upload_model(model_file)
    assert again == model
    assert fake.count(MODELS) == 1
    other = client.upload_model(model_file, architecture="resnet20", input_shape=(3, 32, 32))
    assert other.id != model.id
    assert client.upload_model(model_file, architecture="resnet20", input_shape=(3, 32, 32)) == other
    assert fake.count(MODELS) == 2


def test_a_dataset_is_its_bytes_and_its_options(client: Either, fake: FakeServer, data_file: Path) -> None:
    plain = client.add_dataset(data_file)
    assert client.add_dataset(data_file, preprocess={}, splits={"test": 0.2}) == plain
    normed = client.add_dataset(data_file, preprocess={"mean": (0.5,), "std": [0.2]})
    assert normed.id != plain.id
    assert client.add_dataset(data_file, preprocess={"mean": [0.5], "std": [0.2], "layout": "NCHW"}) == normed
    assert fake.count(DATASETS) == 2
    assert normed.options["preprocess"]["mean"] == [0.5]


def test_the_servers_defaults_are_known() -> None:
    defaults = DatasetOptions().model_dump(mode="json")
    assert {name: dict(defaults[name]) for name in uploads.DATASET_DEFAULTS} == uploads.DATASET_DEFAULTS


def test_a_folder_is_uploaded_once_and_cleaned_up(
    client: Either, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).write_bytes(name.encode())
    first = client.add_dataset(tmp_path / "photos")
    assert first.filename == "photos.zip"
    assert client.add_dataset(str(tmp_path / "photos")) == first
    assert fake.count(DATASETS) == 1
    assert list(scratch.iterdir()) == []


def test_a_built_in_dataset(client: Either, fake: FakeServer) -> None:
    assert client.add_dataset("builtin:digits", splits={"seed": 3}).state == "ready"
    assert json.loads(fake.bodies[fake.log.index(DATASETS)]) == {"uri": "builtin:digits", "splits": {"seed": 3}}


def test_a_large_file_is_never_in_memory(client: Either, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(96 * 2**20)
    tracemalloc.start()
    client.upload_model(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fake.models
    assert peak < 24 * 2**20


def test_a_refused_upload_says_why(client: Either, fake: FakeServer, model_file: Path) -> None:
    fault = {"pointer": "/nodes/3", "message": "Einsum is unknown", "expected": "Conv, …"}
    fake.refusal = {"code": "operator_unknown", "message": "an operator is unknown", "faults": [fault]}
    with pytest.raises(billhook.UploadRefused, match="model.onnx was refused: an operator is unknown") as caught:
        client.upload_model(model_file)
    assert caught.value.code == "operator_unknown"
    assert caught.value.faults[0].pointer == "/nodes/3"


def test_a_file_that_changes_meanwhile(client: Either, fake: FakeServer, model_file: Path) -> None:
    fake.wrong_upload_hash = True
    with pytest.raises(billhook.ChecksumMismatch, match="changed while it was uploaded"):
        client.upload_model(model_file)


def test_an_upload_whose_answer_is_lost_is_sent_again(client: Either, fake: FakeServer, model_file: Path) -> None:
    fake.failures[MODELS] = ["drop", (503, {}), "lose"]
    assert client.upload_model(model_file).state == "ready"
    assert fake.count(MODELS) == 4
    assert len(fake.models) == 1


def test_no_file_is_found_before_anything_is_sent(client: Either, fake: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(billhook.InputInvalid, match="there is no file"):
        client.upload_model(tmp_path / "nowhere.onnx")
    assert fake.log == []


def test_lists_are_walked_page_by_page(client: Either, fake: FakeServer, tmp_path: Path) -> None:
    fake.page_size = 3
    for number in range(8):
        fake.add_upload("models", f"{number:064}", 1, {})
    assert [model.sha256 for model in client.list_models()] == [f"{number:064}" for number in range(7, -1, -1)]
    fake.log.clear()
    assert len(client.list_models(limit=4)) == 4
    assert fake.count("GET /v1/models") == 2
    assert client.list_models(sha256=f"{5:064}")[0].sha256 == f"{5:064}"


def test_deleting(client: Either, fake: FakeServer, model_file: Path) -> None:
    model = client.upload_model(model_file)
    fake.failures[f"DELETE /v1/models/{model.id}"] = ["lose"]
    client.delete_model(model.id)  # gone at the second try: the first one did it
    assert fake.models == {}
    with pytest.raises(billhook.ApiError) as caught:
        client.delete_model(model.id)
    assert caught.value.status == 404


# --- jobs ------------------------------------------------------------------------------------------------------------


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
    for text, wrong in (("steps: [", "not valid YAML .line 2"), ("- 1", "holds no mapping"), (None, "no file")):
        path.unlink()
        if text is not None:
            path.write_text(text + "\n")
        with pytest.raises(billhook.InputInvalid, match=wrong):
            client.submit_job("mdl_1", ["ds_1"], path)
        path.touch()


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
    assert [event.seq for event in client.list_events(job_id, after=4)][0] == 5


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


# --- downloads -------------------------------------------------------------------------------------------------------


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "model.onnx")


def test_a_download_is_verified(client: Either, finished: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    file = client.download_artifact(
        finished, "pruned.onnx", tmp_path / "out.onnx", on_bytes=lambda done, total: seen.append((done, total))
    )
    assert file.path.read_bytes() == PRUNED
    assert (file.bytes, len(file.sha256)) == (len(PRUNED), 64)
    assert seen[-1] == (len(PRUNED), len(PRUNED))
    assert client.download_artifact(finished, output=tmp_path).path == tmp_path / "pruned.onnx"
    assert left_over(tmp_path) == ["out.onnx", "pruned.onnx"]


def test_a_broken_download_goes_on_where_it_broke(
    client: Either, fake: FakeServer, finished: str, tmp_path: Path
) -> None:
    fake.break_download_after = [300_000, 200_000, 0]
    file = client.download_artifact(finished, "pruned.onnx", tmp_path / "out.onnx")
    assert file.path.read_bytes() == PRUNED
    ranges = [headers.get("Range") for request, headers in zip(fake.log, fake.headers, strict=True)
              if request.endswith("/artifacts/pruned.onnx")]  # fmt: skip
    starts = [int(value.removeprefix("bytes=").rstrip("-")) for value in ranges[1:] if value]
    assert ranges[0] is None
    assert len(starts) == 3
    assert 0 < starts[0] <= 300_000
    assert starts[0] < starts[1] <= 500_000
    assert starts[2] == starts[1]


def test_a_file_that_changed_in_between_is_taken_from_the_start(
    client: Either, fake: FakeServer, finished: str, tmp_path: Path
) -> None:
    """The server answers a Range whose If-Range does not match with the whole."""
    right, fake.etag = fake.etag, '"' + "0" * 64 + '"'
    fake.break_download_after = [300_000]

    def change() -> None:
        fake.etag = right

    fake.on_range = change
    assert client.download_artifact(finished, output=tmp_path / "out.onnx").path.read_bytes() == PRUNED


@pytest.mark.parametrize("etag", ['"' + "0" * 64 + '"', 'W/"' + "0" * 64 + '"', None])
def test_a_wrong_checksum_leaves_the_target_as_it_was(
    client: Either, fake: FakeServer, finished: str, tmp_path: Path, etag: str | None
) -> None:
    (tmp_path / "out.onnx").write_bytes(b"what was there")
    fake.etag = etag
    with pytest.raises(billhook.ChecksumMismatch):
        client.download_artifact(finished, output=tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == b"what was there"
    assert left_over(tmp_path) == ["out.onnx"]


def test_what_cannot_be_downloaded(client: Either, finished: str, tmp_path: Path) -> None:
    with pytest.raises(billhook.ApiError) as caught:
        client.download_artifact(finished, "nothing.onnx", tmp_path / "out.onnx")
    assert caught.value.status == 404
    with pytest.raises(billhook.InputInvalid, match="cannot be written"):
        client.download_artifact(finished, output=tmp_path / "no" / "folder.onnx")
    assert left_over(tmp_path) == []


# --- the whole path --------------------------------------------------------------------------------------------------


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
    with pytest.raises(billhook.RequirementsMissed, match="latency_ratio is 0.7, required <= 0.6") as caught:
        client.prune(model_file, "builtin:digits", "half", tmp_path / "out.onnx")
    assert caught.value.result.file.path.read_bytes() == PRUNED


def test_what_is_wrong_here_is_found_before_anything_is_sent(
    client: Either, fake: FakeServer, model_file: Path, tmp_path: Path
) -> None:
    for recipe, output in ((tmp_path / "no.yaml", tmp_path / "out.onnx"), ("half", tmp_path / "no" / "out.onnx")):
        with pytest.raises(billhook.InputInvalid):
            client.prune(model_file, "builtin:digits", recipe, output)
    assert fake.log == []


def test_the_time_being_up_cancels_the_job(client: Either, fake: FakeServer, model_file: Path, tmp_path: Path) -> None:
    fake.job_plan = [{"state": "running"}]
    with pytest.raises(billhook.Timeout):
        client.prune(model_file, "builtin:digits", "half", tmp_path / "out.onnx", timeout=0.5)
    assert [job["state"] for job in fake.jobs.values()] == ["cancelling"]


def test_an_interruption_cancels_the_job(client: Either, fake: FakeServer, model_file: Path, tmp_path: Path) -> None:
    fake.job_plan = [{"state": "running"}]
    phases: list[str] = []

    class Interrupted(BaseException):
        """As KeyboardInterrupt, which would end the test run where it slipped through."""

    def interrupt(progress: billhook.Progress) -> None:
        phases.append(progress.phase)
        if progress.job is not None and progress.job.state == "running":
            raise Interrupted

    with pytest.raises(Interrupted):
        client.prune(model_file, "builtin:digits", "half", tmp_path / "out.onnx", on_progress=interrupt)
    assert [job["state"] for job in fake.jobs.values()] == ["cancelling"]
    assert fake.log[-1].endswith("/cancel")
    assert phases[-2:] == ["cancelling", "cancelled"]


def test_a_cancelled_task_cancels_its_job(fake: FakeServer, model_file: Path, tmp_path: Path) -> None:
    fake.job_plan = [{"state": "running"}]

    async def main() -> None:
        async with billhook.AsyncClient(fake.url, KEY) as client:
            with anyio.move_on_after(30) as scope:

                def stop(progress: billhook.Progress) -> None:
                    if progress.job is not None and progress.job.state == "running":
                        scope.cancel()

                await client.prune(model_file, "builtin:digits", "half", tmp_path / "out.onnx", on_progress=stop)
            assert scope.cancelled_caught

    anyio.run(main)
    assert [job["state"] for job in fake.jobs.values()] == ["cancelling"]


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


# --- what is no Billhook server --------------------------------------------------------------------------------------


def test_a_wrong_key(fake: FakeServer) -> None:
    with billhook.Client(fake.url, "bh_wrong") as client, pytest.raises(billhook.ApiError) as caught:
        client.get_job("job_1")
    assert caught.value.status == 401
    assert "bh_wrong" not in repr(caught.value)


def test_nobody_there_is_found_out_soon(tmp_path: Path) -> None:
    with billhook.Client("http://127.0.0.1:9", KEY) as client, pytest.raises(billhook.ConnectionFailed, match="reach"):
        client.get_job("job_1")
    assert KEY not in repr(client)


def test_an_answer_of_another_version(client: Either, fake: FakeServer, job_id: str) -> None:
    fake.jobs[job_id].update({"state": 3, "new_field": 1})
    fake.job_plan = [{}]
    with pytest.raises(billhook.ApiError, match="state: found int") as caught:
        client.get_job(job_id)
    assert caught.value.code == "unexpected_reply"
    fake.jobs[job_id]["state"] = "queued"
    assert client.get_job(job_id).raw["new_field"] == 1
