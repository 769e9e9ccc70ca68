"""Removing blocks round by round: what goes, when it stops, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.block_settings import BlockRemoval
from core.errors import NothingRemoved, TargetUnreachable
from core.graph.architectures.cifar_resnet import CifarResNet
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network
from core.graph.plans import replay
from core.methods.block_removal import block_removal
from core.outcome import Outcome
from core.step_settings import FilterNorm
from core.targets import Goal
from tests.core.fakes import Events, ScriptedTrainer, empty_state, small_dataset

FIELDS = [name for name in BlockRemoval.model_fields if name not in ("method", "target", "fine_tune")]


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return trace(CifarResNet(20, num_classes=4, in_channels=1).eval(), (1, 8, 8))


def go(network: Network, tmp_path: Path, events: Events | None = None, **fields: Any) -> Outcome:
    step = BlockRemoval.model_validate({"method": "block_removal", "saliency": "weights_mean", **fields})
    return block_removal(
        network,
        small_dataset(),
        **{name: getattr(step, name) for name in FIELDS},
        target=Goal(step.target, count(network), 0.9),
        fine_tune=step.fine_tune,
        trainer=ScriptedTrainer(),
        emit=Events() if events is None else events,
        state=empty_state(tmp_path),
    )


def test_it_removes_until_the_target_holds(network: Network, tmp_path: Path) -> None:
    events = Events()
    outcome = go(network, tmp_path, events, target={"blocks": 4})
    assert count(outcome.network).blocks == 4
    assert [point.blocks for point in outcome.front] == [9, 8, 7, 6, 5, 4]
    again = replay(network, outcome.plan)
    assert again.layers().keys() == outcome.network.layers().keys()
    assert [len(body["removed"]) for body in events.named("/select")] == [1] * 5
    assert all(check.passed for check in outcome.checks)


def test_a_round_takes_no_more_than_it_needs(network: Network, tmp_path: Path) -> None:
    assert count(go(network, tmp_path, target={"blocks": 7}, blocks_per_round=4).network).blocks == 7


def test_groups_take_turns(network: Network, tmp_path: Path) -> None:
    events = Events()
    go(network, tmp_path, events, target={"blocks": 3}, equalise=True)
    assert [body["left"] for body in events.named("/select")][2::3] == [
        {"group 1": 2, "group 2": 2, "group 3": 2},
        {"group 1": 1, "group 2": 1, "group 3": 1},
    ]


def test_what_is_refused(network: Network, tmp_path: Path) -> None:
    with pytest.raises(TargetUnreachable) as caught:
        go(network, tmp_path, target={"params": 10})
    assert "without any of its residual blocks" in caught.value.message
    plain = trace(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 4)), (1, 8, 8))
    for name, target in {"count": {"blocks": 1, "params": 0.5}, "share": {"blocks": 0.5}}.items():
        with pytest.raises(NothingRemoved):
            go(plain, tmp_path / name, target=target)


def test_filters_are_no_blocks() -> None:
    with pytest.raises(ValueError, match=r"target.blocks is of method: block_removal"):
        FilterNorm.model_validate({"method": "filter_norm", "target": {"blocks": 0.5}})
