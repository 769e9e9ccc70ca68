"""The client against the real API, in this process, without a worker: what a worker does is done on its records."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from rich.console import Console

import billhook
from api.app import create_app
from billhook.cli import tables
from core.report import Cost, Latency, Memory, Report, RequirementResult, SplitScore, Variant
from store import keys, leases, uploads, workers
from store.columns import now_utc
from store.database import transaction
from store.ids import new_id
from store.migrate import upgrade
from store.settings import Settings
from store.workers import Identity

SECRET = keys.new_secret()
RECIPE = {"steps": [{"method": "filter_norm", "target": {"params": 0.5}}]}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FastAPI]:
    settings = Settings(data_dir=tmp_path / "data", max_upload_bytes=2**20, min_free_bytes=0, log_level="error")
    settings.data_dir.mkdir()
    app = create_app(settings)
    engine = app.state.services.engine
    upgrade(engine)
    with transaction(engine) as session:
        keys.add_key(session, SECRET, owner="me", name="tests")
    yield app
    engine.dispose()


@asynccontextmanager
async def connected(app: FastAPI) -> AsyncIterator[billhook.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with billhook.AsyncClient("http://127.0.0.1", SECRET, transport=transport, patience=5) as client:
        yield client


def a_report() -> Report:
    latency = Latency(
        device="cpu", runtime="onnxruntime", batch_size=1, threads=1, latency_ms_p50=0.5, latency_ms_p90=0.6,
        latency_ms_p99=0.7, latency_ms_mean=0.5, latency_ms_std=0.01, windows=3, stable=True, samples_ms=[0.5],
    )  # fmt: skip
    score = SplitScore(images=360, accuracy=0.98, loss=0.1)
    variant = Variant(
        validation=score, test=score, train=score, params=1000, macs=10_000, filters=10, blocks=0,
        file_bytes=4000, opset=17, sha256="0" * 64, latency=[latency],
        memory=Memory(peak_memory_bytes=10**6, noise_bytes=10**4, samples_bytes=[10**8], empty_samples_bytes=[10**8]),
    )  # fmt: skip
    return Report(
        variants={"original": variant, "pruned": variant}, ratios={"params": 0.5}, target_met=True, targets=[],
        requirements=[RequirementResult(name="params_ratio", required="<= 0.5", measured=0.5, passed=True)],
        requirements_met=True, checks=[], layers=[], frozen=[], front=[], cost=Cost(), macs_counted=[],
        macs_not_counted=[], inputs={}, recipe={}, environment={}, reproduce="billhook prune …",
    )  # fmt: skip


def inspect(app: FastAPI, subject_id: str, refusal: dict[str, Any] | None = None) -> None:
    with transaction(app.state.services.engine) as session:
        check = uploads.claim_check(session, subject_id)
        assert check is not None
        if refusal is None:
            uploads.set_ready(session, check, {"sha256": "0" * 64})
        else:
            uploads.set_refused(session, check, refusal)


async def inspect_soon(app: FastAPI, kind: str) -> None:
    """Does the worker's part as soon as there is an upload to check."""
    async with connected(app) as client:
        while True:
            found = [each async for each in (client.list_models() if kind == "model" else client.list_datasets())]
            if found and found[0].state == "checking":
                return inspect(app, found[0].id)
            await anyio.sleep(0.02)


def test_uploads(app: FastAPI, model_file: Path, data_file: Path) -> None:
    async def main() -> None:
        async with connected(app) as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(inspect_soon, app, "model")
                model = await client.upload_model(model_file, timeout=20)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(inspect_soon, app, "dataset")
                dataset = await client.add_dataset(data_file, preprocess={"mean": [0.5]}, timeout=20)
            assert (model.state, dataset.state) == ("ready", "ready")

            sent: list[int] = []
            again = await client.upload_model(model_file, on_bytes=lambda done, total: sent.append(done))
            other = await client.add_dataset(
                data_file,
                preprocess={"mean": [0.5]},
                splits={"seed": 0},
                on_bytes=lambda done, total: sent.append(done),
            )
            assert (again, other) == (model, dataset)
            assert sent == []
            assert [each.id async for each in client.list_models(sha256=model.sha256)] == [model.id]
            assert await client.get_dataset(dataset.id) == dataset
            await client.delete_dataset(dataset.id)
            assert [each async for each in client.list_datasets()] == []

    anyio.run(main)


