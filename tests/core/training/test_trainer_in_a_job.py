"""Local fine-tuning, feature matching, precision and a compiler that fails, in a job of two pruning steps."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from core import pipeline
from core.errors import RecipeInvalid
from core.graph.architectures import CifarResNet
from core.graph.export import write_onnx
from core.graph.lowering import trace
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from core.report import Report
from tests.core.fakes import Dying, Events, Killed, no_memory

STEP = {"method": "filter_norm", "ratio_per_round": 0.3, "every_epochs": 1, "scope": "global",
        "fine_tune": {"epochs": 2, "local": {"left": 0, "right": 0, "grow": 1}}}  # fmt: skip
RECIPE = {
    "weights": "random",
    "training": {"batch_size": 256, "precision": "bfloat16", "distill": {"weight": 0.2, "features": 0.5}},
    "steps": [STEP | {"target": {"filters": 0.85}}, STEP | {"target": {"filters": 0.75}}],
    "baselines": [{"scratch": {"budget": 1, "distill": {"features": 0.1}}}],
    "export": {"channel_multiple": 4},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelInput:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "untrained.onnx"
    network = trace(CifarResNet(8, num_classes=10, in_channels=1), (1, 8, 8), format="safetensors").train()
    with torch.no_grad():
        network(network.example_input(32))
    write_onnx(network.eval(), path, opset=17)
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


def run(model: ModelInput, workdir: Path, events: Events | None = None, **changes: Any) -> Report:
    digits = DatasetInput(path=None, sha256=None, format="digits")
    inputs = JobInputs(model=model, datasets=(digits,), recipe=parse_recipe(RECIPE | changes), threads=1)
    return pipeline.run(inputs, workdir, Events() if events is None else events)


def test_all_of_it_together_and_after_a_crash(model: ModelInput, tmp_path: Path) -> None:
    events = Events()
    report = run(model, tmp_path / "a", events)
    assert report.target_met
    records = [(name, body) for name, body in events if "/epoch/" in name]
    assert all(body["features"] > 0 for _, body in records), "in the second step and the control, too"
    params = {name: body["trained_params"] for name, body in records if name.startswith("fine_tune/")}
    assert set(params) == {f"fine_tune/{step}/epoch/{epoch}" for step in (0, 1) for epoch in (1, 2)}
    assert all(params[f"fine_tune/{step}/epoch/1"] <= params[f"fine_tune/{step}/epoch/2"] for step in (0, 1))
    with pytest.raises(Killed):
        run(model, tmp_path / "b", Dying(6))
    again = run(model, tmp_path / "b")
    assert again.variants["pruned"].sha256 == report.variants["pruned"].sha256
    assert again.variants["scratch"].sha256 == report.variants["scratch"].sha256


def test_a_compiler_that_fails_is_in_the_report(
    model: ModelInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(module: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr("core.training.forward.BACKEND", broken)
    report = run(model, tmp_path, training={"batch_size": 512, "compile": True}, baselines=[],
                 steps=[{"method": "train", "epochs": 1}])  # fmt: skip
    assert any("prune/step/0 ran uncompiled" in warning for warning in report.warnings)


def test_a_precision_that_the_device_has_not_is_refused_before_anything_is_read(
    model: ModelInput, tmp_path: Path
) -> None:
    events = Events()
    with pytest.raises(RecipeInvalid) as error:
        run(model, tmp_path, events, training={"precision": "float16"})
    assert [fault.pointer for fault in error.value.faults] == ["/training/precision"]
    assert events == []
