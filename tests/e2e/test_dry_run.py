"""A dry run on the real server, with its real child: asked while a job runs, given up when nobody waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from store.database import connect, reading
from store.records import DryRun
from tests.e2e.test_service import MODEL, RECIPE, ROOT, data_dir, http

__all__ = ["data_dir", "http"]  # fixtures


def rows(data_dir: Path) -> list[DryRun]:
    engine = connect(f"sqlite:///{data_dir}/billhook.db")
    with reading(engine) as session:
        found = list(session.scalars(select(DryRun)))
    engine.dispose()
    return found


def asked(data_dir: Path, folder: Path, recipe: dict[str, Any], *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "recipe.json").write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "billhook", "prune", str(MODEL), "--data", "builtin:digits", "--dry-run",
               "--recipe", str(folder / "recipe.json"), *more]  # fmt: skip
    environment = os.environ | {"BILLHOOK_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT / "client")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)


def inputs(http: httpx.Client) -> dict[str, Any]:
    model = http.post("/v1/models", params={"filename": MODEL.name, "wait": "60"}, content=MODEL.read_bytes()).json()
    dataset = http.post("/v1/datasets", params={"wait": "60"}, json={"uri": "builtin:digits"}).json()
    assert (model["state"], dataset["state"]) == ("ready", "ready")
    return {"model": model["id"], "datasets": [dataset["id"]]}


def test_what_a_job_would_come_to_is_told_while_another_runs(
    data_dir: Path, http: httpx.Client, tmp_path: Path
) -> None:
    long = {**RECIPE, "steps": [{"method": "train", "epochs": 1_000}]}
    job = http.post("/v1/jobs", json={**inputs(http), "recipe": long}).json()["id"]
    before = set(tmp_path.iterdir())
    result = asked(data_dir, tmp_path, RECIPE, "--json", "--require", "params_ratio<=0.01")
    assert result.returncode == 3, result.stderr
    told = json.loads(result.stdout)
    running = http.post(f"/v1/jobs/{job}/cancel")
    assert running.status_code == 202, "it was still running"
    report = told["dry_run"]
    assert report["target_met"]
    assert report["ratios"]["params_ratio"] <= 0.5
    assert report["ratios"]["macs_ratio"] <= 0.5
    assert told["requirements_met"] is False
    assert report["steps"][0]["layers"]
    assert report["estimate"]["images"] == 1259 * report["estimate"]["epochs"]
    assert 0 < report["estimate"]["estimated_seconds_low"] <= report["estimate"]["estimated_seconds_high"]
    assert report["latency"]["ratio"] > 0
    assert [item["id"] for item in http.get("/v1/jobs").json()["items"]] == [job]
    assert rows(data_dir) == []
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"recipe.json"}


def test_a_target_that_cannot_be_met_is_told_as_a_job_would(data_dir: Path, http: httpx.Client) -> None:
    recipe = {**RECIPE, "steps": [{**RECIPE["steps"][0], "target": {"macs": 0.0001}}]}
    answer = http.post("/v1/jobs", params={"dry_run": "true"}, json={**inputs(http), "recipe": recipe})
    assert (answer.status_code, answer.json()["code"]) == (422, "target_unreachable"), answer.text
    assert [fault["pointer"] for fault in answer.json()["faults"]] == ["/steps/0/target/macs"]
    assert rows(data_dir) == []


def test_a_client_that_hangs_up_leaves_no_child(data_dir: Path, http: httpx.Client) -> None:
    """The recipe measures a latency after each of many rounds: it would take minutes."""
    step = {**RECIPE["steps"][0], "signal": "weights", "ratio_per_round": 0.01, "target": {"latency": 0.01}}
    body = {**inputs(http), "recipe": {**RECIPE, "steps": [step], "export": {"channel_multiple": 1}}}
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/jobs", params={"dry_run": "true"}, json=body, timeout=httpx.Timeout(30, read=6))
    end = time.monotonic() + 20
    while rows(data_dir) or any(path.is_dir() for path in (data_dir / "work").iterdir()):
        assert time.monotonic() < end, "the child went on"
        time.sleep(0.2)
