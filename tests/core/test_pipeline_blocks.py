"""Block removal in a job: with filters behind it, from early checkpoints, rewound, distilled, beside its controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import RecipeInvalid
from core.graph.blocks import find_blocks, innermost_residual
from core.graph.counts import count
from core.graph.importers import load
from core.graph.initialise import reinitialised
from core.graph.network import Network
from core.graph.plans import replay
from core.job import ModelInput
from core.recipe import parse_recipe
from core.report_markdown import to_markdown
from core.training.seeds import derived_seed
from tests.core.blocks_job import MODEL, RATE, as_input, blocks, plan_of, run, weights_of
from tests.core.fakes import Dying, Events, Killed, no_memory

FILTERS = {"method": "filter_norm", "target": {"macs": 0.4}, "ratio_per_round": 0.3, "every_epochs": 1,
           "fine_tune": {"epochs": 1, **RATE}}  # fmt: skip
STILL: dict[str, Any] = {"optimizer": {"name": "sgd", "lr": 1e-30, "weight_decay": 0}}
"""A rate at which weights of the usual sizes stay as they are, to the bit."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)


def by_group(network: Network) -> list[int]:
    """How many blocks have outputs of each size, from the front."""
    shapes = [block.output_shape for block in innermost_residual(find_blocks(network))]
    return [shapes.count(shape) for shape in dict.fromkeys(shapes)]


def layers_of(model: ModelInput) -> list[str]:
    return list(load(model).layers())


# --- combined units ---------------------------------------------------------------------------------------------------


def test_blocks_and_then_filters(tmp_path: Path) -> None:
    """Velici 2022, section 6.1.3: two steps of one recipe."""
    report = run(tmp_path, steps=[blocks(), FILTERS], baselines=["random"])
    plan = plan_of(tmp_path)
    operations = [entry["op"] for entry in plan]
    assert operations[:3] == ["bypass"] * 3
    assert set(operations[3:]) == {"cut"}
    replayed = replay(load(MODEL), plan)
    ours = weights_of(tmp_path)
    assert {name: item.shape for name, item in replayed.state_dict().items()} == {
        name: item.shape for name, item in ours.items()
    }
    pruned, original = report.variants["pruned"], report.variants["original"]
    assert (count(replayed).params, count(replayed).macs) == (pruned.params, pruned.macs)
    assert pruned.macs <= 0.4 * original.macs
    assert count(replayed).blocks == 6
    assert sum(check.name.startswith("exactness/prune/step/0") for check in report.checks) == 3
    assert sum(check.name.startswith("exactness/prune/step/1") for check in report.checks) == len(plan) - 3 > 0
    assert all(check.passed for check in report.checks)
    assert {target.name: target.met for target in report.targets} == {"step/0/blocks": True, "step/1/macs": True}
    assert [point.blocks for point in report.front if point.step == 0] == [9, 7, 6]
    assert {point.blocks for point in report.front if point.step == 1} == {6}
    random = report.variants["random"]
    assert 0 < random.macs <= pruned.macs, "other blocks, other layers, no more MACs"
    assert random.sha256 != pruned.sha256
    assert count(load(as_input(tmp_path / "controls" / "random.onnx"))).blocks == 6
    gone = [layer.name for layer in report.layers if layer.params_after == 0 < layer.params_before]
    assert gone == [name for name in layers_of(MODEL) if name not in {layer.rpartition(".")[0] for layer in ours}]
    assert len(gone) >= 3 * 2, "two convolutions of each block"


# --- what whole fine-tunings begin with -------------------------------------------------------------------------------


def test_back_to_the_beginning(tmp_path: Path) -> None:
    """The random weights that the recipe began with, whatever the steps in front have trained and removed."""
    train = {"method": "train", "epochs": 1, **RATE}
    steps = [train, blocks(target={"blocks": 7}), blocks(fine_tune={"epochs": 1, "rewind": "initial", **STILL})]
    report = run(tmp_path, steps=steps, weights="random")
    fresh, _, _ = reinitialised(load(MODEL), seed=derived_seed(0, "weights"))
    drawn, ours = fresh.state_dict(), weights_of(tmp_path)
    convolutions = [name for name in ours if ours[name].dim() == 4]
    assert convolutions
    assert all(torch.equal(ours[name], drawn[name]) for name in convolutions)
    assert report.cost.epochs == 3
    assert not torch.equal(ours["bn1.running_mean"], drawn["bn1.running_mean"]), "of the smaller network"


def test_back_to_what_the_step_was_given(tmp_path: Path) -> None:
    """Behind a step that has trained: its weights, not those of the upload."""
    train = {"method": "train", "epochs": 1, "restore_best": False, "checkpoint_every": 1, **RATE}
    policy = {"policy": {"low": 1, "high": {"loops": 1}}}
    low = {"epochs": 1, "rewind": "trained", **STILL, **policy}
    run(tmp_path, steps=[train, blocks(fine_tune=low)])
    kept = load(as_input(tmp_path / "out" / "checkpoint_step0_epoch0001.onnx")).state_dict()
    uploaded, ours = load(MODEL).state_dict(), weights_of(tmp_path)
    convolutions = [name for name in ours if ours[name].dim() == 4]
    assert all(torch.equal(ours[name], kept[name]) for name in convolutions)
    assert not any(torch.equal(ours[name], uploaded[name]) for name in convolutions)


