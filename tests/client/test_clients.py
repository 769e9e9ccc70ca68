"""The two classes, and servers that are none."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import billhook
from billhook.operations import dry_runs, jobs, keys, prune, uploads, workers
from tests.client.either import Either
from tests.client.fake_server import KEY, FakeServer

MODELS, DATASETS, JOBS = "POST /v1/models", "POST /v1/datasets", "POST /v1/jobs"


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
    returns = {name: str(getattr(value, "__annotations__", {}).get("return"))
               for module in (uploads, jobs, prune, keys, dry_runs, workers) for name, value in vars(module).items()
               if getattr(value, "__module__", "") == module.__name__ and name[0] != "_"}  # fmt: skip
    operations = {name for name, result in returns.items() if result.startswith(("Operation", "Stream"))}
    assert operations == set(sync) - {"close"}


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
