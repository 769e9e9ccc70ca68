"""All commands but `prune`: what they print, and their exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from billhook.cli import tables
from tests.client.command import Command
from tests.client.fake_server import PRUNED, FakeServer, report


@pytest.fixture
def job_id(fake: FakeServer) -> str:
    job: str = fake.submit({"model": "mdl_1", "datasets": ["ds_1"], "recipe": "half"})["id"]
    return job


def test_models(run: Command, fake: FakeServer, model_file: Path) -> None:
    uploaded = run("models", "add", model_file, "--json").document
    assert run("models", "add", model_file, "--json").document == uploaded
    assert fake.count("POST /v1/models") == 1
    assert uploaded["id"] in run("models", "list").out
    assert [model["id"] for model in run("models", "list", "--json").document] == [uploaded["id"]]
    assert "params: 272474" in run("models", "show", uploaded["id"]).out
    assert run("models", "delete", uploaded["id"]).out == f"{uploaded['id']} was deleted\n"
    assert run("models", "list", "--json").document == []


def test_a_model_of_a_job(run: Command, fake: FakeServer, job_id: str, model_file: Path) -> None:
    made = run("models", "add", "--job", job_id, "--json").document
    assert (made["filename"], made["state"]) == ("pruned.onnx", "ready")
    other = run("models", "add", "--job", job_id, "--artifact", "checkpoint_step0_epoch0010.onnx", "--json").document
    assert other["id"] == made["id"], "the same bytes"
    sent = [json.loads(body) for line, body in zip(fake.log, fake.bodies, strict=True) if line == "POST /v1/models"]
    assert sent[1] == {"artifact": {"job": job_id, "name": "checkpoint_step0_epoch0010.onnx"}}
    assert run("models", "add", "--job", "job_nothing").code != 0
    for wrong in ([], [model_file, "--job", job_id], [model_file, "--artifact", "x.onnx"],
                  ["--job", job_id, "--architecture", "resnet20"]):  # fmt: skip
        ran = run("models", "add", *wrong)
        assert (ran.code, ran.out) == (2, ""), wrong


def test_nested_fields_are_readable() -> None:
    document = {
        "id": "mdl_1", "refusal": None, "tags": [], "options": {"architecture": None},
        "inputs": [{"name": "image", "shape": ["batch", 1, 8, 8]}, {"name": "other"}], "shapes": [[1, 8], [2, 8]],
        "reason": "two\nlines",
    }  # fmt: skip
    assert tables.fields(document).plain.splitlines() == [
        "id: mdl_1",
        "inputs:",
        "  - name: image",
        "    shape: batch, 1, 8, 8",
        "  - name: other",
        "shapes:",
        "  - 1, 8",
        "  - 2, 8",
        "reason:",
        "  two",
        "  lines",
    ]


def test_datasets(run: Command, fake: FakeServer, data_file: Path) -> None:
    first = run("datasets", "add", data_file, "--json").document
    other = run("datasets", "add", data_file, "--splits", '{"test": 0.5}', "--json").document
    assert first["id"] != other["id"]
    assert run("datasets", "add", "builtin:digits").code == 0
    assert [item["id"] for item in run("datasets", "list", "--limit", "2", "--json").document][1] == other["id"]
    assert "test: 0.5" in run("datasets", "show", other["id"]).out
    assert run("datasets", "delete", first["id"], "--json").document == {"deleted": first["id"]}
    assert run("datasets", "delete", first["id"]).code == 2


def test_a_dataset_that_the_server_fetches(run: Command, fake: FakeServer) -> None:
    uri = "https://data.example.com/d"
    more = ("--sha256", "ab" * 32, "--format", "parquet", "--columns", '{"label": "coarse"}', "--json")
    assert run("datasets", "add", uri, *more).code == 0
    assert json.loads(fake.bodies[fake.log.index("POST /v1/datasets")]) == {
        "uri": uri, "sha256": "ab" * 32, "format": "parquet", "columns": {"label": "coarse"},
    }  # fmt: skip


def test_recipes(run: Command) -> None:
    assert "Half of it." in run("recipes", "list").out
    assert run("recipes", "show", "half").out == "version: 1\nsteps:\n- method: filter_norm\n"
    assert run("recipes", "schema").document == {"type": "object"}
    assert run("recipes", "show", "other").code == 2


def test_jobs(run: Command, fake: FakeServer, job_id: str) -> None:
    assert job_id in run("jobs", "list").out
    assert run("jobs", "list", "--state", "failed", "--json").document == []
    assert run("jobs", "show", job_id, "--json").document["id"] == job_id
    assert "fine_tune/0/epoch/1" in run("jobs", "events", job_id).out
    assert [event["seq"] for event in run("jobs", "events", job_id, "--after", "1", "--json").document] == [2]
    assert run("jobs", "cancel", job_id).out == f"{job_id}: cancelling\n"
    assert run("jobs", "watch", job_id).code == 1
    ended = run("jobs", "cancel", job_id, "--json")
    assert (ended.code, ended.document["error"]["code"]) == (1, "job_terminal")


def test_retry_and_clone(run: Command, fake: FakeServer, job_id: str) -> None:
    assert run("jobs", "retry", job_id).out == f"{job_id}: queued\n"
    clone = run("jobs", "clone", job_id, "--name", "b", "--tag", "x", "--tag", "y", "--recipe", "half",
                "--require", "params_ratio<=0.5", "--device", "cpu", "--kind", "k", "--json").document  # fmt: skip
    assert (clone["cloned_from"], clone["name"], clone["tags"], clone["kind"]) == (job_id, "b", ["x", "y"], "k")
    assert (clone["requirements"], clone["device"]) == ({"params_ratio": "<= 0.5"}, "cpu")
    plain = run("jobs", "clone", job_id)
    assert plain.out.endswith(f": queued, from {job_id}\n")
    assert json.loads(fake.bodies[-1]) == {}
    fake.jobs[job_id]["state"] = "running"
    refused = run("jobs", "retry", job_id, "--json")
    assert (refused.code, refused.document["error"]["code"]) == (1, "job_running")
    fake.jobs[job_id]["state"] = "failed"
    assert run("jobs", "retry", job_id).out.endswith(f": queued, from {job_id}\n")
    assert run("jobs", "clone", "job_none").code == 2
    assert run("jobs", "clone", job_id, "--require", "fast").code == 2
    assert run("jobs", "clone", job_id, "--recipe", "none.yaml").code == 2


def test_watching_exits_as_prune_would(run: Command, fake: FakeServer, job_id: str) -> None:
    code, out, err = run("jobs", "watch", job_id)
    assert (code, out) == (0, f"{job_id} succeeded; see: billhook report {job_id}\n")
    assert "fine_tune, 75 %, 0:10 left, last epoch 2, validation accuracy 90.00%" in err
    fake.jobs[job_id]["results"] = {"requirements_met": False}
    assert run("jobs", "watch", job_id).code == 3


def test_report(run: Command, fake: FakeServer, job_id: str) -> None:
    early = run("report", job_id)
    assert early.code == 1
    assert "job_not_succeeded" in early.err
    run("jobs", "watch", job_id)
    assert "× 0.440" in run("report", job_id).out
    assert run("report", job_id, "--format", "markdown").out == "| a | b |\n"
    assert run("report", job_id, "--json").document == report(met=True)
    fake.requirements_met = False
    assert run("report", job_id).code == 3


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_the_report_of_a_failed_job_says_why_there_is_none(
    run: Command, fake: FakeServer, job_id: str, more: list[str]
) -> None:
    fault = {"pointer": "/preprocess/size", "message": "the model takes 32x32", "expected": "[32, 32]"}
    error = {"code": "dataset_mismatch", "message": "it does not fit", "faults": [fault]}
    fake.jobs[job_id].update(state="failed", error=error)
    ran = run("report", job_id, *more)
    assert ran.code == 1
    assert f"error: {job_id} failed: it does not fit\n  /preprocess/size: the model takes 32x32" in ran.err
    if more:
        assert ran.document["error"]["code"] == "dataset_mismatch"
        assert ran.document["job"]["id"] == job_id


def test_a_job_shows_first_what_became_of_it(run: Command, fake: FakeServer, job_id: str) -> None:
    error = {"code": "x", "message": "it does not fit", "faults": []}
    fake.jobs[job_id].update(recipe={"restore_best": True, "steps": [{"method": "m"}]}, tags=["t"])
    fake.jobs[job_id].update(state="failed", stage="baseline", progress=0.5, error=error, results={"met": False})
    lines = run("jobs", "show", job_id).out.splitlines()
    assert lines[:8] == [
        f"id: {job_id}", "state: failed", "stage: baseline", "progress: 0.5", "error:", "  code: x",
        "  message: it does not fit", "results:",
    ]  # fmt: skip
    assert lines[8] == "  met: false"
    assert "tags: t" in lines
    assert not any("restore_best" in line for line in lines)
    assert "  restore_best: true" in run("jobs", "show", job_id, "--recipe").out.splitlines()
    assert run("jobs", "show", job_id, "--json").document["recipe"]["restore_best"] is True


def test_a_model_shows_first_whether_it_was_taken(run: Command, fake: FakeServer, model_file: Path) -> None:
    fake.refusal = {"code": "operator_unknown", "message": "an operator is unknown", "faults": []}
    assert run("models", "add", model_file).code == 2
    (model,) = fake.models
    lines = run("models", "show", model).out.splitlines()
    assert lines[:4] == [f"id: {model}", "filename: model.onnx", "state: refused", "refusal:"]


@pytest.mark.parametrize(
    ("arguments", "help"),
    [("prune m.onnx", "billhook prune"), ("jobs frobnicate", "billhook jobs"), ("models list --bogus",
     "billhook models list"), ("frobnicate", "billhook")],
)  # fmt: skip
def test_bad_usage_names_the_help_that_helps(run: Command, arguments: str, help: str) -> None:
    assert run(*arguments.split()).err.endswith(f"\ntry: {help} --help\n")


def test_download(run: Command, fake: FakeServer, job_id: str, tmp_path: Path) -> None:
    run("jobs", "watch", job_id)
    assert run("download", job_id).code == 0
    assert run("download", job_id, "pruned.onnx", "--output", "other.onnx", "--json").document["bytes"] == len(PRUNED)
    assert (tmp_path / "pruned.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes() == PRUNED
    fake.etag = '"' + "0" * 64 + '"'
    damaged = run("download", job_id, "-o", "other.onnx", "--json")
    assert (damaged.code, damaged.document["error"]["code"]) == (1, "checksum_mismatch")
    assert (tmp_path / "other.onnx").read_bytes() == PRUNED
    assert run("download", job_id, "nothing").code == 2


def test_up_starts_the_installed_server(run: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: started.append((path, arguments)))
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    code, _, err = run("up")
    assert code == 2
    assert "billhook-server is not installed here" in err
    for folder in ("path", "bin"):
        server = tmp_path / folder / "billhook-server"
        server.parent.mkdir()
        server.touch(mode=0o755)
        run("up", "--port", "0")
        assert started[-1] == (str(server), [str(server), "--port", "0"])


def test_up_with_a_broken_server(run: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    (tmp_path / "billhook-server").write_bytes(b"no program")
    (tmp_path / "billhook-server").chmod(0o755)
    code, _, err = run("up")
    assert code == 1
    assert "Exec format error" in err
