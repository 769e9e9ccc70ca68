"""A dry run: what it tells of a job, held against the job itself; what it refuses; and that it leaves nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from core import pipeline
from core.data.datasets import load_dataset
from core.data.fit import check_fits
from core.dry_run import dry_run
from core.dry_run_foreseen import foreseen
from core.dry_run_report import DryRunReport, Size
from core.errors import BaselineNearChance, NothingRemoved, RecipeInvalid, TargetUnreachable
from core.graph.architectures import build
from core.graph.batch_norm_folding import fold
from core.graph.export import write_onnx
from core.graph.importers import load
from core.job import DatasetInput, JobInputs, ModelInput
from core.progress import Progress
from core.recipe import parse_recipe
from core.report import Report
from core.training.trainer import Trainer
from core.training_settings import CosineSchedule, Sgd, Training
from tests.core.fakes import Events, empty_state, no_memory

DIGITS = DatasetInput(path=None, sha256=None, format="digits")
TRAIN = 1259
STEP: dict[str, Any] = {"method": "filter_norm", "ratio_per_round": 0.3, "every_epochs": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.5)
    monkeypatch.setattr("core.measure.latency_ratio.WINDOW_SECONDS", 0.01)
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)


def saved(folder: Path, epochs: int) -> ModelInput:
    network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8))
    data = check_fits(load_dataset(DIGITS), network.inputs, network.outputs)
    events = Events()
    trainer = Trainer(data, training=Training(), device=torch.device("cpu"), seed=0, original_macs=1, emit=events,
                      progress=Progress(events))  # fmt: skip
    training = Training(optimizer=Sgd(lr=0.05), schedule=CosineSchedule(), batch_size=64)
    trainer.fit(network, training=training, epochs=epochs, label="train", state=empty_state(folder))
    path = folder / "digits.onnx"
    write_onnx(network, path, opset=17)
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelInput:
    """small_cnn after two epochs of the digits."""
    return saved(tmp_path_factory.mktemp("model"), 2)


def job(model: ModelInput, dataset: DatasetInput = DIGITS, requirements: Any = None, **recipe: Any) -> JobInputs:
    document = {
        "training": {"optimizer": {"name": "sgd", "lr": 0.02}, "batch_size": 64},
        "steps": [{**STEP, "target": {"macs": 0.5}, "fine_tune": {"epochs": 2}}],
        **recipe,
    }
    return JobInputs.model_validate(
        {"model": model, "datasets": (dataset,), "recipe": parse_recipe(document), "threads": 1,
         "requirements": requirements or {}}
    )  # fmt: skip


def both(inputs: JobInputs, folder: Path) -> tuple[DryRunReport, Report]:
    """The dry run and the job."""
    return dry_run(inputs, folder / "dry", Events()), pipeline.run(inputs, folder / "job", Events())


def test_what_a_dry_run_tells_is_what_the_job_does(model: ModelInput, tmp_path: Path) -> None:
    """Of a recipe that decides all but which filters go: each target holds only once the whole last round is cut."""
    steps = [
        {"method": "train", "epochs": 1},
        {**STEP, "ratio_per_round": 0.25, "target": {"macs": 0.43}, "fine_tune": {"epochs": 1, "policy": {"every": 1}}},
        {
            **STEP,
            "ratio_per_round": 0.5,
            "signal": "activations",
            "target": {"macs": 0.236},
            "fine_tune": {"epochs": 2},
        },
    ]
    inputs = job(model, steps=steps, baselines=["unpruned", "random", {"scratch": {"budget": "equal_epochs"}}])
    told, report = both(inputs, tmp_path)
    costs = {"steps": report.cost, **{control.name: control.cost for control in report.controls}}
    ledger = {name: (cost.epochs, cost.images, cost.epoch_params) for name, cost in costs.items()}
    assert {each.part: (each.epochs, each.images, each.epoch_params) for each in told.estimate.spending} == ledger
    assert told.estimate.images == TRAIN * told.estimate.epochs
    assert told.estimate.epochs == told.estimate.epochs_low == told.estimate.epochs_high
    pruned = report.variants["pruned"]
    assert told.pruned.model_dump() == {name: getattr(pruned, name) for name in Size.model_fields}
    original = report.variants["original"]
    assert (told.original.params, told.original.file_bytes) == (original.params, original.file_bytes)
    assert told.target_met
    kept = {layer.name: layer.channels_after for layer in report.layers if layer.params_after != layer.params_before}
    last = {layer.name: layer.channels_after for step in told.steps for layer in step.layers}
    assert last == kept
    rounds = [(step.step, step.method, step.rounds) for step in told.steps]
    assert rounds == [(0, "train", 0), (1, "filter_norm", 2), (2, "filter_norm", 1)]
    assert told.steps[-1].after == told.pruned
    assert told.latency is not None
    assert told.latency.low <= told.ratios["latency_ratio"] <= told.latency.high
    estimate = told.estimate
    assert estimate.estimated_seconds is not None
    assert estimate.estimated_seconds_low is not None
    assert estimate.estimated_seconds_high is not None
    assert 0 < estimate.estimated_seconds_low <= estimate.estimated_seconds <= estimate.estimated_seconds_high
    assert sum(each.estimated_seconds or 0 for each in estimate.spending) < estimate.estimated_seconds


def test_shapes_of_the_layers_before_and_after(model: ModelInput, tmp_path: Path) -> None:
    told = dry_run(job(model), tmp_path, Events())
    layers = {layer.name: layer for layer in told.steps[0].layers}
    network = load(model)
    for name, layer in layers.items():
        weight = network.layers()[name].get_parameter("weight")
        assert layer.weight_before == list(weight.shape)
        assert layer.weight_after[0] == layer.channels_after <= layer.channels_before == layer.weight_before[0]
        assert layer.params_after < layer.params_before
    assert (
        sum(layer.macs_before - layer.macs_after for layer in layers.values()) == told.original.macs - told.pruned.macs
    )
    assert told.pruned.macs <= 0.5 * told.original.macs


def test_nothing_is_trained_and_nothing_written(model: ModelInput, tmp_path: Path) -> None:
    before = model.path.read_bytes()
    seeds = torch.random.get_rng_state()
    events = Events()
    first = dry_run(job(model), tmp_path, events)
    assert model.path.read_bytes() == before
    assert not (tmp_path / "state").exists()
    assert not (tmp_path / "out").exists()
    assert events.not_taken() == []
    torch.random.set_rng_state(seeds)
    again = dry_run(job(model), tmp_path, Events())
    assert again.steps == first.steps
    assert DryRunReport.model_validate_json(first.model_dump_json()) == first


def test_requirements_that_can_be_judged(model: ModelInput, tmp_path: Path) -> None:
    wanted = {"macs_ratio": "<= 0.5", "accuracy_drop": "<= 0.01", "peak_memory_ratio": "<= 0.9",
              "latency_ratio": "<= 1000"}  # fmt: skip
    told = dry_run(job(model, requirements=wanted), tmp_path, Events())
    holds = {each.name: each.holds for each in told.requirements}
    assert holds == {"macs_ratio": True, "accuracy_drop": None, "peak_memory_ratio": None, "latency_ratio": True}
    assert told.requirements_met is None
    assert {each.name for each in told.requirements if each.note} == {"accuracy_drop", "peak_memory_ratio"}
    for_sure = dry_run(job(model, requirements={**wanted, "params_ratio": "<= 0.01"}), tmp_path, Events())
    assert for_sure.requirements_met is False
    assert dry_run(job(model, requirements={"macs_ratio": "<= 0.5"}), tmp_path, Events()).requirements_met is True


def test_a_latency_around_what_is_asked_is_too_close_to_call(model: ModelInput, tmp_path: Path) -> None:
    told = dry_run(job(model), tmp_path, Events())
    assert told.latency is not None
    latency = told.latency.model_copy(update={"low": 0.4, "ratio": 0.5, "high": 0.6})
    requirements = job(model, requirements={"latency_ratio": "<= 0.55"}).requirements
    (found,) = foreseen(requirements, {"latency_ratio": 0.5}, latency)
    assert (found.holds, found.value, found.note) == (None, 0.5, "too close to call: measured 0.4 to 0.6")


def test_what_the_estimate_cannot_know_is_between_its_ends(model: ModelInput, tmp_path: Path) -> None:
    threshold = {"epochs": 3, "policy": {"threshold": 0.01}, "early_stop": 1, "noise": {"eta": 0.1}}
    steps = [{**STEP, "target": {"macs": 0.3, "max_accuracy_drop": 0.01}, "fine_tune": threshold}]
    told = dry_run(job(model, steps=steps), tmp_path, Events())
    rounds = told.steps[0].rounds
    assert rounds > 1
    assert told.estimate.epochs == rounds + 3
    assert told.estimate.epochs_low == rounds + 2  # the best epoch is the first, and the next one ends it
    assert told.estimate.epochs_high == rounds + 3 * rounds
    assert told.target_met  # the guard is not in it
    text = " ".join(told.assumptions)
    for word in ("max_accuracy_drop 0.01", "threshold 0.01", "stop early", "noise"):
        assert word in text
    assert told.recipe["steps"][0]["target"]["max_accuracy_drop"] == 0.01  # type: ignore[index, call-overload]


def test_a_budget_of_epochs(model: ModelInput, tmp_path: Path) -> None:
    whole = dry_run(job(model), tmp_path, Events())
    told = dry_run(job(model, epochs_budget=whole.estimate.epochs - 1), tmp_path, Events())
    assert told.estimate.epochs == whole.estimate.epochs - 1
    assert any(f"epochs_budget is {told.estimate.epochs}" in warning for warning in told.warnings)


def test_what_would_run_elsewhere_is_not_timed(model: ModelInput, tmp_path: Path) -> None:
    training = {"batch_size": 64, "precision": "float16"}  # which a CPU has not
    told = dry_run(job(model, training=training), tmp_path, Events(), timed=False)
    assert told.estimate.estimated_seconds is None
    assert [each.estimated_seconds for each in told.estimate.spending] == [None]
    assert told.estimate.epochs > 0
    assert "GPU" in told.assumptions[-1]
    with pytest.raises(RecipeInvalid):
        dry_run(job(model, training=training), tmp_path, Events())


def test_a_recipe_that_only_trains(model: ModelInput, tmp_path: Path) -> None:
    steps = [{"method": "train", "epochs": 3, "checkpoint_every": 1}]
    told = dry_run(job(model, steps=steps, requirements={"latency_ratio": "<= 0.5"}), tmp_path, Events())
    assert (told.latency, told.estimate.epochs, told.steps[0].layers) == (None, 3, [])
    assert told.pruned.params == told.original.params
    assert told.requirements[0].note == "not measured: nothing is cut"


def test_random_weights_and_a_new_head(model: ModelInput, tmp_path: Path) -> None:
    steps = [{"method": "train", "epochs": 1}, {**STEP, "target": {"macs": 0.5}, "fine_tune": {"epochs": 1}}]
    told = dry_run(job(model, steps=steps, head="replace", weights="random"), tmp_path, Events())
    assert told.target_met
    assert told.estimate.epochs >= 3


def test_inserted_norms_are_not_in_the_file(model: ModelInput, tmp_path: Path) -> None:
    """Nor in the counts: the sizes are those of the network as the job exports it."""
    write_onnx(fold(load(model))[0], tmp_path / "plain.onnx", opset=17)
    content = (tmp_path / "plain.onnx").read_bytes()
    plain = ModelInput(path=tmp_path / "plain.onnx", sha256=hashlib.sha256(content).hexdigest(), format="onnx")
    steps = [{**STEP, "ratio_per_round": 0.25, "target": {"macs": 0.43}, "fine_tune": {"epochs": 1}}]
    told, report = both(job(plain, steps=steps, batchnorm="insert"), tmp_path)
    for size, variant in ((told.original, "original"), (told.pruned, "pruned")):
        assert size.model_dump() == {name: getattr(report.variants[variant], name) for name in Size.model_fields}


# --- refusals: as the job's ------------------------------------------------------------------------------------------


def test_a_target_that_cannot_be_met(model: ModelInput, tmp_path: Path) -> None:
    steps = [{**STEP, "target": {"macs": 0.0001}, "fine_tune": {"epochs": 1}}]
    errors = []
    for run in (dry_run, pipeline.run):
        with pytest.raises(TargetUnreachable) as caught:
            run(job(model, steps=steps), tmp_path / run.__name__, Events())
        errors.append(caught.value.as_dict())
    assert errors[0] == errors[1]


def test_nothing_that_can_be_removed(model: ModelInput, tmp_path: Path) -> None:
    with pytest.raises(NothingRemoved):
        dry_run(job(model, export={"channel_multiple": 1024}), tmp_path, Events())


def test_an_original_that_only_guesses(tmp_path: Path) -> None:
    untrained = saved(tmp_path, 0)
    errors = []
    for run in (dry_run, pipeline.run):
        with pytest.raises(BaselineNearChance) as caught:
            run(job(untrained), tmp_path / run.__name__, Events())
        errors.append(caught.value.as_dict())
    assert errors[0] == errors[1]
    assert dry_run(job(untrained, allow_near_chance=True), tmp_path, Events()).target_met


def test_a_doubt_of_the_sample_is_settled_by_all_images(
    model: ModelInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one image nothing can be told; the job looks at all of them, and so does the dry run before it refuses."""
    monkeypatch.setattr("core.dry_run.BASELINE_IMAGES", 1)
    monkeypatch.setattr("core.dry_run.inference_batch", lambda network: 1)
    assert dry_run(job(model), tmp_path, Events()).target_met


# --- what is looked at -----------------------------------------------------------------------------------------------


def test_norms_of_activations_go_by_a_bounded_sample(
    model: ModelInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [{**STEP, "signal": "activations", "scores": "pruning_split", "target": {"macs": 0.5},
              "fine_tune": {"epochs": 1}}]  # fmt: skip
    dataset = DatasetInput.model_validate({**DIGITS.model_dump(), "options": {"splits": {"pruning": 0.2}}})
    seen: list[int] = []
    real = load_dataset(dataset).batches.__func__  # type: ignore[attr-defined]

    def batches(self: Any, split: str, *arguments: Any, **named: Any) -> Any:
        if split == "pruning":
            seen.append(len(self.splits["pruning"]))
        return real(self, split, *arguments, **named)

    monkeypatch.setattr("core.dry_run.PRUNING_IMAGES", 32)
    monkeypatch.setattr("core.data.datasets.Dataset.batches", batches)
    told = dry_run(job(model, dataset, steps=steps), tmp_path, Events())
    assert set(seen) == {32}
    assert told.target_met
