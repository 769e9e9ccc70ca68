"""Jobs that score on the pruning split, and give it back to the fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core import pipeline
from core.data.datasets import load_dataset
from core.data.fit import check_fits
from core.errors import DatasetMismatch, RecipeInvalid
from core.graph.architectures import build
from core.graph.export import write_onnx
from core.graph.network import Network
from core.job import DatasetInput, DatasetOptions, JobInputs, ModelInput, Splits
from core.recipe import parse_recipe
from core.report import Report
from core.saliency.filter_norms import FilterNorms, activation_norms
from tests.core.fakes import Dying, Events, Killed, no_memory

DIGITS = DatasetInput(path=None, sha256=None, format="digits", options=DatasetOptions(splits=Splits(pruning=0.1)))
STEP = {"method": "filter_norm", "signal": "activations", "scores": "pruning_split", "ratio_per_round": 0.3,
        "every_epochs": 1, "target": {"macs": 0.6}}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)


def network() -> Network:
    torch.manual_seed(0)
    return build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelInput:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    write_onnx(network(), path, opset=17)
    return ModelInput(path=path, sha256="0" * 64, format="onnx")


def run(
    model: ModelInput,
    workdir: Path,
    events: Events | None = None,
    *,
    data: DatasetInput = DIGITS,
    fine_tune: dict[str, Any] | None = None,
    **step: Any,
) -> Report:
    document = {"steps": [{**STEP, "fine_tune": fine_tune or {"epochs": 1}, **step}], "allow_near_chance": True,
                "training": {"batch_size": 64}, "export": {"channel_multiple": 4}}  # fmt: skip
    inputs = JobInputs(model=model, datasets=(data,), recipe=parse_recipe(document), threads=1)
    return pipeline.run(inputs, workdir, Events() if events is None else events)


def test_scores_are_of_the_pruning_split_and_it_is_given_back(model: ModelInput, tmp_path: Path) -> None:
    events = Events()
    report = run(model, tmp_path, events, fine_tune={"epochs": 1, "pruning_split": "trained_on"})
    splits = report.inputs["datasets"][0]["splits"]
    train, pruning = splits["train"]["images"], splits["pruning"]["images"]
    assert [body["images"] for body in events.named("round/1/epoch/1")] == [train]
    assert [body["images"] for body in events.named("fine_tune/0/epoch/1")] == [train + pruning]
    assert not any("pruning split" in warning for warning in report.warnings)


def test_the_norms_are_those_of_a_look_in_evaluation_mode() -> None:
    net = network()
    data = load_dataset(DIGITS)
    data = check_fits(data, net.inputs, net.outputs, wants_pruning=True)
    layer = next(name for name, each in net.layers().items() if isinstance(each, torch.nn.Conv2d))
    norms = FilterNorms([layer], signal="activations", normalize="none")
    batches = [images for images, _ in data.batches("pruning", 50)]
    norms.look(net, batches)
    seen: list[torch.Tensor] = []
    handle = net.layers()[layer].register_forward_hook(
        lambda each, _, output: seen.append(activation_norms(each, output))
    )
    with torch.no_grad():
        for images in batches:
            net(images)
    handle.remove()
    torch.testing.assert_close(norms.totals[layer], torch.stack(seen).sum(0))
    assert norms.iterations == len(batches) > 1


@pytest.mark.parametrize("at", [2, 3, 4])
def test_killed_it_ends_in_the_same_bytes(model: ModelInput, tmp_path: Path, at: int) -> None:
    given_back = {"epochs": 2, "pruning_split": "trained_on"}
    run(model, tmp_path / "whole", fine_tune=given_back)
    with pytest.raises(Killed):
        run(model, tmp_path / "killed", Dying(at), fine_tune=given_back)
    run(model, tmp_path / "killed", fine_tune=given_back)
    whole, killed = ((tmp_path / name / "out" / "pruned.onnx").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


@pytest.mark.parametrize("step", [{}, {"scores": "training", "fine_tune": {"pruning_split": "trained_on"}}])
def test_a_dataset_without_one_is_refused(model: ModelInput, tmp_path: Path, step: dict[str, Any]) -> None:
    data = DatasetInput(path=None, sha256=None, format="digits")
    with pytest.raises(DatasetMismatch) as refused:
        run(model, tmp_path, data=data, **step)
    assert [fault.pointer for fault in refused.value.faults] == ["/splits/pruning"]


def test_a_control_that_wants_one_is_told_from_too() -> None:
    recipe = {"steps": [{**STEP, "scores": "training"}], "baselines": [{"scratch": {"pruning_split": "trained_on"}}]}
    assert parse_recipe(recipe).uses_pruning_split


def test_one_that_nobody_uses_is_told(model: ModelInput, tmp_path: Path) -> None:
    report = run(model, tmp_path, scores="training")
    assert any("neither scored on nor trained on" in warning for warning in report.warnings)


@pytest.mark.parametrize("signal", ["weights", "random"])
def test_signals_that_look_at_no_images_are_refused(signal: str) -> None:
    with pytest.raises(RecipeInvalid) as refused:
        parse_recipe({"steps": [{**STEP, "signal": signal}]})
    assert "looks at no images" in refused.value.faults[0].message
