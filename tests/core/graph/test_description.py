"""The description of a network: its numbers agree with the network, and it is JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from core.graph.architectures import build
from core.graph.blocks import find_blocks
from core.graph.counts import count
from core.graph.description import describe, free_parameters
from core.graph.groups import channel_groups
from core.graph.lowering import trace
from core.graph.network import Network
from core.graph_report import NetworkGraph
from tests.core.graph import block_topologies as made
from tests.core.graph.topologies import SHAPE, TOPOLOGIES, seeded, topology

NETWORKS: dict[str, Callable[[], Network]] = {
    "resnet20": lambda: build("resnet20"),
    "mobilenet_v2": lambda: build("mobilenet_v2", image_size=(32, 32)),
    "small_inception": lambda: build("small_inception"),
    **{name: lambda name=name: topology(name) for name in TOPOLOGIES},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_numbers_agree(name: str) -> None:
    network = NETWORKS[name]()
    counts, groups, blocks = count(network), channel_groups(network), find_blocks(network)
    described = describe(network)
    assert NetworkGraph.model_validate(json.loads(described.model_dump_json())) == described
    assert describe(network, groups) == described
    totals = described.totals
    assert (totals.params, totals.macs, totals.filters) == (counts.params, counts.macs, counts.filters)
    assert [layer.name for layer in described.layers] == list(counts.layers)
    assert sum(layer.macs for layer in described.layers) == counts.macs
    assert [group.name for group in described.groups] == [group.name for group in groups.groups]
    assert totals.groups == len(described.groups)
    assert totals.cuttable_groups == sum(group.cuttable for group in described.groups)
    assert [block.name for block in described.blocks] == [block.name for block in blocks]
    assert (totals.residual_blocks, totals.branch_blocks, totals.plain_layers) == tuple(
        sum(block.kind == kind for block in blocks) for kind in ("residual", "branches", "layer")
    )
    assert described.frozen == groups.frozen
    assert totals.frozen == len(described.frozen)
    assert 0 <= totals.free_params <= totals.params
    held = {layer for frozen in described.frozen for layer in frozen.layers}
    assert all(layer.frozen is (not any(g.cuttable for g in described.groups if g.name in layer.groups))
               for layer in described.layers)  # fmt: skip
    assert {layer.name for layer in described.layers if layer.frozen and layer.macs} <= held


def test_what_is_said_of_layers_and_groups() -> None:
    described = describe(topology("Depthwise"))
    layers = {layer.name: layer for layer in described.layers}
    assert (layers["stem"].input_shape, layers["stem"].output_shape) == ([3, 8, 8], [12, 8, 8])
    assert (layers["depthwise"].kind, layers["depthwise"].channels) == ("Conv2d", 12)
    assert layers["depthwise"].groups == layers["norm"].groups == layers["stem"].groups == ["stem"]
    assert layers["fc"].frozen
    assert not layers["norm"].frozen
    (stem, *_) = described.groups
    assert (stem.producers, stem.carriers, stem.consumers) == (
        ["stem", "depthwise"], ["norm"], ["depthwise", "pointwise"],
    )  # fmt: skip
    assert (stem.width, stem.unit_channels, stem.always_kept) == (12, 1, 0)
    assert describe(topology("Grouped")).groups[0].unit_channels == 4
    (output,) = [frozen for frozen in described.frozen if frozen.operator == "output"]
    assert (output.layers, output.reason) == (["fc"], "the channels of a model output stay")


def test_what_is_said_of_blocks() -> None:
    make = made.stages(made.GroupedBottleneck(6, 12, 2, True), made.TiedBranches(12), channels=12)
    described = describe(trace(seeded(make), SHAPE))
    block, fire = (next(b for b in described.blocks if b.kind == kind) for kind in ("residual", "branches"))
    assert (block.shortcut, block.projection, block.bypassable, block.reason) == ("projection", True, True, None)
    assert set(block.layers) - set(block.removed) == {"blocks.0.proj.0", "blocks.0.proj.1"}
    assert (fire.bypassable, fire.removed) == (False, list(fire.layers))
    assert all("blocks.1.beside.0" in str(branch.reason) for branch in fire.branches)
    assert fire.reason == "; ".join(dict.fromkeys(str(branch.reason) for branch in fire.branches))
    assert described.totals.bypassable == sum(
        sum(branch.bypassable for branch in each.branches) if each.branches else each.bypassable
        for each in described.blocks
    )


def test_parameters_that_are_free_to_go() -> None:
    network = topology("SqueezeExcite")
    # all of conv, reduce and expand go by rows; of the head's five filters, which stay, the columns go, not the biases
    assert free_parameters(network, channel_groups(network)) == (
        count(network).params - 5,
        *[count(network).params, count(network).params - 5],
    )
    frozen = topology("ChannelSoftmax")
    conv, *_ = frozen.layers().values()
    everything = sum(p.numel() for p in frozen.parameters())
    stays = sum(p.numel() for p in conv.parameters()) + 5
    assert free_parameters(frozen, channel_groups(frozen)) == (everything - stays, everything, everything - stays)


def test_half_frozen_layers_and_bare_parameters_are_counted_by_place() -> None:
    network = topology("ResidualFromInput")  # 3 of 11 filters meet the input
    free, conv, free_conv = free_parameters(network, channel_groups(network))
    assert free == free_conv == 8 * (3 * 9 + 1) + 5 * 8 * 9
    assert conv == 11 * (3 * 9 + 1) + 5 * (11 * 9) + 5
    scaled = trace(seeded(made.stages(made.Scaled(6), channels=6)), SHAPE)
    free, _, _ = free_parameters(scaled, channel_groups(scaled))
    assert free == count(scaled).params - 5, "gamma goes with its channel"


def test_a_network_without_convolutions() -> None:
    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 6), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(torch.relu(self.fc1(x)))

    totals = describe(trace(Perceptron().eval(), (8,))).totals
    assert (totals.conv_params, totals.free_conv_params_share) == (0, 0.0)
    assert totals.free_params == totals.params - 4


def test_deep_networks_have_short_descriptions() -> None:
    assert len(describe(build("resnet110")).model_dump_json()) < 150_000
    assert len(describe(build("densenet121", image_size=(32, 32))).model_dump_json()) < 250_000
