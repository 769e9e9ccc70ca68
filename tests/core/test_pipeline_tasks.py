"""Whole jobs without labels: a network imitates the original, an autoencoder gives images back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from core import pipeline
from core.errors import BaselineNearChance, DatasetMismatch
from core.graph.export import write_onnx
from core.graph.lowering import trace
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from core.report import Report
from core.report_markdown import to_markdown
from tests.core.fakes import Dying, Events, Killed, no_memory
from tests.core.two_heads import two_heads_file

STEP = {"method": "filter_norm", "target": {"params": 0.6}, "ratio_per_round": 0.25, "every_epochs": 1,
        "fine_tune": {"epochs": 3}}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)


def images(path: Path, size: int, channels: int, number: int = 160) -> DatasetInput:
    """Smooth images without labels."""
    draws = np.random.default_rng(0).random((number, channels, size // 4, size // 4), dtype=np.float32)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(draws), scale_factor=4, mode="bilinear")
    np.savez(path, x_train=(smooth * 255).to(torch.uint8).numpy())
    return DatasetInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="npz")


def run(model: ModelInput, data: DatasetInput, workdir: Path, events: Events | None = None, **changes: Any) -> Report:
    document = {"steps": [STEP], "training": {"batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.02}},
                "export": {"channel_multiple": 2}}  # fmt: skip
    inputs = JobInputs(model=model, datasets=(data,), recipe=parse_recipe(document | changes), threads=1)
    return pipeline.run(inputs, workdir, Events() if events is None else events)


def test_a_network_with_several_outputs_is_imitated_without_labels(tmp_path: Path) -> None:
    model, data = two_heads_file(tmp_path / "model.onnx"), images(tmp_path / "data.npz", 8, 1)
    events = Events()
    recipe = {"task": "imitation", "baselines": ["random", "scratch"], "requirements": {"cosine": ">= 0.1"}}
    report = run(model, data, tmp_path / "job", events, **recipe)
    original, pruned = report.variants["original"].test, report.variants["pruned"].test
    assert original.measures["relative_error"] < 1e-5
    assert 0 < pruned.measures["relative_error"] < 1
    assert pruned.accuracy == pytest.approx(1 - pruned.measures["relative_error"])
    assert report.ratios["accuracy_drop"] == pytest.approx(original.accuracy - pruned.accuracy, abs=1e-9)
    assert report.requirements[0].passed
    assert report.confusion is None
    assert {control.name for control in report.controls} == {"random", "scratch"}
    assert all(item.accuracy_difference_low <= item.accuracy_difference_high for item in report.controls)
    assert events.not_taken() == []
    # by hand, from the two files alone
    pixels = np.load(tmp_path / "data.npz")["x_train"].astype(np.float32) / 255
    sessions = [onnxruntime.InferenceSession(path) for path in (model.path, tmp_path / "job" / "out" / "pruned.onnx")]
    wanted, said = ([each.astype(np.float64) for each in session.run(None, {"x": pixels})] for session in sessions)
    everywhere = np.mean([((a - b) ** 2).sum() / (b**2).sum() for a, b in zip(said, wanted, strict=True)]) ** 0.5
    assert pruned.measures["relative_error"] == pytest.approx(everywhere, rel=0.5)  # test is a part of these images
    markdown = to_markdown(report)
    assert "relative error" in markdown
    assert "accuracy" not in markdown.partition("### Latency")[0]


def test_a_killed_imitation_ends_in_the_same_bytes(tmp_path: Path) -> None:
    model, data = two_heads_file(tmp_path / "model.onnx"), images(tmp_path / "data.npz", 8, 1)
    run(model, data, tmp_path / "whole", task="imitation")
    with pytest.raises(Killed):
        run(model, data, tmp_path / "killed", Dying(3), task="imitation")
    run(model, data, tmp_path / "killed", task="imitation")
    whole, killed = ((tmp_path / name / "out" / "pruned.onnx").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(24, 24, 3, padding=1)
        self.up = nn.ConvTranspose2d(24, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.up(torch.relu(self.middle(torch.relu(self.down(x))))))


@pytest.fixture
def autoencoder(tmp_path: Path) -> ModelInput:
    torch.manual_seed(0)
    path = tmp_path / "autoencoder.onnx"
    write_onnx(trace(Autoencoder().eval(), (3, 16, 16)), path, opset=17)
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


def test_an_autoencoder_is_trained_and_pruned(autoencoder: ModelInput, tmp_path: Path) -> None:
    data = images(tmp_path / "data.npz", 16, 3)
    train = {"method": "train", "epochs": 15, "optimizer": {"name": "adamw", "lr": 0.01}}
    step = STEP | {"fine_tune": {"epochs": 5, "optimizer": {"name": "adamw", "lr": 0.005}}}
    report = run(autoencoder, data, tmp_path / "job", task="reconstruction", steps=[train, step],
                 weights="random", baselines=["unpruned"], requirements={"ssim": ">= 0.3", "l1": "<= 0.2"})  # fmt: skip
    original, pruned = report.variants["original"].test, report.variants["pruned"].test
    assert pruned.measures["ssim"] == pruned.accuracy > original.accuracy
    assert pruned.measures["l1"] < original.measures["l1"]
    assert report.requirements_met
    assert "SSIM" in to_markdown(report)
    recipe = json.loads((tmp_path / "job" / "out" / "recipe.json").read_bytes())
    assert (recipe["task"], recipe["reconstruction"]) == ("reconstruction", {"ssim_weight": 0.5})


def test_an_autoencoder_that_gives_nothing_back_is_stopped(autoencoder: ModelInput, tmp_path: Path) -> None:
    with pytest.raises(BaselineNearChance, match="their own mean colour"):
        run(autoencoder, images(tmp_path / "data.npz", 16, 3), tmp_path / "job", task="reconstruction")


def test_a_classifier_needs_labels(tmp_path: Path) -> None:
    model, data = two_heads_file(tmp_path / "model.onnx"), images(tmp_path / "data.npz", 8, 1)
    with pytest.raises(DatasetMismatch) as refused:
        run(model, data, tmp_path / "job")
    assert "the dataset has no labels" in [fault.message for fault in refused.value.faults]
