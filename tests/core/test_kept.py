"""`checkpoint_every`: files of a training under way, the same after a crash, and what may not be asked for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from core import pipeline
from core.errors import RecipeInvalid
from core.graph.architectures import build
from core.graph.batch_norm_folding import fold
from core.graph.export import write_onnx
from core.graph.importers import load
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from core.report import Report
from core.step_settings import Train
from tests.core.fakes import Dying, Events, Killed, no_memory

DIGITS = DatasetInput(path=None, sha256=None, format="digits")
TRAIN = {"method": "train", "epochs": 5, "checkpoint_every": 2, "optimizer": {"name": "sgd", "lr": 0.05}}
PRUNE = {"method": "filter_norm", "target": {"macs": 0.7}, "ratio_per_round": 0.3, "every_epochs": 1,
         "fine_tune": {"epochs": 1}}  # fmt: skip
NAMES = [f"checkpoint_step0_epoch000{epoch}.onnx" for epoch in (2, 4, 5)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelInput:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).train()
    with torch.no_grad():
        network(network.example_input(32))
    write_onnx(network.eval(), path, opset=17)
    return read(path)


def read(path: Path) -> ModelInput:
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


def run(model: ModelInput, workdir: Path, events: Events | None = None, **changes: Any) -> Report:
    document = {"weights": "random", "steps": [TRAIN], "training": {"batch_size": 64, "restore_best": False},
                "export": {"channel_multiple": 4}}  # fmt: skip
    inputs = JobInputs(model=model, datasets=(DIGITS,), recipe=parse_recipe(document | changes), threads=1)
    return pipeline.run(inputs, workdir, Events() if events is None else events)


def kept(workdir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((workdir / "out").glob("checkpoint*"))}


def test_each_is_the_network_of_its_epoch(model: ModelInput, tmp_path: Path) -> None:
    events = Events()
    report = run(model, tmp_path, events, baselines=["random"], steps=[TRAIN, PRUNE])
    assert [item.name for item in report.checkpoints] == NAMES
    files = kept(tmp_path)
    assert list(files) == NAMES, "a control keeps nothing"
    for item in report.checkpoints:
        assert (item.step, item.bytes) == (0, len(files[item.name]))
        assert item.sha256 == hashlib.sha256(files[item.name]).hexdigest()
        assert item.parity <= 1e-5
        assert item.validation_accuracy == events.named(f"step/0/epoch/{item.epoch}")[0]["validation_accuracy"]
        theirs, ours = onnx.load(model.path), onnx.load_from_string(files[item.name])
        assert (ours.graph.output, ours.opset_import) == (theirs.graph.output, theirs.opset_import)
    assert [body["file"] for body in events.named("artifact")] == [f"out/{name}" for name in NAMES]
    assert events.not_taken() == []
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert all(f"`{name}`" in markdown for name in NAMES)


def test_the_last_one_is_what_the_training_ends_with(model: ModelInput, tmp_path: Path) -> None:
    run(model, tmp_path)
    last, result = load(read(tmp_path / "out" / NAMES[-1])), load(read(tmp_path / "out" / "pruned.onnx"))
    theirs = result.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in last.state_dict().items())
    first = load(read(tmp_path / "out" / NAMES[0])).state_dict()
    assert not all(torch.equal(tensor, theirs[name]) for name, tensor in first.items())


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("kill_at", [1, 2])
def test_killed_it_keeps_the_same_bytes(
    every: int, kill_at: int, model: ModelInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far the run's own checkpoint lies back. As on a service, the second attempt has only that."""
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", every)
    whole = run(model, tmp_path / "whole")
    first, second = Dying(kill_at), Events()
    with pytest.raises(Killed):
        run(model, tmp_path / "again", first)
    stored = kept(tmp_path / "again")
    assert sorted(f"out/{name}" for name in stored) == [body["file"] for body in first.named("artifact")]
    for path in (tmp_path / "again" / "out").iterdir():
        path.unlink()
    report = run(model, tmp_path / "again", second)
    assert report.checkpoints == whole.checkpoints
    assert {**stored, **kept(tmp_path / "again")} == kept(tmp_path / "whole")


def test_inserted_batch_norms_are_folded(model: ModelInput, tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    write_onnx(fold(load(model))[0], path, opset=17)
    run(read(path), tmp_path, batchnorm="insert", steps=[TRAIN | {"epochs": 1, "checkpoint_every": 1}])
    file = load(read(tmp_path / "out" / "checkpoint_step0_epoch0001.onnx"))
    assert file.layers().keys() == load(read(path)).layers().keys()


def test_the_report_without_any_says_nothing(model: ModelInput, tmp_path: Path) -> None:
    report = run(model, tmp_path, steps=[TRAIN | {"epochs": 1, "checkpoint_every": None}])
    assert (report.checkpoints, kept(tmp_path)) == ([], {})
    assert "Checkpoints" not in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["steps"][0]["checkpoint_every"] is None


def test_one_file_must_hold_it(model: ModelInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.kept.MOST_INLINE_BYTES", 1_000)
    with pytest.raises(RecipeInvalid) as error:
        run(model, tmp_path)
    assert error.value.faults[0].pointer == "/steps/0/checkpoint_every"


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"epochs_budget": 5, "steps": [TRAIN | {"epochs": 8, "checkpoint_every": 4}]}, [4, 5]),
        ({"epochs_budget": 1, "steps": [TRAIN | {"epochs": 8, "checkpoint_every": 4}]}, [1]),
    ],
)  # fmt: skip
def test_the_last_epoch_is_kept_wherever_it_is(
    model: ModelInput, tmp_path: Path, changes: dict[str, Any], epochs: list[int]
) -> None:
    assert [each.epoch for each in run(model, tmp_path, **changes).checkpoints] == epochs


def test_the_epoch_at_which_a_training_is_stopped_is_kept(model: ModelInput, tmp_path: Path) -> None:
    slow = {"epochs": 30, "checkpoint_every": 30, "early_stop": 1, "optimizer": {"name": "sgd", "lr": 1e-9}}
    report = run(model, tmp_path, steps=[TRAIN | slow])
    assert [each.epoch for each in report.checkpoints] == [report.cost.epochs]
    assert report.cost.epochs < 30


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"checkpoint_every": 6}, "6 epochs are never done: the step has 5"),
        ({"epochs": 0, "checkpoint_every": 1}, "1 epochs are never done: the step has 0"),
        ({"checkpoint_every": 0}, "out of range"),
        ({"checkpoint_every": True}, "true is given"),
    ],
)
def test_what_may_not_be_asked_for(step: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeInvalid) as error:
        parse_recipe({"steps": [TRAIN | step]})
    (fault,) = error.value.faults
    assert fault.pointer == "/steps/0/checkpoint_every"
    assert said in fault.message


def test_two_hundred_files_at_most() -> None:
    step = TRAIN | {"epochs": 100, "checkpoint_every": 1}
    steps = parse_recipe({"steps": [step, step]}).steps
    assert [item.checkpoints for item in steps if isinstance(item, Train)] == [100, 100]
    with pytest.raises(RecipeInvalid) as error:
        parse_recipe({"steps": [step, step, TRAIN]})
    (fault,) = error.value.faults
    assert fault.pointer == "/steps"
    assert "203 files; at most 200" in fault.message
