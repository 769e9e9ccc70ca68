"""A `train` step and `weights: random`, alone and in front of pruning."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core import pipeline
from core.errors import CutRefused
from core.graph.architectures import build
from core.graph.batch_norm_folding import fold
from core.graph.export import write_onnx
from core.graph.importers import load
from core.graph.plans import replay
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from core.report import Report
from tests.core.fakes import Dying, Events, Killed, no_memory

DIGITS = DatasetInput(path=None, sha256=None, format="digits")
TRAIN = {"method": "train", "epochs": 4, "optimizer": {"name": "sgd", "lr": 0.05}}
PRUNE = {"method": "filter_norm", "target": {"macs": 0.7}, "ratio_per_round": 0.3, "every_epochs": 1,
         "fine_tune": {"epochs": 1}}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> ModelInput:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "untrained.onnx"
    network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).train()
    with torch.no_grad():
        network(network.example_input(32))
    write_onnx(network.eval(), path, opset=17)
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


def run(model: ModelInput, workdir: Path, events: Events | None = None, **changes: Any) -> Report:
    document = {"weights": "random", "steps": [TRAIN, PRUNE], "training": {"batch_size": 64},
                "export": {"channel_multiple": 4}}  # fmt: skip
    inputs = JobInputs(model=model, datasets=(DIGITS,), recipe=parse_recipe(document | changes), threads=1)
    return pipeline.run(inputs, workdir, Events() if events is None else events)


def weights_of(workdir: Path) -> dict[str, torch.Tensor]:
    return load_file(workdir / "out" / "weights.safetensors")


def test_from_random_weights_to_a_pruned_network(untrained: ModelInput, tmp_path: Path) -> None:
    events = Events()
    report = run(untrained, tmp_path, events)
    assert report.target_met
    assert report.variants["original"].test.accuracy < 0.3
    assert report.variants["pruned"].test.accuracy > 0.8
    epochs = [name for name, _ in events if "/epoch/" in name]
    assert epochs[:4] == [f"prune/step/0/epoch/{number}" for number in (1, 2, 3, 4)]
    assert epochs[-1] == "fine_tune/1/epoch/1"
    assert report.cost.epochs == len(epochs)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())["plan"]
    assert plan[0]["op"] == "reinitialise"
    replayed = replay(load(untrained), plan)
    assert {name: item.shape for name, item in replayed.state_dict().items()} == {
        name: item.shape for name, item in weights_of(tmp_path).items()
    }


@pytest.mark.parametrize("kill_at", [2, 4, 6])
def test_killed_it_ends_in_the_same_bits(kill_at: int, untrained: ModelInput, tmp_path: Path) -> None:
    run(untrained, tmp_path / "whole")
    with pytest.raises(Killed):
        run(untrained, tmp_path / "again", Dying(kill_at))
    run(untrained, tmp_path / "again")
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "again")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_alone_is_a_job(untrained: ModelInput, tmp_path: Path) -> None:
    report = run(untrained, tmp_path, steps=[TRAIN], baselines=["unpruned", "random"])
    assert (report.targets, report.target_met) == ([], True)
    assert report.variants["pruned"].params == report.variants["original"].params
    # the controls of a job that removes nothing are that job again: the same seed, the same data
    tests = {name: report.variants[name].test for name in ("pruned", "random")}
    assert tests["pruned"] == tests["random"]


def test_no_epochs_are_told(untrained: ModelInput, tmp_path: Path) -> None:
    report = run(untrained, tmp_path, steps=[TRAIN | {"epochs": 0}])
    assert "step 0 was skipped: it has no epochs" in report.warnings
    assert report.cost.epochs == 0


def test_inserted_batch_norms_go_with_it(untrained: ModelInput, tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    write_onnx(fold(load(untrained))[0], path, opset=17)
    model = ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")
    report = run(model, tmp_path / "run", steps=[TRAIN | {"epochs": 1}], batchnorm="insert")
    plan = json.loads((tmp_path / "run" / "out" / "plan.json").read_text())["plan"]
    assert [entry["op"] for entry in plan] == ["reinitialise", "insert", "merge"]
    assert replay(load(model), plan).state_dict().keys() == weights_of(tmp_path / "run").keys()
    assert all(check.passed for check in report.checks)


def test_a_plan_without_a_seed_is_refused(untrained: ModelInput) -> None:
    with pytest.raises(CutRefused) as error:
        replay(load(untrained), [{"op": "reinitialise"}])
    assert error.value.faults[0].pointer == "/0/seed"