def test_refusals(app: FastAPI, model_file: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.onnx"
    large.write_bytes(bytes(2**20 + 1))
    pickled = tmp_path / "model.pkl"
    pickled.write_bytes(b"x")

    async def main() -> None:
        async with connected(app) as client:
            for path, options, code, pointer in (
                (large, {}, "body_too_large", ""),
                (pickled, {}, "request_invalid", "/filename"),
                (model_file, {"architecture": "resnet20"}, "request_invalid", "/architecture"),
            ):
                with pytest.raises(billhook.ApiError) as caught:
                    await client.upload_model(path, **options)
                assert caught.value.code == code
                assert caught.value.faults[0].pointer == pointer
            with pytest.raises(billhook.Timeout):  # nobody is there to check it
                await client.upload_model(model_file, timeout=0.3)
            (model,) = [each async for each in client.list_models()]
            inspect(app, model.id, {"code": "model_unreadable", "message": "it is truncated", "faults": []})
            with pytest.raises(billhook.UploadRefused, match="it is truncated"):
                await client.wait_for_model(model.id)
            with pytest.raises(billhook.Timeout):  # sent again, it is checked again
                await client.upload_model(model_file, timeout=0.3)

    anyio.run(main)


def test_a_job_from_submission_to_file(app: FastAPI, model_file: Path, tmp_path: Path) -> None:
    engine, artifacts = app.state.services.engine, app.state.services.artifacts
    files = {"pruned.onnx": bytes(range(256)) * 1000, "report.md": "| é |".encode(),
             "report.json": a_report().model_dump_json().encode()}  # fmt: skip

    def work(job_id: str) -> None:
        stored = []
        for name, content in files.items():
            path = tmp_path / "made"
            path.write_bytes(content)
            stored.append((name, *artifacts.put_file(path)))
        with transaction(engine) as session:
            lease = leases.claim(session, job_id, "worker-1", "cpu")
            assert lease is not None
            leases.append_events(session, lease, [(f"fine_tune/0/epoch/{number}", {"epoch": number})
                                                  for number in range(700)])  # fmt: skip
            for name, sha256, size in stored:
                leases.add_artifact(session, lease, name, "output", sha256, size, "application/octet-stream")
            leases.finish(session, lease, "succeeded", results={"ratios": {"params": 0.5}, "requirements_met": True})

    async def main() -> None:
        async with connected(app) as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(inspect_soon, app, "model")
                model = await client.upload_model(model_file, timeout=20)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(inspect_soon, app, "dataset")
                dataset = await client.add_dataset("builtin:digits", timeout=20)

            with pytest.raises(billhook.ApiError) as caught:
                await client.submit_job(model.id, [dataset.id], {"seed": -1, "steps": [{"method": "magic"}]},
                                        requirements={"speed": "<= 1"})  # fmt: skip
            assert caught.value.status == 422
            assert {fault.pointer for fault in caught.value.faults} >= {"/recipe/seed", "/requirements/speed"}

            job = await client.submit_job(
                model.id, [dataset.id], RECIPE, name="team/try", tags=["nightly"], device="cpu",
                requirements={"params_ratio": "<= 0.5"}, idempotency_key="once",
            )  # fmt: skip
            again = await client.submit_job(
                model.id, [dataset.id], RECIPE, name="team/try", tags=["nightly"], device="cpu",
                requirements={"params_ratio": "<= 0.5"}, idempotency_key="once",
            )  # fmt: skip
            assert (again.id, job.state, job.tags) == (job.id, "queued", ("nightly",))
            assert [each.id async for each in client.list_jobs(state="queued", name="team/", tag="nightly")] == [job.id]
            assert [each async for each in client.list_jobs(state="failed")] == []
            with pytest.raises(billhook.ApiError, match="queued") as caught:
                await client.get_report(job.id)
            assert (caught.value.status, caught.value.code) == (409, "job_not_succeeded")

            await anyio.to_thread.run_sync(work, job.id)
            updates = [update async for update in client.watch_job(job.id)]
            assert updates[-1].job.state == "succeeded"
            assert updates[-1].job.attempts[0].number == 1
            numbers = [event.seq for update in updates for event in update.events]
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) > 700
            assert (await client.wait_for_job(job.id)).results == {
                "ratios": {"params": 0.5}, "target_met": None, "drop_in": None, "requirements_met": True,
            }  # fmt: skip

            file = await client.download_artifact(job.id, "pruned.onnx", tmp_path / "out.onnx")
            assert file.path.read_bytes() == files["pruned.onnx"]
            assert {each.name: each.bytes for each in await client.list_artifacts(job.id)} == {
                name: len(content) for name, content in files.items()
            }
            assert await client.get_report_markdown(job.id) == "| é |"
            report = await client.get_report(job.id)
            assert (report.ratios, report.requirements[0].name) == ({"params": 0.5}, "params_ratio")
            shown = io.StringIO()
            Console(file=shown, width=120).print(tables.report(report))
            assert "p50   0.500 ms   0.500 ms" in shown.getvalue()
            with pytest.raises(billhook.ApiError) as caught:
                await client.cancel_job(job.id)
            assert caught.value.code == "job_terminal"

            with pytest.raises(billhook.ApiError) as caught:
                await client.model_from_job(job.id, "report.md")
            assert (caught.value.status, [fault.pointer for fault in caught.value.faults]) == (422, ["/artifact/name"])
            made: list[billhook.Model] = []

            async def take() -> None:
                made.append(await client.model_from_job(job.id, timeout=20))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
                tasks.start_soon(inspect_soon, app, "model")
            assert (made[0].state, made[0].bytes) == ("ready", len(files["pruned.onnx"]))

            cancelled = await client.submit_job(model.id, [dataset.id], RECIPE)
            assert (await client.retry_job(cancelled.id)).id == cancelled.id, "queued"
            assert (await client.cancel_job(cancelled.id)).state == "cancelled"
            again = await client.retry_job(cancelled.id)
            assert (again.cloned_from, again.state, again.recipe) == (cancelled.id, "queued", cancelled.recipe)
            clone = await client.clone_job(job.id, name="other", tags=[], requirements={"params_ratio": "<= 0.4"})
            assert (clone.cloned_from, clone.name, clone.tags, clone.recipe) == (job.id, "other", (), job.recipe)
            with pytest.raises(billhook.ApiError) as caught:
                await client.clone_job(job.id, recipe={"seed": -1, "steps": []})
            assert "/recipe/seed" in {fault.pointer for fault in caught.value.faults}

    anyio.run(main)


