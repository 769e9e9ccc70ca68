"""A budget of epochs for all trainings of a recipe's steps: who gets what, by hand and in a job."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from core import pipeline
from core.errors import NothingRemoved
from core.graph.architectures import build
from core.graph.export import write_onnx
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from core.report import Report
from core.training.budget import EpochsBudget
from tests.core.fakes import Dying, Events, Killed, no_memory

DIGITS = DatasetInput(path=None, sha256=None, format="digits")
TRAIN = {"method": "train", "epochs": 3, "optimizer": {"name": "sgd", "lr": 0.05}}
PRUNE = {"method": "filter_norm", "target": {"macs": 0.6}, "ratio_per_round": 0.3, "every_epochs": 1,
         "fine_tune": {"epochs": 10}}  # fmt: skip


def test_without_a_total_nothing_is_cut() -> None:
    budget = EpochsBudget(spent=1_000)
    assert (budget.left, budget.within(7), budget.share(7, rounds=50, to_come=50)) == (None, 7, 7)
    assert budget.has_room_for(10_000, fine_tuned=True)


@pytest.mark.parametrize(
    ("budget", "asked", "expected"),
    [
        (EpochsBudget(500, spent=200), {"epochs": 500}, 300),  # Velici 2022, section 4.4
        (EpochsBudget(100), {"epochs": 50, "rounds": 20, "to_come": 30}, 50),  # exactly enough
        (EpochsBudget(100), {"epochs": 50, "rounds": 20, "to_come": 150}, 20),  # 50 · 80 / 200
        (EpochsBudget(100, spent=40, train_later=20, others_later=30), {"epochs": 50}, 25),  # 50 · 40 / 80
        (EpochsBudget(10, train_later=20), {"epochs": 5}, 0),
        (EpochsBudget(10, train_later=20), {"epochs": 5, "least": 1}, 1),
        (EpochsBudget(10, spent=10), {"epochs": 5, "least": 1}, 0),
        (EpochsBudget(10), {"epochs": 0, "least": 1}, 0),
    ],
)
def test_fine_tunings_share_what_is_left(budget: EpochsBudget, asked: dict[str, int], expected: int) -> None:
    assert budget.share(**asked) == expected


def test_a_first_round_that_has_no_room_is_refused() -> None:
    EpochsBudget(8).require_room_for(7, fine_tuned=True, step=0)
    with pytest.raises(NothingRemoved, match="step 1 has 7 epoch") as error:
        EpochsBudget(20, spent=13).require_room_for(7, fine_tuned=True, step=1)
    (fault,) = error.value.faults
    assert (fault.pointer, fault.expected) == ("/epochs_budget", "at least 21")


# --- in a job --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelInput:
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


def epochs_of(events: Events, prefix: str = "") -> list[str]:
    starts = (f"{prefix}prune/", f"{prefix}fine_tune/")
    return [name.partition("/epoch/")[0] for name, _ in events if "/epoch/" in name and name.startswith(starts)]


def test_a_budget_holds_for_a_whole_job(model: ModelInput, tmp_path: Path) -> None:
    """3 epochs of training, 2 rounds of 1, and what is left of 9 for a fine-tuning that would take 10."""
    events = Events()
    report = run(
        model, tmp_path, events, epochs_budget=9, baselines=["random", {"scratch": {"budget": "equal_epochs"}}]
    )
    taken = epochs_of(events)
    rounds = len({name for name in taken if "round" in name})
    assert {name: taken.count(name) for name in taken} == {
        "prune/step/0": 3,
        **{f"prune/step/1/round/{number}": 1 for number in range(1, rounds + 1)},
        "fine_tune/1": 6 - rounds,
    }
    assert report.cost.epochs == len(taken) == 9
    front = {(point.step, point.round): point.params for point in report.front}
    by_hand = 3 * front[0, 0] + sum(front[1, done] for done in range(rounds)) + (6 - rounds) * front[1, rounds]
    assert report.cost.epoch_params == by_hand
    assert f"the fine-tuning of step 1 had {6 - rounds} of 10 epochs: epochs_budget is 9" in report.warnings
    costs = {control.name: control.cost.epochs for control in report.controls}
    assert costs == {"random": 9, "scratch": 9}, "as many as were taken"
    assert len(epochs_of(events, "baseline/random/")) == 9


@pytest.mark.parametrize("kill_at", [2, 5, 7])
def test_a_budget_survives_a_crash(kill_at: int, model: ModelInput, tmp_path: Path) -> None:
    whole, dying = Events(), Dying(kill_at)
    expected = run(model, tmp_path / "a", whole, epochs_budget=8)
    with pytest.raises(Killed):
        run(model, tmp_path / "b", dying, epochs_budget=8)
    report = run(model, tmp_path / "b", epochs_budget=8)
    assert report.variants["pruned"].sha256 == expected.variants["pruned"].sha256
    assert report.cost.epochs == expected.cost.epochs == 8
    assert report.warnings == expected.warnings


def test_enough_is_as_good_as_none(model: ModelInput, tmp_path: Path) -> None:
    free = run(model, tmp_path / "free", steps=[TRAIN, PRUNE | {"fine_tune": {"epochs": 2}}])
    held = run(model, tmp_path / "held", steps=[TRAIN, PRUNE | {"fine_tune": {"epochs": 2}}],
               epochs_budget=free.cost.epochs)  # fmt: skip
    assert held.variants["pruned"].sha256 == free.variants["pruned"].sha256
    assert not [warning for warning in held.warnings if "epochs_budget" in warning]


def test_trainings_behind_the_end_of_a_budget_are_cut_and_told(model: ModelInput, tmp_path: Path) -> None:
    long = TRAIN | {"epochs": 50}
    report = run(model, tmp_path, steps=[PRUNE | {"fine_tune": {"epochs": 0}}, TRAIN | {"epochs": 2}, long, TRAIN],
                 epochs_budget=6)  # fmt: skip
    rounds = max(point.round for point in report.front)
    assert report.cost.epochs == 6
    assert f"step 2 had {4 - rounds} of 50 epochs: epochs_budget is 6" in report.warnings
    assert "step 3 was skipped: no epoch is left: epochs_budget is 6" in report.warnings
