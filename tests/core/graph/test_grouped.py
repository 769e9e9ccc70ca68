"""Grouped convolutions are cut group by group, or the same channels inside each group; plans say which."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.errors import CutRefused
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.groups import channel_groups
from core.graph.ids import Grouped
from core.graph.lowering import trace
from core.graph.network import Network, grouped_cuts
from core.graph.plans import replay
from tests.core.graph.topologies import random_removal, seeded


class Bottleneck(nn.Module):
    """ResNeXt's: a grouped convolution between two of 1 x 1, a shortcut around them."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(12, 16, 1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, groups=groups), nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        out: Tensor = self.head(torch.relu(self.depthwise(x + self.conv3(y))))
        return out


def bottleneck(groups: int = 2) -> Network:
    return trace(seeded(lambda: Bottleneck(groups)), (3, 8, 8))


def width(network: Network) -> int:
    return channel_groups(network).by_name()["conv1"].width


@pytest.mark.parametrize(("groups", "way"), [(2, "inside"), (8, "whole")])
def test_by_itself_it_is_cut_the_way_that_leaves_more_units(groups: int, way: Grouped) -> None:
    network = bottleneck(groups)
    assert network.grouped == {"conv2": way, "depthwise": "whole"}
    assert width(network) == 8


def test_the_way_can_be_set_but_for_depthwise_ones() -> None:
    network = bottleneck(groups=8)
    assert grouped_cuts(network.module, "inside") == {"conv2": "inside", "depthwise": "whole"}
    network.grouped = grouped_cuts(network.module, "inside")
    assert width(network) == 2


@pytest.mark.parametrize("way", ["whole", "inside"])
@pytest.mark.parametrize("groups", [2, 4, 8])
def test_both_ways_are_exact_and_replayed(groups: int, way: Grouped) -> None:
    network = bottleneck(groups)
    network.grouped = grouped_cuts(network.module, way)
    removal = random_removal(network, 0.5)
    smaller, entry = cut(network, removal)
    check_cut(network, removal, smaller, network.example_input(4))
    layer = smaller.module.get_submodule("conv2")
    assert isinstance(layer, nn.Conv2d)
    kept = (groups, 8) if way == "inside" else (groups // 2, 8)
    assert (layer.groups, layer.in_channels) == kept
    assert layer.weight.shape[1] == layer.in_channels // layer.groups
    assert entry.get("inside", []) == (["conv2"] if way == "inside" else [])

    again = replay(bottleneck(groups), [entry])  # of a network that would be cut the other way by itself
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in smaller.state_dict().items())


def test_a_second_cut_goes_the_way_of_the_first() -> None:
    """By itself a network of eight groups would be cut inside once six are gone."""
    network = bottleneck(groups=8)
    once, first = cut(network, {"conv1": [0, 1, 2, 3, 4, 5]})
    assert once.grouped["conv2"] == "whole"
    twice, second = cut(once, {"conv1": [1]})
    again = replay(network, [first, second])
    assert again.module.get_submodule("conv2").groups == 1
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in twice.state_dict().items())


def test_a_plan_of_the_other_way_is_refused() -> None:
    network = bottleneck()
    _, entry = cut(network, {"conv1": [0]})
    del entry["inside"]
    with pytest.raises(CutRefused, match="plan entry 0 cannot be replayed"):
        replay(network, [entry])