# --- early checkpoints ------------------------------------------------------------------------------------------------

EARLY = {"optimizer": {"name": "sgd", "lr": 0.1}, "schedule": {"name": "multistep", "milestones": [0.5, 0.75]},
         "batch_size": 64}  # fmt: skip
TRAIN = {"method": "train", "epochs": 2, "checkpoint_every": 1, "restore_best": False}


def test_one_budget_for_the_training_and_the_fine_tuning(tmp_path: Path) -> None:
    """Velici 2022, section 4.4: trained for k epochs, pruned at once, fine-tuned for the rest of the budget; and the
    same from the checkpoint of that epoch."""
    last = blocks(fine_tune={"epochs": 100})
    whole = Events()
    report = run(tmp_path / "whole", whole, steps=[TRAIN, last], weights="random", training=EARLY, epochs_budget=6)
    rates = {name: body["lr"] for name, body in whole if "/epoch/" in name}
    assert list(rates) == ["prune/step/0/epoch/1", "prune/step/0/epoch/2",
                           *(f"fine_tune/1/epoch/{number}" for number in (1, 2, 3, 4))]  # fmt: skip
    assert list(rates.values()) == pytest.approx([0.1, 0.01, 0.1, 0.1, 0.01, 0.001])
    assert report.cost.epochs == 6
    assert [kept.epoch for kept in report.checkpoints] == [1, 2]

    checkpoint = as_input(tmp_path / "whole" / "out" / "checkpoint_step0_epoch0002.onnx")
    later = Events()
    run(tmp_path / "later", later, checkpoint=checkpoint, training=EARLY, epochs_budget=4,
        steps=[TRAIN | {"epochs": 0, "checkpoint_every": None}, last], weights="mdl_1")  # fmt: skip
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "later")
    assert all(torch.equal(item, second[name]) for name, item in first.items())


# --- controls ---------------------------------------------------------------------------------------------------------


def test_both_structures_from_scratch(tmp_path: Path) -> None:
    controls = [{"scratch": {"budget": 1}}, {"scratch": {"structure": "standard", "budget": 2}}]
    step = blocks(target={"blocks": 5}, fine_tune={"epochs": 0})
    events = Events()
    report = run(tmp_path / "run", events, steps=[step], baselines=controls)
    assert list(report.variants) == ["original", "pruned", "scratch", "scratch_standard"]
    pruned, scratch, standard = (report.variants[name] for name in list(report.variants)[1:])
    assert (scratch.params, scratch.macs) == (pruned.params, pruned.macs)
    network = load(as_input(tmp_path / "run" / "controls" / "scratch_standard.onnx"))
    assert by_group(network) == [1, 2, 2]
    assert count(network).params == standard.params != pruned.params
    assert [control.cost.epochs for control in report.controls] == [1, 2]
    assert report.controls[1].cost.epoch_params == 2 * standard.params
    assert [name for name, _ in events if "/epoch/" in name] == [
        "baseline/scratch/train/epoch/1",
        "baseline/scratch_standard/train/epoch/1",
        "baseline/scratch_standard/train/epoch/2",
    ]
    assert "| scratch_standard | 2 epochs, as the recipe says | 2 |" in to_markdown(report)
    names = [name for name, _ in events]
    begins = names.index("baseline/scratch_standard/train/epoch/1")
    kill_at = next(body["number"] for name, body in events[begins:] if name == "checkpoint")
    with pytest.raises(Killed):
        run(tmp_path / "killed", Dying(kill_at), steps=[step], baselines=controls)
    again = run(tmp_path / "killed", steps=[step], baselines=controls)
    assert again.variants["scratch_standard"].sha256 == standard.sha256


def test_a_standard_structure_needs_blocks_to_go() -> None:
    for steps, controls, told in (
        ([FILTERS], [{"scratch": {"structure": "standard"}}], "no step of this recipe removes blocks"),
        ([blocks()], ["scratch", {"scratch": {"budget": 3}}], "scratch once for each structure"),
    ):
        with pytest.raises(RecipeInvalid) as error:
            parse_recipe({"steps": steps, "baselines": controls})
        (fault,) = error.value.faults
        assert fault.pointer == "/baselines"
        assert told in fault.message


# --- distillation -----------------------------------------------------------------------------------------------------


def test_features_of_the_blocks_that_are_left_are_matched(tmp_path: Path) -> None:
    events = Events()
    distill = {"distill": {"weight": 0.5, "features": 1.0}}
    run(tmp_path, events, steps=[blocks(fine_tune={"epochs": 1, **RATE, **distill})])
    (record,) = [body for name, body in events if name.startswith("fine_tune/0/epoch")]
    assert record["features"] > 0
