"""Removal from a network that is nothing but residual blocks: one of them must stay, whichever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import TargetUnreachable
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network
from tests.core.methods.block_runs import go


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = torch.relu(x + self.convolution(x))
        return changed


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return trace(nn.Sequential(*(Block() for _ in range(4))).eval(), (1, 8, 8))


@pytest.mark.parametrize(
    ("fields", "rounds"),
    [
        ({"target": {"blocks": 2}}, [1, 1]),
        ({"target": {"blocks": 1}, "blocks_per_round": 4}, [3]),
        ({"target": {"params": 0.25}, "blocks_per_round": 2}, [2, 1]),
        ({"target": {"blocks": 1}, "soft": {"epochs": 2}}, [3]),
    ],
)
def test_one_block_stays(network: Network, tmp_path: Path, fields: dict[str, Any], rounds: list[int]) -> None:
    outcome = go(network, tmp_path, fine_tune={"epochs": 0}, **fields)
    assert [removed["blocks"] for removed in outcome.removed] == rounds
    assert count(outcome.network).blocks == 4 - sum(rounds)


def test_not_all_may_go(network: Network, tmp_path: Path) -> None:
    with pytest.raises(TargetUnreachable, match=r"params 0\.25"):
        go(network, tmp_path, target={"params": 0.2}, fine_tune={"epochs": 0})
