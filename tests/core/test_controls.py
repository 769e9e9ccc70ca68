"""Controls in a job: what they are given, what the report says of them, and that a crash does not change them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from core import pipeline
from core.baselines import Scratch
from core.comparison import doubted_controls
from core.controls import stretched
from core.data.datasets import load_dataset
from core.data.fit import check_fits
from core.errors import ParityFailed, RecipeInvalid, TrainingDiverged
from core.graph.architectures import build
from core.graph.batch_norm_folding import fold
from core.graph.export import write_onnx
from core.graph.importers import load
from core.graph.network import Network
from core.job import DatasetInput, JobInputs, ModelInput
from core.progress import Progress
from core.recipe import parse_recipe
from core.report import Check, Report
from core.report_markdown import to_markdown
from core.schedule_settings import RisingRestartsSchedule
from core.tasks import Classification
from core.training.trainer import Trainer
from core.training_settings import Distill, MultistepSchedule, Sgd, Training
from tests.core.fakes import Dying, Events, Killed, empty_state, no_memory

DIGITS = DatasetInput(path=None, sha256=None, format="digits")
STEP = {
    "method": "filter_norm", "target": {"macs": 0.6}, "ratio_per_round": 0.2, "every_epochs": 1,
    "fine_tune": {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.02}},
}  # fmt: skip
CONTROLS = ["unpruned", "random", {"scratch": {"budget": "equal_epochs", "optimizer": {"name": "sgd", "lr": 0.05}}}]


@pytest.fixture(autouse=True)
def quick_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelInput:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8))
    data = check_fits(load_dataset(DIGITS), network.inputs, network.outputs)
    events = Events()
    trainer = Trainer(data, training=Training(), device=torch.device("cpu"), seed=0, original_macs=1, emit=events,
                      progress=Progress(events))  # fmt: skip
    training = Training(optimizer=Sgd(lr=0.05), batch_size=64)
    trainer.fit(network, training=training, epochs=3, label="train", state=empty_state(folder))
    path = folder / "digits.onnx"
    write_onnx(network, path, opset=17)
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


def run(model: ModelInput, workdir: Path, events: Events, **changes: Any) -> Report:
    document = {
        "steps": [STEP],
        "training": {"batch_size": 64},
        "baselines": CONTROLS,
        "export": {"channel_multiple": 4},
    }
    recipe = parse_recipe(document | changes)
    inputs = JobInputs(model=model, datasets=(DIGITS,), recipe=recipe, threads=1)
    return pipeline.run(inputs, workdir, events)


@pytest.fixture(scope="module")
def whole(model: ModelInput, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Events]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
        patch.setattr("core.comparison.measure_memory", no_memory)
        patch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
        events = Events()
        return run(model, tmp_path_factory.mktemp("whole"), events), events


def test_each_control_is_what_it_says(whole: tuple[Report, Events]) -> None:
    report, events = whole
    assert list(report.variants) == ["original", "pruned", "unpruned", "random", "scratch"]
    original, pruned, unpruned, random, scratch = report.variants.values()
    by_name = {item.name: item for item in report.controls}
    assert (unpruned.params, unpruned.macs) == (original.params, original.macs)
    assert unpruned.sha256 != original.sha256
    assert by_name["unpruned"].cost.epochs == report.cost.epochs
    assert by_name["unpruned"].cost.epoch_params == report.cost.epochs * original.params
    assert (random.params, random.macs) == (pruned.params, pruned.macs)  # the same widths, other units
    assert random.sha256 != pruned.sha256
    assert (scratch.params, scratch.macs) == (pruned.params, pruned.macs)
    assert by_name["scratch"].cost.epochs == report.cost.epochs
    selects = [(name, body) for name, body in events if name.endswith("/select")]
    assert {body["signal"] for name, body in selects if name.startswith("prune/")} == {"weights"}
    assert {body["signal"] for name, body in selects if name.startswith("baseline/random/prune/")} == {"random"}
    assert events.not_taken() == []


def test_what_the_report_says_of_them(whole: tuple[Report, Events]) -> None:
    report, _ = whole
    for control in report.controls:
        theirs = report.variants[control.name].test.accuracy
        assert control.accuracy_difference == pytest.approx(report.variants["pruned"].test.accuracy - theirs)
        assert control.accuracy_difference_low < control.accuracy_difference < control.accuracy_difference_high
    assert all(variant.train.images == 1259 for variant in report.variants.values())
    assert {f"parity/{name}" for name in ("unpruned", "random", "scratch")} <= {check.name for check in report.checks}
    text = to_markdown(report)
    table = text[text.index("## Controls") :]
    assert f"| scratch | {report.cost.epochs} epochs, equal epochs | {report.cost.epochs} |" in table


@pytest.mark.parametrize("name", ["unpruned", "random", "scratch"])
def test_no_control_is_touched_by_another(
    name: str, model: ModelInput, whole: tuple[Report, Events], tmp_path: Path
) -> None:
    """`unpruned` once trained what `random` then began with."""
    (baseline,) = [item for item in CONTROLS if item == name or (isinstance(item, dict) and name in item)]
    report = run(model, tmp_path, Events(), baselines=[baseline])
    assert report.variants[name].sha256 == whole[0].variants[name].sha256


def test_without_baselines_there_is_no_section(whole: tuple[Report, Events]) -> None:
    report, _ = whole
    assert "## Controls" not in to_markdown(report.model_copy(update={"controls": []}))


def test_their_progress_is_planned(whole: tuple[Report, Events]) -> None:
    """Once the steps are done the greater part of the training is still to come."""
    _, events = whole
    names = [name for name, _ in events]
    first = names.index("baseline/unpruned/fine_tune/epoch/1")
    fractions = [body["fraction"] for name, body in events[:first] if name == "progress"]
    assert not fractions or fractions[-1] < 0.6


@pytest.mark.parametrize("where", ["baseline/unpruned/", "baseline/random/", "baseline/scratch/"])
def test_killed_in_a_control_it_ends_in_the_same_figures(
    where: str, model: ModelInput, whole: tuple[Report, Events], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    report, events = whole
    names = [name for name, _ in events]
    begins = next(index for index, name in enumerate(names) if name.startswith(where))
    kill_at = next(body["number"] for name, body in events[begins:] if name == "checkpoint")
    with pytest.raises(Killed):
        run(model, tmp_path, Dying(kill_at))
    after = Events()
    again = run(model, tmp_path, after)
    assert {name: variant.sha256 for name, variant in again.variants.items()} == {
        name: variant.sha256 for name, variant in report.variants.items()
    }
    for ours, theirs in zip(again.controls, report.controls, strict=True):
        assert ours.model_dump(exclude={"cost": {"seconds"}}) == theirs.model_dump(exclude={"cost": {"seconds"}})
    epochs = [name for name in names if "/epoch/" in name]
    resumed = [name for name, _ in after if "/epoch/" in name]
    assert resumed == epochs[len(epochs) - len(resumed) :]


def test_equal_cost_is_in_epoch_parameters(model: ModelInput, tmp_path: Path) -> None:
    report = run(model, tmp_path, Events(), baselines=["scratch"])
    (control,) = report.controls
    assert control.cost.epoch_params == pytest.approx(
        report.cost.epoch_params, abs=report.variants["pruned"].params / 2
    )
    assert "equal cost" in control.budget


@pytest.mark.parametrize("scope", ["local", "global"])
def test_random_ends_with_the_same_widths(scope: str, model: ModelInput, tmp_path: Path) -> None:
    """Whatever the last round of the pruned network could pay for; and where a guard has taken cuts back."""
    step = STEP | {"scope": scope, "target": {"macs": 0.4, "max_accuracy_drop": 0.9}}
    events = Events()
    report = run(model, tmp_path, events, baselines=["random"], steps=[step], export={"channel_multiple": 8})
    selects = [(name, body) for name, body in events if name.endswith("/select")]
    ours = [body["widths"] for name, body in selects if name.startswith("prune/")]
    theirs = [body["widths"] for name, body in selects if name.startswith("baseline/random/")]
    assert ours == theirs
    assert report.variants["random"].params == report.variants["pruned"].params
    assert report.variants["random"].sha256 != report.variants["pruned"].sha256


def test_unpruned_goes_through_the_train_steps_in_front_of_pruning(model: ModelInput, tmp_path: Path) -> None:
    """Else it would be a random network at the rate of a fine-tuning, which anything is better than."""
    events = Events()
    train = {"method": "train", "epochs": 4, "optimizer": {"name": "sgd", "lr": 0.05}}
    fine_tune = {"fine_tune": {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.001}}}
    report = run(model, tmp_path, events, weights="random", steps=[train, STEP | fine_tune], baselines=["unpruned"])
    (control,) = report.controls
    assert control.cost.epochs == report.cost.epochs
    for epoch in range(1, 5):
        ours, theirs = (
            {name: value for name, value in body.items() if name != "seconds"}
            for prefix in ("", "baseline/unpruned/")
            for name, body in events
            if name == f"{prefix}prune/step/0/epoch/{epoch}"
        )
        assert ours == theirs
    assert report.variants["unpruned"].test.accuracy > 0.8


def test_unpruned_with_train_steps_is_killed_and_ends_in_the_same_figures(model: ModelInput, tmp_path: Path) -> None:
    train = {"method": "train", "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.05}}
    changes: dict[str, Any] = {"steps": [train, STEP], "baselines": ["unpruned"]}
    whole = Events()
    report = run(model, tmp_path / "whole", whole, **changes)
    last = sum(name == "checkpoint" for name, _ in whole)
    for at in (last - 2, last - 1, last):
        with pytest.raises(Killed):
            run(model, tmp_path / f"{at}", Dying(at), **changes)
        again = run(model, tmp_path / f"{at}", Events(), **changes)
        assert again.controls[0].cost.epochs == report.controls[0].cost.epochs
        assert again.variants["unpruned"].sha256 == report.variants["unpruned"].sha256


def test_settings_in_epochs_are_stretched() -> None:
    """What was meant for 4 epochs, for any other number."""
    training = Training(
        schedule=MultistepSchedule(name="multistep", milestones=(1, 3)), warmup=1, early_stop=2, batch_size=7
    )
    found = stretched(training, 4)
    assert isinstance(found.schedule, MultistepSchedule)
    assert (found.schedule.milestones, found.warmup, found.early_stop, found.batch_size) == ((0.25, 0.75), 0.25, 0, 7)
    rising = RisingRestartsSchedule(name="rising_restarts", milestones=(1, 3), factor=5)
    found = stretched(training.model_copy(update={"schedule": rising}), 4)
    assert found.schedule == rising.model_copy(update={"milestones": (0.25, 0.75)})
    stretched(training, 0)  # a fine-tuning of no epochs
    shares = training.model_copy(update={"schedule": MultistepSchedule(name="multistep"), "warmup": 0.1})
    assert stretched(shares, 4) == shares.model_copy(update={"early_stop": 0})


def test_scratch_does_not_learn_from_the_original() -> None:
    defaults = Training(distill=Distill(), freeze="classifier", clip_norm=1.0)
    assert Scratch().training(defaults) == Training(clip_norm=1.0)
    own = Scratch(distill=Distill(temperature=2))
    assert own.training(defaults).distill == Distill(temperature=2)


def test_a_control_at_chance_is_doubted() -> None:
    labels = torch.arange(200) % 4
    seen = {
        name: {"label": labels, "predicted": torch.where(torch.arange(200) < right, labels, labels + 1)}
        for name, right in (("good", 120), ("bad", 55))
    }
    (told,) = doubted_controls(["good", "bad"], seen, Classification())
    assert "the control bad is no better than guessing" in told


@pytest.mark.parametrize("error", [TrainingDiverged("it went wrong"), RecipeInvalid("it went wrong")])
def test_a_control_that_fails_does_not_end_the_job(
    error: Exception, model: ModelInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.fit

    def fit(self: Trainer, *arguments: Any, **named: Any) -> Any:
        if named["label"] == "train":
            raise error
        return real(self, *arguments, **named)

    monkeypatch.setattr(Trainer, "fit", fit)
    events = Events()
    report = run(model, tmp_path, events, baselines=["unpruned", "scratch"])
    assert [item.name for item in report.controls] == ["unpruned"]
    assert "the control scratch failed: it went wrong" in report.warnings
    assert events.named("baseline/scratch/failed")[0]["reason"] == "it went wrong"


def test_a_control_whose_proof_fails_is_left_out(
    model: ModelInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pipeline.check_parity

    def check(network: Network, path: Path, images: torch.Tensor) -> Check:
        if path.name == "unpruned.onnx":
            raise ParityFailed("it computes something else")
        return real(network, path, images)

    monkeypatch.setattr(pipeline, "check_parity", check)
    report = run(model, tmp_path, Events(), baselines=["unpruned"])
    assert (report.controls, list(report.variants)) == ([], ["original", "pruned"])
    assert "the control unpruned failed: it computes something else" in report.warnings


def test_with_inserted_batch_norms_the_controls_have_them_too(model: ModelInput, tmp_path: Path) -> None:
    """In training; in the file they are folded away."""
    path = tmp_path / "folded.onnx"
    write_onnx(fold(load(model))[0], path, opset=17)
    plain = ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")
    report = run(plain, tmp_path / "run", Events(), batchnorm="insert")
    assert {f"exactness/batchnorm/fold/{name}" for name in ("unpruned", "random", "scratch")} <= {
        check.name for check in report.checks
    }
    assert report.variants["unpruned"].params == report.variants["original"].params
    assert report.variants["scratch"].params == report.variants["pruned"].params
