"""Each recipe that removes blocks, over HTTP on the real server, cut down: all are submitted, then waited for."""

from __future__ import annotations

import time
from typing import Any

import httpx
import onnx
import pytest

from tests.e2e.test_dry_run import inputs
from tests.e2e.test_service import MODEL, ROOT, data_dir, http
from tests.tiny_recipes import tiny

__all__ = ["data_dir", "http"]  # fixtures

NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("blocks_*.yaml"))
LEFT = 4
"""Of nine blocks, where a half may remain at most."""


@pytest.fixture(scope="module")
def jobs(http: httpx.Client) -> dict[str, str]:
    """The id of a job of each recipe."""
    given, found = inputs(http), {}
    for name in NAMES:
        recipe = tiny(http.get(f"/v1/recipes/{name}").json())
        answer = http.post("/v1/jobs", json={**given, "recipe": recipe, "name": f"blocks/{name}"})
        assert answer.status_code == 202, answer.text
        found[name] = answer.json()["id"]
    return found


def ended(http: httpx.Client, job: str) -> dict[str, Any]:
    end = time.monotonic() + 900
    while time.monotonic() < end:
        found: dict[str, Any] = http.get(f"/v1/jobs/{job}", params={"wait": "30"}).json()
        if found["state"] in ("succeeded", "failed", "cancelled"):
            return found
    pytest.fail(f"the job has not ended: {found['state']}, {found['stage']}, {found['progress']}")


def test_there_are_eleven() -> None:
    assert len(NAMES) == 11


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_over_http(name: str, jobs: dict[str, str], http: httpx.Client) -> None:
    job = ended(http, jobs[name])
    assert job["state"] == "succeeded", job
    report = http.get(f"/v1/jobs/{job['id']}/report").json()
    assert report["target_met"]
    assert all(check["passed"] for check in report["checks"])
    assert min(point["blocks"] for point in report["front"]) == report["front"][-1]["blocks"] == LEFT
    assert report["drop_in"] != name.startswith("blocks_transfer")
    pruned, original = (report["variants"][variant] for variant in ("pruned", "original"))
    assert pruned["params"] < original["params"]
    assert pruned["macs"] < original["macs"]
    artifact = http.get(f"/v1/jobs/{job['id']}/artifacts/pruned.onnx")
    model = onnx.load_model_from_string(artifact.content)
    onnx.checker.check_model(model, full_check=True)
    before = onnx.load(MODEL)
    assert [item.name for item in model.graph.input] == [item.name for item in before.graph.input]
    additions = [sum(node.op_type == "Add" for node in each.graph.node) for each in (before, model)]
    assert additions == [9, LEFT]
    plan = http.get(f"/v1/jobs/{job['id']}/artifacts/plan.json").json()["plan"]
    assert plan
    if name == "blocks_then_filters":
        assert {entry["op"] for entry in plan} == {"bypass", "cut"}
        assert pruned["macs"] <= 0.3 * original["macs"]
