"""Neighbouring blocks are replaced by one: what is removed, what is trained, what it costs, how it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.block_settings import BlockRemoval
from core.blocks.candidates import Candidates
from core.blocks.foreseen import planned_rounds
from core.errors import NothingRemoved, TargetUnreachable
from core.graph.blocks import find_blocks, innermost_residual
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network
from core.graph.plans import replay
from core.methods.block_removal import planned_trainings
from core.target_settings import Target
from core.targets import Goal
from core.training.budget import EpochsBudget
from core.training.untrained import Booked, Untrained
from core.training_settings import FineTune, Local, Training
from tests.core.fakes import Events, Killed, ScriptedTrainer, small_dataset
from tests.core.graph import block_topologies as made
from tests.core.graph.topologies import SHAPE, seeded
from tests.core.methods.block_runs import go, resnet, same, trained


@pytest.fixture(scope="module")
def network() -> Network:
    return resnet()


pytestmark = pytest.mark.usefixtures("one_thread")


def left(network: Network) -> list[str]:
    return [block.name for block in innermost_residual(find_blocks(network))]


# --- candidates -------------------------------------------------------------------------------------------------------


def test_neighbours_are_of_one_group_and_follow_one_another(network: Network) -> None:
    pairs = [candidate.name for candidate in Candidates(network, 2).of(network)]
    assert pairs == [f"layer{group}.{at}+layer{group}.{at + 1}" for group in (1, 2, 3) for at in (0, 1)]
    assert [candidate.name for candidate in Candidates(network, 3).of(network, "group 2")] == [
        "layer2.0+layer2.1+layer2.2"
    ]
    assert Candidates(network, 4).of(network) == []


def test_blocks_with_a_layer_between_them_are_no_neighbours() -> None:
    blocks = (made.Basic(6), made.Basic(6), made.unit(6), made.Basic(6), made.Basic(6))
    apart = trace(seeded(made.stages(*blocks, channels=6)), SHAPE)
    known = Candidates(apart, 2)
    assert [candidate.names for candidate in known.of(apart)] == [("blocks.0", "blocks.1"), ("blocks.3", "blocks.4")]
    assert Candidates(apart, 3).of(apart) == []
    (chains,) = known.chains(apart).values()
    assert [[block.name for block in chain] for chain in chains] == [["blocks.0", "blocks.1"], ["blocks.3", "blocks.4"]]


def test_blocks_beside_each_other_are_no_neighbours() -> None:
    class Beside(torch.nn.Module):
        """Two blocks that read the same, and one behind their concatenation's convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.join = made.Basic(6), made.Basic(6), torch.nn.Conv2d(12, 6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made_here: torch.Tensor = self.join(torch.cat([self.a(x), self.b(x)], 1))
            return made_here

    beside = trace(seeded(made.stages(Beside(), made.Basic(6), channels=6)), SHAPE)
    names = [block.name for block in Candidates(beside, 2).blocks(beside)]
    assert len(names) == 3
    assert Candidates(beside, 2).of(beside) == []


# --- rounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("neighbours", "blocks"), [(2, [9, 8, 7, 6]), (3, [9, 7, 5])])
def test_k_blocks_become_one(network: Network, tmp_path: Path, neighbours: int, blocks: list[int]) -> None:
    events = Events()
    replaced = {"neighbours": neighbours, "with": "zero"}
    outcome = go(network, tmp_path, events=events, target={"blocks": blocks[-1]}, replace=replaced)
    assert [point.blocks for point in outcome.front] == blocks
    assert [entry["op"] for entry in outcome.plan] == ["replace"] * (len(blocks) - 1)
    assert [len(entry["blocks"]) for entry in outcome.plan] == [neighbours] * (len(blocks) - 1)
    assert outcome.removed == [{"blocks": 1}] * (len(blocks) - 1)
    assert all(check.passed for check in outcome.checks)
    again = replay(network, outcome.plan)
    ours, theirs = again.state_dict(), outcome.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "new weights, too"
    for body in events.named("/select"):
        assert [len(name.split("+")) for name in body["removed"]] == [neighbours]
        assert set(body["removed"]) <= set(body["scores"])


def test_a_replaced_block_may_be_replaced_again(network: Network, tmp_path: Path) -> None:
    outcome = go(network, tmp_path, target={"blocks": 3}, replace={})
    assert left(outcome.network) == ["layer1.0", "layer2.0", "layer3.0"]
    seeds = [entry["seed"] for entry in outcome.plan]
    assert len(set(seeds)) == 6


