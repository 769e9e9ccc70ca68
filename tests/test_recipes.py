"""Every shipped recipe validates, says what it is, and runs (cut down to a few epochs) on real data."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from core.graph.export import write_onnx
from core.graph.lowering import trace
from core.job import DatasetInput, JobInputs, ModelInput
from core.pipeline import run
from core.recipe import load_recipe, parse_recipe
from core.report import LatencyRatio
from tests.tiny_recipes import tiny

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
MODEL = ROOT / "examples" / "digits_resnet20.onnx"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_validates_and_describes_itself(path: Path) -> None:
    recipe = load_recipe(path.read_text())
    assert recipe.name == path.stem
    assert recipe.description
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe, "as the service gives it back, defaults and all"


def _images(path: Path) -> DatasetInput:
    """Without labels."""
    smooth = torch.nn.functional.interpolate(torch.rand(80, 3, 4, 4), scale_factor=4, mode="bilinear")
    np.savez(path, x_train=(smooth * 255).to(torch.uint8).numpy())
    return DatasetInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="npz")


def _autoencoder(path: Path) -> ModelInput:
    """One that gives back what it is given, and has filters that do nothing for it."""
    first, last = torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Conv2d(32, 3, 3, padding=1)
    for layer in (first, last):
        torch.nn.init.dirac_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    network = trace(torch.nn.Sequential(first, torch.nn.ReLU(), last).eval(), (3, 16, 16))
    write_onnx(network, path, opset=17)
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


def _by_bytes(original: Path, candidate: Path, inputs: object) -> LatencyRatio:
    """Stands for a measurement: whether a recipe runs must not depend on how busy this machine is."""
    ratio = candidate.stat().st_size / original.stat().st_size
    return LatencyRatio(ratio=ratio, low=ratio, high=ratio, windows=6, original_ms=1.0, candidate_ms=ratio)


# those of blocks run over HTTP: tests/e2e/test_block_recipes.py
@pytest.mark.parametrize(
    "path", [path for path in RECIPES if not path.stem.startswith("blocks_")], ids=lambda path: path.stem
)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.exports.measure_latency_ratio", _by_bytes)
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
    recipe = parse_recipe(tiny(yaml.safe_load(path.read_text())))
    if recipe.task == "reconstruction":
        model, data = _autoencoder(tmp_path / "model.onnx"), _images(tmp_path / "data.npz")
    else:
        model = ModelInput(path=MODEL, sha256=hashlib.sha256(MODEL.read_bytes()).hexdigest(), format="onnx")
        data = DatasetInput(path=None, sha256=None, format="digits")
    inputs = JobInputs(model=model, datasets=(data,), recipe=recipe)
    events: list[str] = []
    report = run(inputs, tmp_path / "job", lambda name, /, **body: events.append(name))
    assert report.target_met
    trains_only = all(step.method == "train" for step in inputs.recipe.steps)
    assert (report.variants["pruned"].macs < report.variants["original"].macs) != trains_only
    assert all(check.passed for check in report.checks)
    assert (tmp_path / "job" / "out" / "pruned.onnx").exists()
    assert any(name.startswith("prune/") for name in events)
    assert len(report.controls) == len(inputs.recipe.baselines)