class Losing(httpx.ASGITransport):
    """Does what is asked, and loses the first answer to every address that is posted to."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(app)
        self.lost: list[tuple[str, int]] = []
        self.seen: list[tuple[str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        if request.method == "POST":
            self.seen.append((request.url.path, answer.headers.get("idempotent-replayed", "")))
            if request.url.path not in {path for path, _ in self.lost}:
                self.lost.append((request.url.path, answer.status_code))
                raise httpx.ReadError("lost")
        return answer


def test_no_lost_answer_makes_anything_twice(app: FastAPI, tmp_path: Path) -> None:
    model_file = tmp_path / "model.onnx"
    model_file.write_bytes(b"a model")

    async def main() -> None:
        losing = Losing(app)
        async with billhook.AsyncClient("http://127.0.0.1", SECRET, transport=losing, patience=20) as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(inspect_soon, app, "model")
                model = await client.upload_model(model_file, timeout=20)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(inspect_soon, app, "dataset")
                dataset = await client.add_dataset("builtin:digits", timeout=20)
            job = await client.submit_job(model.id, [dataset.id], RECIPE)
            assert (await client.cancel_job(job.id)).state == "cancelled"
            again = await client.retry_job(job.id)
            clone = await client.clone_job(job.id, name="clone")
            assert [each.id async for each in client.list_jobs()] == [clone.id, again.id, job.id]
        here = f"/v1/jobs/{job.id}"
        paths = ["/v1/models", "/v1/datasets", "/v1/jobs", f"{here}/cancel", f"{here}/retry", f"{here}/clone"]
        assert losing.lost == list(zip(paths, [201, 201, 202, 202, 202, 202], strict=True))
        assert losing.seen == [(path, replayed) for path in paths for replayed in ("", "true")]

    anyio.run(main)


def test_workers(app: FastAPI) -> None:
    async def main() -> None:
        who = Identity(new_id("wrk"), "box:1", "box", ("gpu", "gpu-0"), "cuda:0", None)
        with transaction(app.state.services.engine) as session:
            workers.beat(session, who, started_at=now_utc(), seconds=30, subject_id="job_of_another")
        async with connected(app) as client:
            (worker,) = [each async for each in client.list_workers()]
        assert (worker.id, worker.name, worker.queues, worker.device) == (who.id, "box:1", ("gpu", "gpu-0"), "cuda:0")
        assert (worker.state, worker.busy, worker.works_on, worker.version) == ("alive", True, None, None)

    anyio.run(main)


def test_recipes_and_strangers(app: FastAPI) -> None:
    async def main() -> None:
        async with connected(app) as client:
            names = [each.name async for each in client.list_recipes()]
            assert "filter_norm_half" in names
            assert (await client.get_recipe(names[0]))["version"] == 1
            assert json.dumps(await client.recipe_schema())
            assert (await client.check_recipe(RECIPE, device="cpu"))["steps"][0]["target"]["params"] == 0.5
            with pytest.raises(billhook.ApiError) as caught:
                await client.check_recipe({**RECIPE, "seed": -1}, requirements={"speed": "<= 1"}, device="tpu")
            found = {fault.pointer for fault in caught.value.faults}
            assert found == {"/recipe/seed", "/requirements/speed", "/device"}
            for lookup in (client.get_model("mdl_none"), client.get_dataset("ds_none"), client.get_job("job_none")):
                with pytest.raises(billhook.ApiError) as caught:
                    await lookup
                assert (caught.value.status, caught.value.code) == (404, "not_found")
        transport = httpx.ASGITransport(app)
        async with billhook.AsyncClient("http://127.0.0.1", "bh_stranger", transport=transport) as client:
            with pytest.raises(billhook.ApiError) as caught:
                await client.get_job("job_none")
            assert (caught.value.status, caught.value.code) == (401, "unauthenticated")

    anyio.run(main)