def test_the_seed_gives_the_weights(network: Network, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"target": {"blocks": 8}, "replace": {}}
    one, two = (go(network, tmp_path / name, **fields) for name in ("a", "b"))
    assert one.plan == two.plan
    names = Candidates(network, 2).of(network)
    scores = {candidate.name for candidate in names}
    assert "+".join(one.plan[0]["blocks"]) in scores


def test_local_training_takes_the_new_block_for_a_wound(network: Network, tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    near = FineTune(epochs=1, local=Local(left=0, right=0))
    outcome = go(network, tmp_path, trainer=trainer, target={"blocks": 8}, replace={}, fine_tune=near)
    kept = outcome.plan[0]["blocks"][0]
    (moving,) = trainer.moving
    assert moving is not None
    assert {name.rpartition(".")[0] for name in moving[0]} >= {f"{kept}.conv1", f"{kept}.bn2"}
    assert not any(name.startswith("fc") for name in moving[0])


# --- how far ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("neighbours", "least"), [(2, 3), (3, 3)])
def test_what_is_left_at_least(network: Network, tmp_path: Path, neighbours: int, least: int) -> None:
    replaced = {"neighbours": neighbours}
    assert count(go(network, tmp_path, target={"blocks": least}, replace=replaced).network).blocks == least
    with pytest.raises(TargetUnreachable, match=rf"{neighbours} neighbouring blocks .* remain blocks {least}"):
        go(network, tmp_path / "less", target={"blocks": least - 1}, replace=replaced)


def test_of_four_blocks_three_at_a_time_leave_two(tmp_path: Path) -> None:
    """4 -> 2, and two are too few; 26 = 6 · 4 + 2."""
    deeper = resnet(26)
    events = Events()
    outcome = go(deeper, tmp_path, events=events, target={"blocks": 6}, replace={"neighbours": 3})
    assert [point.blocks for point in outcome.front] == [12, 10, 8, 6]
    assert events.named("/select")[-1]["left"] == {"group 1": 2, "group 2": 2, "group 3": 2}
    with pytest.raises(TargetUnreachable, match="remain blocks 6"):
        go(deeper, tmp_path / "less", target={"blocks": 5}, replace={"neighbours": 3})


def test_no_neighbours_at_all(network: Network, tmp_path: Path) -> None:
    with pytest.raises(NothingRemoved):
        go(network, tmp_path, target={"blocks": 8}, replace={"neighbours": 4})


def test_rounds_foreseen_by_hand(network: Network) -> None:
    blocks = {block.name: block.macs for block in innermost_residual(find_blocks(network))}
    macs = count(network).macs
    goal = Goal(Target(blocks=5), count(network))
    two, three = (planned_rounds(network, Candidates(network, k), goal, per_round=1) for k in (2, 3))
    gone = ["layer1.2", "layer2.2", "layer3.2", "layer1.1"]
    assert two == [macs - sum(blocks[name] for name in gone[:number]) for number in range(5)]
    first, second = blocks["layer1.1"] + blocks["layer1.2"], blocks["layer2.1"] + blocks["layer2.2"]
    assert three == [macs, macs - first, macs - first - second]


# --- trained alone ----------------------------------------------------------------------------------------------------

ALONE: dict[str, Any] = {"replace": {"alone_epochs": 2}, "fine_tune": {"epochs": 3, "policy": {"loops": 1}}}


def test_only_the_new_block_is_trained_first(network: Network, tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    outcome = go(network, tmp_path, trainer=trainer, target={"blocks": 7}, **ALONE)
    assert trainer.labels == [
        ("fine_tune/0/round/1/alone", 2), ("fine_tune/0/round/2/alone", 2), ("fine_tune/0", 3),
    ]  # fmt: skip
    for entry, moving in zip(outcome.plan, trainer.moving, strict=False):
        own = [f"{layer}.{part}" for layer, part in
               (("bn1", "bias"), ("bn1", "weight"), ("bn2", "bias"), ("bn2", "weight"), ("conv1", "weight"),
                ("conv2", "weight"))]  # fmt: skip
        assert moving == [[f"{entry['blocks'][0]}.{name}" for name in own]] * 2
    params = [point.params for point in outcome.front]
    assert outcome.cost.epochs == 7
    assert outcome.cost.epoch_params == 2 * params[1] + 2 * params[2] + 3 * params[2]


def test_what_is_to_come_is_told(network: Network, tmp_path: Path) -> None:
    trainer, events = ScriptedTrainer(), Events()
    go(network, tmp_path, trainer=trainer, events=events, target={"blocks": 7}, **ALONE)
    (plan,) = events.named("0/plan")
    assert plan["epochs"] == 2 + 2 + 3
    assert [sum(epochs for epochs, _ in told) for told in trainer.expected] == [7, 5, 3]
    step = BlockRemoval.model_validate({"method": "block_removal", "target": {"blocks": 7}, **ALONE})
    goal = Goal(step.target, count(network))
    macs = planned_rounds(network, Candidates(network, 2), goal, per_round=1)
    assert planned_trainings(network, step, target=goal) == [(2, macs[1]), (2, macs[2]), (3, macs[2])]


def test_a_budget_is_kept(network: Network, tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    trainer.budget = EpochsBudget(5)
    outcome = go(network, tmp_path, trainer=trainer, target={"blocks": 7}, **ALONE)
    assert [epochs for _, epochs in trainer.labels] == [2, 2, 1]
    assert any("1 of 3 epochs" in warning for warning in outcome.warnings)
    trainer = ScriptedTrainer()
    trainer.budget = EpochsBudget(3)
    outcome = go(network, tmp_path / "less", trainer=trainer, target={"blocks": 7}, **ALONE)
    assert [epochs for _, epochs in trainer.labels] == [2, 0, 1], "an epoch is left for the network as a whole"
    assert any("2 of 4 epochs alone" in warning for warning in outcome.warnings)
    trainer = ScriptedTrainer()
    trainer.budget = EpochsBudget(2)
    with pytest.raises(NothingRemoved, match="its first round needs 3"):
        go(network, tmp_path / "none", trainer=trainer, target={"blocks": 7}, **ALONE)


def test_a_dry_run_books_it(network: Network, tmp_path: Path) -> None:
    booked: list[Booked] = []
    trainer = Untrained(
        small_dataset(images=32), training=Training(), device=torch.device("cpu"), seed=0, accuracy=0.5, looked_at=0,
        booked=booked,
    )  # fmt: skip
    outcome = go(network, tmp_path, trainer=trainer, target={"blocks": 7}, **ALONE)
    assert [(item.label, item.epochs) for item in booked] == [
        ("fine_tune/0/round/1/alone", 2), ("fine_tune/0/round/2/alone", 2), ("fine_tune/0", 3),
    ]  # fmt: skip
    assert outcome.cost.epochs == 7


def test_the_rest_is_frozen_and_it_is_resumed_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of a training alone, after a round, and in the fine-tuning."""
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    fields: dict[str, Any] = {"target": {"blocks": 7}, "replace": {"alone_epochs": 2}, "fine_tune": {"epochs": 2}}
    whole, events = trained(tmp_path / "whole", **fields)
    numbers = [body["number"] for body in events.named("checkpoint")]
    assert [name for name, _ in events if "/epoch/" in name] == [
        *(f"fine_tune/0/round/{round}/alone/epoch/{epoch}" for round in (1, 2) for epoch in (1, 2)),
        *(f"fine_tune/0/epoch/{epoch}" for epoch in (1, 2)),
    ]
    sizes = {block.name: block.params for block in find_blocks(resnet())}
    trained_params = [record["trained_params"] for record in events.named("alone/epoch/1")]
    assert trained_params == [sizes[entry["blocks"][0]] for entry in whole.plan]
    for number in numbers[:-1]:
        with pytest.raises(Killed):
            trained(tmp_path / str(number), kill_at=number, **fields)
        again, after = trained(tmp_path / str(number), **fields)
        same(again, whole)
        selects = events.named("/select")
        later = after.named("/select")
        assert later == selects[len(selects) - len(later) :]


def test_nothing_but_the_new_block_changes(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"target": {"blocks": 8}, "replace": {"alone_epochs": 1}, "fine_tune": {"epochs": 0}}
    outcome, _ = trained(tmp_path, **fields)
    replaced = replay(resnet(), outcome.plan)
    ours, theirs = outcome.network.state_dict(), replaced.state_dict()
    learnt = {name for name, _ in replaced.named_parameters() if not torch.equal(ours[name], theirs[name])}
    kept = outcome.plan[0]["blocks"][0]
    assert learnt
    assert all(name.startswith((f"{kept}.conv", f"{kept}.bn")) for name in learnt)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_that_do_not_go_together() -> None:
    def step(**fields: Any) -> BlockRemoval:
        return BlockRemoval.model_validate({"method": "block_removal", "target": {"blocks": 5}, **fields})

    assert step(replace={}).replace == step(replace={"neighbours": 2, "with": "random", "alone_epochs": 0}).replace
    for every in (2, None):
        with pytest.raises(ValueError, match="rescore_every is 1"):
            step(replace={}, rescore_every=every)
    with pytest.raises(ValueError, match="oracle or random"):
        step(replace={}, saliency="weights_mean")
    with pytest.raises(ValueError, match="blocks_per_round"):
        step(replace={}, blocks_per_round=2)
