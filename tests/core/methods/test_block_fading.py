"""block_removal with `fade`: what is trained when, what stays frozen, what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.block_settings import BlockRemoval
from core.graph.bypass import without_blocks
from core.graph.counts import count
from core.graph.network import Network
from core.graph.plans import replay
from core.methods.block_removal import planned_trainings
from core.targets import Goal
from core.training.budget import EpochsBudget
from core.training.port import Moment
from core.training.untrained import Untrained
from core.training_settings import Training
from tests.core.fakes import Events, ScriptedTrainer
from tests.core.methods.fading_runs import DATA, resnet, run, same, trainer

ROUND = "prune/step/0/round/{}/fade"


pytestmark = pytest.mark.usefixtures("one_thread")


def factor(network: Network) -> list[float]:
    return [round(buffer.item(), 6) for name, buffer in network.module.named_buffers() if "fade" in name]


def params_of(plan: list[dict[str, Any]]) -> list[int]:
    """Parameters of the network before each entry, and after the last."""
    return [count(replay(resnet(), plan[:number]) if number else resnet()).params for number in range(len(plan) + 1)]


# --- one block --------------------------------------------------------------------------------------------------------


def test_a_block_fades_and_goes(tmp_path: Path) -> None:
    """The factor at each batch and validation, what is frozen, and that what goes has a factor of 0."""
    events, seen = Events(), []
    by = trainer(events, early_stop=1)

    def watch(network: Network, label: str, moment: Moment) -> None:
        seen.append((label, moment.what, moment.epoch, moment.step, factor(network)))

    by.watch = watch
    outcome = run(tmp_path, events, by=by, target={"blocks": 5}, fade={"epochs": 4}, fine_tune={"epochs": 1})
    fade = ROUND.format(1)
    batches = [item[2:] for item in seen if item[:2] == (fade, "batch")]
    assert batches == [(e, step, [1 - e / 4]) for e in (1, 2, 3, 4) for step in (0, 1)]
    assert [item[4] for item in seen if item[:2] == (fade, "validation")] == [[0.75], [0.5], [0.25], [0.0]]
    assert [item[1] for item in seen if item[2] == 1 and item[0] == fade] == ["epoch", "batch", "batch", "validation"]
    assert all(item[4] == [] for item in seen if item[0] != fade), "the factor is gone"

    removed = outcome.plan[0]["removed"]
    before, after = by.kept[fade]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.rpartition(".")[0] in removed}
    assert frozen
    assert changed.isdisjoint(frozen), "weights and BatchNorm statistics"
    trainable = {name for name, _ in without_blocks(resnet(), [outcome.plan[0]["block"]]).named_parameters()}
    assert trainable <= changed

    assert by.asked[fade]["restore_best"] is False
    assert len(events.named(fade + "/epoch/4")) == 1, "early_stop does not end a fading"
    (told,) = events.named(fade)
    assert (told["epochs"], told["factors"]) == (4, [0.75, 0.5, 0.25, 0.0])
    # the last validation of the fading is of a network without the block, but for BatchNorm measured afresh
    shrunk = replay(resnet(), outcome.plan)
    shrunk.load_state_dict({name: after[name] for name in shrunk.state_dict()})
    last = events.named(fade + "/epoch/4")[0]
    assert by.evaluate(shrunk, "validation").loss == pytest.approx(last["validation_loss"], rel=1e-6)
    assert not [name for name in outcome.network.state_dict() if "fade" in name]


def test_a_stochastic_factor_is_0_or_1_in_training_and_its_mean_in_validation(tmp_path: Path) -> None:
    by, seen = trainer(Events()), []
    by.watch = lambda network, label, moment: seen.append((label, moment.what, factor(network)))
    run(tmp_path, by=by, target={"blocks": 4}, blocks_per_round=2, fade={"epochs": 8, "mask": "stochastic"},
        fine_tune={"epochs": 0})  # fmt: skip
    drawn = [found for label, what, found in seen if what == "batch"]
    assert len(drawn) == 16
    assert {value for found in drawn for value in found} == {0.0, 1.0}
    assert any(one != other for one, other in drawn), "each block its own"
    assert [found for _, what, found in seen if what == "validation"] == [[1 - e / 8] * 2 for e in range(1, 9)]


# --- order and cost ---------------------------------------------------------------------------------------------------


def test_the_order_of_trainings_and_what_they_cost(tmp_path: Path) -> None:
    by = ScriptedTrainer()
    outcome = run(tmp_path, by=by, target={"blocks": 4}, fade={"epochs": 3},
                  fine_tune={"epochs": 2, "policy": {"every": 1}})  # fmt: skip
    assert by.labels == [(ROUND.format(1), 3), ("fine_tune/0/round/1", 2), (ROUND.format(2), 3), ("fine_tune/0", 2)]
    first, second, third = params_of(outcome.plan)
    assert (outcome.cost.epochs, outcome.cost.epochs_kept) == (10, 10)
    assert outcome.cost.epoch_params == 3 * first + 2 * second + 3 * second + 2 * third
    assert [epochs for epochs, _ in by.expected[0]] == [3, 3, 2, 2]
    assert by.expected[-1] == [(2, count(outcome.network).macs)]
    frozen = by.moving[0]
    assert frozen is not None
    gone = outcome.plan[0]["removed"]
    assert not [name for name in frozen[0] if name.rpartition(".")[0] in gone]


def test_lazily_all_fade_in_front_of_the_fine_tuning(tmp_path: Path) -> None:
    """Four rounds, a fine-tuning after every second one."""
    by, events = ScriptedTrainer(), Events()
    outcome = run(tmp_path, events, by=by, target={"blocks": 2}, fade={"epochs": 3, "lazy": True},
                  fine_tune={"epochs": 2, "policy": {"every": 2}})  # fmt: skip
    assert by.labels == [(ROUND.format(2), 3), ("fine_tune/0/round/2", 2), (ROUND.format(4), 3), ("fine_tune/0", 2)]
    sizes = params_of(outcome.plan)
    assert outcome.cost.epoch_params == 3 * sizes[0] + 2 * sizes[2] + 3 * sizes[2] + 2 * sizes[4]
    names = [body["removed"] for name, body in events if name.endswith("/select")]
    assert [body["blocks"] for name, body in events if name.endswith("/fade")] == [
        sorted(names[0] + names[1]), sorted(names[2] + names[3])
    ]  # fmt: skip
    macs = [point.macs for point in outcome.front]
    planned = [epochs for epochs, _ in by.expected[0]]
    assert planned == [3, 3, 2, 2]
    assert by.expected[2][:2] == [(3, macs[0]), (2, macs[2])], "what is due, and the fading in front of it"
    assert len(outcome.checks) == 4
    assert same(replay(resnet(), outcome.plan), outcome.network), "the scripted trainer leaves weights as they are"


def test_what_is_planned(tmp_path: Path) -> None:
    network = resnet()
    for fade, epochs in (({"epochs": 3}, [3] * 4 + [2, 2]), ({"epochs": 3, "lazy": True}, [3, 3, 2, 2])):
        step = BlockRemoval.model_validate(
            {"method": "block_removal", "target": {"blocks": 2}, "fade": fade,
             "fine_tune": {"epochs": 2, "policy": {"loops": 2}}}
        )  # fmt: skip
        planned = planned_trainings(network, step, target=Goal(step.target, count(network)))
        assert [number for number, _ in planned] == epochs
        assert planned[0][1] == count(network).macs
        assert 3 in [number for _, number in step.trainings(Training())]


def test_a_dry_run_books_it(tmp_path: Path) -> None:
    booked: list[Any] = []
    by = Untrained(DATA, training=Training(), device=torch.device("cpu"), seed=0, accuracy=0.5, looked_at=0,
                   booked=booked)  # fmt: skip
    outcome = run(tmp_path, by=by, target={"blocks": 4}, fade={"epochs": 3, "lazy": True}, fine_tune={"epochs": 2})
    assert [(item.label, item.epochs) for item in booked] == [(ROUND.format(2), 3), ("fine_tune/0", 2)]
    sizes = params_of(outcome.plan)
    assert [item.params for item in booked] == [sizes[0], sizes[2]]
    assert outcome.cost.epochs == 5


@pytest.mark.parametrize("lazy", [False, True])
def test_a_budget_shortens_fadings(lazy: bool, tmp_path: Path) -> None:
    """Rounds take what they say as long as an epoch is left for the end; a shorter fading still ends with 0."""
    by = ScriptedTrainer()
    by.budget = EpochsBudget(7)
    outcome = run(tmp_path, by=by, target={"blocks": 4}, fade={"epochs": 5, "lazy": lazy}, fine_tune={"epochs": 4})
    if lazy:
        assert by.labels == [(ROUND.format(2), 5), ("fine_tune/0", 2)]
        assert outcome.warnings == ["the fine-tuning of step 0 had 2 of 4 epochs: epochs_budget is 7"]
    else:
        assert by.labels == [(ROUND.format(1), 5), (ROUND.format(2), 1), ("fine_tune/0", 1)]
        assert "the fading of step 0 had 6 of 10 epochs: epochs_budget is 7" in outcome.warnings
    assert outcome.cost.epochs == 7


# --- lazy and at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fade", [{"epochs": 2}, {"epochs": 3, "mask": "stochastic", "sample": "epoch"}])
def test_with_a_fine_tuning_after_each_round_lazy_is_the_same(fade: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit."""
    settings: dict[str, Any] = {
        "target": {"blocks": 4}, "fine_tune": {"epochs": 2, "policy": {"every": 1}},
    }  # fmt: skip
    at_once = run(tmp_path / "at once", **settings, fade=fade)
    lazy = run(tmp_path / "lazy", **settings, fade={**fade, "lazy": True})
    without = run(tmp_path / "without", **settings)
    assert same(lazy.network, at_once.network)
    assert lazy.blocks == at_once.blocks, "accuracies in front of and behind the fine-tunings, too"
    assert (lazy.plan, lazy.front, lazy.checks, lazy.accuracy) == (
        at_once.plan, at_once.front, at_once.checks, at_once.accuracy
    )  # fmt: skip
    spent = [outcome.cost.model_dump(exclude={"seconds"}) for outcome in (lazy, at_once)]
    assert spent[0] == spent[1]
    assert without.plan != at_once.plan or not same(without.network, at_once.network)


def test_lazily_the_network_is_put_back_as_it_was(tmp_path: Path) -> None:
    """The second fading begins with the weights and statistics that the first fine-tuning left, all its blocks back."""
    by = trainer(Events())
    outcome = run(tmp_path, by=by, target={"blocks": 2}, fade={"epochs": 2, "lazy": True},
                  fine_tune={"epochs": 2, "policy": {"every": 2}})  # fmt: skip
    _, tuned = by.kept["fine_tune/0/round/2"]
    begun, faded = by.kept[ROUND.format(4)]
    assert begun.keys() == tuned.keys()
    assert all(torch.equal(begun[name], tuned[name]) for name in tuned)
    given = resnet().state_dict()
    first, _ = by.kept[ROUND.format(2)]
    assert all(torch.equal(first[name], given[name]) for name in given)
    # and the fine-tuning begins with what the fading left of what stays
    begun, _ = by.kept["fine_tune/0"]
    weights = [name for name in begun if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert all(torch.equal(begun[name], faded[name]) for name in weights)
    assert len(outcome.checks) == len(outcome.plan) == 4
