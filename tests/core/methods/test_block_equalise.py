"""Each round's blocks are of one group, and the groups take turns (Velici 2022, section 4.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.blocks.candidates import Candidates
from core.blocks.foreseen import planned_rounds
from core.graph.blocks import find_blocks, innermost_residual
from core.graph.bypass import without_blocks
from core.graph.counts import count
from core.graph.network import Network
from core.target_settings import Target
from core.targets import Goal
from tests.core.fakes import Events, Killed, ScriptedTrainer
from tests.core.methods.block_runs import go, resnet, same, trained


@pytest.fixture(scope="module")
def network() -> Network:
    return resnet()


pytestmark = pytest.mark.usefixtures("one_thread")


def unequal() -> Network:
    """Groups of one, four and three blocks."""
    return without_blocks(resnet(26), ["layer1.1", "layer1.2", "layer1.3", "layer3.3"])


def turns(events: Events) -> list[str]:
    return [body["group"].removeprefix("group ") for body in events.named("/select")]


def left(events: Events) -> list[list[int]]:
    return [list(body["left"].values()) for body in events.named("/select")]


def test_groups_are_equal_every_three_rounds(network: Network, tmp_path: Path) -> None:
    events = Events()
    outcome = go(network, tmp_path, events=events, target={"blocks": 3}, equalise=True)
    assert turns(events) == ["1", "2", "3", "1", "2", "3"]
    assert left(events) == [[2, 3, 3], [2, 2, 3], [2, 2, 2], [1, 2, 2], [1, 1, 2], [1, 1, 1]]
    assert outcome.removed == [{f"group {group}": 1} for group in (1, 2, 3, 1, 2, 3)]
    for body in events.named("/select"):  # only the group in turn is scored
        (group,) = {name.partition(".")[0].removeprefix("layer") for name in body["scores"] if name in body["removed"]}
        assert body["group"] == f"group {group}"


def test_a_group_with_nothing_left_is_passed_over_and_the_others_go_on_in_turn(tmp_path: Path) -> None:
    events = Events()
    go(unequal(), tmp_path, events=events, target={"blocks": 1}, equalise=True)
    assert turns(events) == ["1", "2", "3", "2", "3", "2", "3"]
    assert left(events) == [[0, 4, 3], [0, 3, 3], [0, 3, 2], [0, 2, 2], [0, 2, 1], [0, 1, 1], [0, 1, 0]]


def test_several_blocks_a_round_are_of_one_group(network: Network, tmp_path: Path) -> None:
    events = Events()
    outcome = go(network, tmp_path, events=events, target={"blocks": 1}, equalise=True, blocks_per_round=2)
    assert turns(events) == ["1", "2", "3", "1", "2"]
    assert left(events) == [[1, 3, 3], [1, 1, 3], [1, 1, 1], [0, 1, 1], [0, 0, 1]]
    assert [sum(removed.values()) for removed in outcome.removed] == [2, 2, 2, 1, 1]


def test_its_rounds_are_foreseen(network: Network) -> None:
    macs = {block.name: block.macs for block in innermost_residual(find_blocks(network))}
    goal = Goal(Target(blocks=4), count(network))
    found = planned_rounds(network, Candidates(network), goal, per_round=2, equalise=True)
    gone = [("layer1.2", "layer1.1"), ("layer2.2", "layer2.1"), ("layer3.2",)]
    less = [sum(macs[name] for name in names) for names in gone]
    assert found == [count(network).macs - sum(less[:number]) for number in range(4)]
    free = planned_rounds(network, Candidates(network), goal, per_round=2)
    assert len(free) - 1 == 3
    assert free[1] == count(network).macs - macs["layer1.2"] - macs["layer2.2"]


@pytest.mark.parametrize(("every", "scorings"), [(1, [1, 2, 3, 4, 5, 6]), (3, [1, 4]), (None, [1])])
def test_it_scores_as_often_as_it_is_told(
    network: Network, tmp_path: Path, every: int | None, scorings: list[int]
) -> None:
    events = Events()
    go(network, tmp_path, events=events, target={"blocks": 3}, equalise=True, rescore_every=every)
    rescored = [body["rescored"] for body in events.named("/select")]
    assert [round for round, scored in enumerate(rescored, start=1) if scored] == scorings
    for body in events.named("/select"):
        assert set(body["removed"]) <= set(body["scores"])


def test_the_control_takes_each_round_from_the_same_group(network: Network, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"target": {"blocks": 4}, "equalise": True, "blocks_per_round": 2}
    outcome = go(network, tmp_path / "own", saliency="weights_mean", **fields)
    assert outcome.removed == [{"group 1": 2}, {"group 2": 2}, {"group 3": 1}]
    events = Events()
    control = go(network, tmp_path / "control", events=events, like=outcome.removed, **fields)
    assert control.removed == outcome.removed
    assert turns(events) == ["1", "2", "3"]
    assert control.warnings == []


def test_a_control_of_neighbours_that_runs_out_of_them_says_so(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"target": {"blocks": 7}, "replace": {}}
    control = go(resnet(), tmp_path, like=[{"blocks": 1}] * 8, **fields)
    assert len(control.removed) == 6  # 9 blocks, of which one of each group stays
    assert control.warnings == ["step 0 ended after 6 of 8 rounds: no such blocks are left"]


def test_neighbours_of_a_group_in_turn(network: Network, tmp_path: Path) -> None:
    events = Events()
    fields: dict[str, Any] = {"target": {"blocks": 3}, "equalise": True, "replace": {}}
    outcome = go(network, tmp_path / "own", events=events, **fields)
    assert turns(events) == ["1", "2", "3", "1", "2", "3"]
    again = Events()
    go(network, tmp_path / "control", events=again, like=outcome.removed, **fields)
    assert turns(again) == turns(events)


def test_fine_tunings_are_where_they_were_planned(network: Network, tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    tuned = {"epochs": 2, "policy": {"every": 3}}
    go(network, tmp_path, trainer=trainer, target={"blocks": 3}, equalise=True, fine_tune=tuned)
    assert trainer.labels == [("fine_tune/0/round/3", 2), ("fine_tune/0", 2)]  # whenever the groups are equal


def test_it_is_resumed_in_the_same_bits(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "target": {"blocks": 5},
        "equalise": True,
        "rescore_every": 3,
        "fine_tune": {"epochs": 1, "policy": {"every": 2}},
    }
    whole, events = trained(tmp_path / "whole", **fields)
    assert turns(events) == ["1", "2", "3", "1"]
    numbers = [body["number"] for body in events.named("checkpoint")]
    for number in numbers[:-1:2]:
        with pytest.raises(Killed):
            trained(tmp_path / str(number), kill_at=number, **fields)
        again, after = trained(tmp_path / str(number), **fields)
        same(again, whole)
        assert turns(after) == turns(events)[len(turns(events)) - len(turns(after)) :]
