"""Every shipped recipe validates, says what it is, and runs (cut down to a few epochs) on real data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.job import DatasetInput, JobInputs, ModelInput
from core.pipeline import run
from core.recipe import load_recipe, parse_recipe
from core.report import LatencyRatio

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
MODEL = ROOT / "examples" / "digits_resnet20.onnx"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_validates_and_describes_itself(path: Path) -> None:
    recipe = load_recipe(path.read_text())
    assert recipe.name == path.stem
    assert recipe.description


def _tiny(document: dict[str, Any]) -> dict[str, Any]:
    """The same recipe with the fewest epochs; everything else as shipped."""
    for step in document["steps"]:
        if step["method"] == "train":
            step["epochs"] = 1
            continue
        step["every_epochs"] = 1
        step["ratio_per_round"] = 0.5
        step["fine_tune"]["epochs"] = 1
        step["target"].pop("max_accuracy_drop", None)  # one epoch of fine-tuning does not bring the accuracy back
    for baseline in document.get("baselines", []):
        if isinstance(baseline, dict):
            baseline["scratch"]["budget"] = 1
    return document


def _by_bytes(original: Path, candidate: Path, inputs: object) -> LatencyRatio:
    """Stands for a measurement: whether a recipe runs must not depend on how busy this machine is."""
    ratio = candidate.stat().st_size / original.stat().st_size
    return LatencyRatio(ratio=ratio, low=ratio, high=ratio, windows=6, original_ms=1.0, candidate_ms=ratio)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.exports.measure_latency_ratio", _by_bytes)
    inputs = JobInputs(
        model=ModelInput(path=MODEL, sha256=hashlib.sha256(MODEL.read_bytes()).hexdigest(), format="onnx"),
        datasets=(DatasetInput(path=None, sha256=None, format="digits"),),
        recipe=parse_recipe(_tiny(yaml.safe_load(path.read_text()))),
    )
    events: list[str] = []
    report = run(inputs, tmp_path, lambda name, /, **body: events.append(name))
    assert report.target_met
    trains_only = all(step.method == "train" for step in inputs.recipe.steps)
    assert (report.variants["pruned"].macs < report.variants["original"].macs) != trains_only
    assert all(check.passed for check in report.checks)
    assert (tmp_path / "out" / "pruned.onnx").exists()
    assert any(name.startswith("prune/") for name in events)
    assert len(report.controls) == len(inputs.recipe.baselines)
