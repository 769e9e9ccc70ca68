"""Blocks, branches and plain layers are found by dominators; what only looks like one is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

from core.graph.architectures import build
from core.graph.blocks import Block, find_blocks
from core.graph.counts import count
from core.graph.lowering import trace
from tests.core.graph import block_topologies as made
from tests.core.graph.topologies import SHAPE, seeded, topology

SMALL, LARGE = (32, 32), (64, 64)


def blocks_of(make: Callable[[], nn.Module]) -> list[Block]:
    return find_blocks(trace(seeded(make), SHAPE))


def kinds(blocks: list[Block]) -> dict[str, int]:
    return dict(Counter(block.kind for block in blocks if block.kind != "layer"))


@pytest.mark.parametrize(
    ("name", "size", "residual", "projections", "branches"),
    [
        ("resnet20", SMALL, 9, 2, 0),
        ("resnet56", SMALL, 27, 2, 0),
        ("resnet110", SMALL, 54, 2, 0),
        ("preresnet20", SMALL, 9, 2, 0),
        ("resnet164", SMALL, 54, 3, 0),
        ("resnet18", LARGE, 8, 3, 0),
        ("resnet34", LARGE, 16, 3, 0),
        ("resnet50", LARGE, 16, 4, 0),
        ("mobilenet_v2", LARGE, 10, 0, 0),
        ("efficientnet_b0", LARGE, 9, 0, 0),
        ("convnext_tiny", LARGE, 18, 0, 0),
        ("googlenet", LARGE, 0, 0, 9),
        ("small_inception", SMALL, 0, 0, 8),
        ("densenet121", LARGE, 0, 0, 0),
        ("vgg16", SMALL, 0, 0, 0),
    ],
)
def test_the_blocks_of_well_known_networks(
    name: str, size: tuple[int, int], residual: int, projections: int, branches: int
) -> None:
    blocks = find_blocks(build(name, image_size=size))
    assert kinds(blocks) == {key: n for key, n in (("residual", residual), ("branches", branches)) if n}
    assert sum(block.shortcut == "projection" for block in blocks) == projections
    assert len({block.name for block in blocks}) == len(blocks)
    assert not any(block.inside for block in blocks if block.kind != "layer")


def test_what_is_said_of_a_block() -> None:
    network = build("resnet20")
    blocks = [block for block in find_blocks(network) if block.kind == "residual"]
    assert [block.name for block in blocks] == [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(3)]
    assert [block.position for block in blocks] == list(range(9))
    assert [block.alike for block in blocks] == [
        "layer1.0", "layer1.0", "layer1.0", "layer2.0", "layer2.1", "layer2.1", "layer3.0", "layer3.1", "layer3.1",
    ]  # fmt: skip
    first, down = blocks[0], blocks[3]
    assert (first.input_shape, first.output_shape) == ((16, 32, 32), (16, 32, 32))
    assert first.layers == first.own == ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2")
    assert (first.params, first.macs) == (2 * (16 * 16 * 9 + 32), 2 * 16 * 16 * 9 * 32 * 32)
    assert (down.input_shape, down.output_shape) == ((16, 32, 32), (32, 16, 16))
    assert set(down.layers) - set(down.own) == {"layer2.0.downsample.0", "layer2.0.downsample.1"}
    counts = count(network)
    assert down.params == sum(counts.layers[name].params for name in down.own)
    assert down.macs == sum(counts.layers[name].macs for name in down.own)


def test_every_kind_of_shortcut() -> None:
    blocks = blocks_of(
        made.stages(made.Basic(6), made.Basic(6, 12, 2), made.GroupedBottleneck(12, 12, 2, gate=False), channels=12)
    )
    found = [(block.name, block.shortcut) for block in blocks if block.kind == "residual"]
    assert found == [("blocks.0", "identity"), ("blocks.1", "resampled"), ("blocks.2", "projection")]
    assert [block.shortcut for block in find_blocks(topology("ZeroPaddedShortcut")) if block.kind == "residual"] == [
        "resampled"
    ]


@pytest.mark.parametrize("gate", [False, True], ids=["ResNeXt", "RegNetY"])
def test_grouped_bottlenecks_with_and_without_a_gate(gate: bool) -> None:
    bottlenecks = [made.GroupedBottleneck(6 if i == 0 else 12, 12, 2 - i % 2, gate) for i in range(3)]
    blocks = blocks_of(made.stages(*bottlenecks, channels=12))
    assert kinds(blocks) == {"residual": 3}
    assert [block.shortcut for block in blocks[:3]] == ["projection", "identity", "projection"]
    assert ("blocks.1.se.fc1" in blocks[1].own) == gate


def test_blocks_in_a_block() -> None:
    blocks = blocks_of(made.stages(made.LongSkip(6), made.Basic(6), channels=6))
    found = {block.name: block for block in blocks}
    assert kinds(blocks) == {"residual": 4}
    assert found["blocks.0.body"].inside is None
    assert found["blocks.0.body.0"].inside == found["blocks.0.body.1"].inside == "blocks.0.body"
    assert found["blocks.1"].inside is None
    assert found["blocks.0.body.0.conv1.0"].inside == "blocks.0.body.0"
    assert found["blocks.0.body.2"].inside == "blocks.0.body"
    assert [block.name for block in blocks if block.kind == "residual"] == [
        "blocks.0.body.0", "blocks.0.body.1", "blocks.0.body", "blocks.1",
    ]  # fmt: skip


def test_bare_parameters_belong_to_their_block() -> None:
    (block, *_) = blocks_of(made.stages(made.Scaled(6), channels=6))
    assert (block.kind, block.own, block.params) == ("residual", ("blocks.0.conv",), 6 * 6 * 9 + 6 + 6)


@pytest.mark.parametrize(
    ("block", "channels"),
    [
        (made.ParallelSum(6), 6),
        (made.ChannelAttention(6), 6),
        (made.NoLayers(6), 6),
        (made.UsedElsewhere(6), 6),
        (made.OverlappingPaths(6), 6),
        (made.Gate(6), 6),
        (made.DenseLayer(6), 9),
        (nn.Sequential(made.DenseLayer(6), made.DenseLayer(9)), 12),
        (made.SkipOver(6), 14),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_block(block: nn.Module, channels: int) -> None:
    assert kinds(blocks_of(made.stages(block, channels=channels))) == {}


def test_two_inputs_that_are_added_have_no_fork() -> None:
    graph = torch.fx.Graph()
    inputs = [graph.placeholder(name) for name in ("a", "b")]
    convolutions = nn.ModuleDict({name: nn.Conv2d(3, 3, 3, padding=1) for name in ("one", "two", "three")})
    left = graph.call_module("two", (graph.call_module("one", (inputs[0],)),))
    both = graph.call_function(torch.ops.aten.add.Tensor, (left, inputs[1]))
    graph.output(graph.call_module("three", (both,)))
    template = trace(seeded(made.stages(made.Basic(6), channels=6)), SHAPE)
    network = type(template)(
        torch.fx.GraphModule(convolutions, graph), (template.inputs[0],) * 2,
        (template.outputs[0].__class__("y", "float32", ("batch", 3, 8, 8)),), template.origin, (SHAPE, SHAPE),
    )  # fmt: skip
    assert [(block.name, block.kind) for block in find_blocks(network)] == [
        ("one", "layer"), ("two", "layer"), ("three", "layer"),
    ]  # fmt: skip


def test_branches() -> None:
    (block, *_) = blocks_of(made.stages(made.Branches(6), channels=18))
    assert (block.name, block.kind, block.shortcut) == ("blocks.0", "branches", None)
    assert [(branch.name, branch.operands) for branch in block.branches] == [
        ("branch1", (0,)), ("branch 2", (1, 3)), ("branch2", (2,)), ("branch 4", (4,)),
    ]  # fmt: skip
    assert block.branches[1].layers[0] == "blocks.0.branch3.0", "operands that share nodes are one branch"
    assert (block.branches[3].layers, block.branches[3].params) == ((), 0)
    assert block.params == sum(branch.params for branch in block.branches)
    assert block.macs == sum(branch.macs for branch in block.branches)


def test_fire_modules_and_a_branch_that_is_the_input() -> None:
    blocks = blocks_of(made.stages(made.Fire(6), made.Fire(12), made.IdentityBranch(12), channels=18))
    found = [block for block in blocks if block.kind == "branches"]
    assert [[branch.name for branch in block.branches] for block in found] == [
        ["expand1x1", "expand3x3"], ["expand1x1", "expand3x3"], ["one", "branch 2", "two"],
    ]  # fmt: skip
    assert [block.alike for block in found] == ["blocks.0", "blocks.0", "blocks.2"], "the squeezed shapes are equal"


def test_plain_layers() -> None:
    names = [block.name for block in find_blocks(topology("Shared")) if block.kind == "layer"]
    assert names == ["shared", "shared#2"], "one layer at two places"
    assert [block.name for block in find_blocks(build("vgg16"))][:2] == ["features.3", "features.10"]
    assert find_blocks(build("small_cnn")) == []


def test_a_plain_layer_ends_where_something_else_reads() -> None:
    blocks = {block.name: block for block in blocks_of(made.stages(made.UsedElsewhere(6), channels=6))}
    assert blocks["blocks.0.conv1.0"].own == ("blocks.0.conv1.0", "blocks.0.conv1.1")
    scaled = {block.name: block for block in blocks_of(made.stages(made.Scaled(6), channels=6))}
    assert scaled["blocks.0.conv#2"].kind == "layer", "a block of one layer has its name"


def test_names_without_a_path_are_those_of_the_first_and_the_last_layer() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in "abcdef":
                self.add_module(name, nn.Conv2d(3, 3, 3, padding=1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            x = x + self.c(torch.relu(self.b(x)))
            x = x + self.e(torch.relu(self.d(x)))
            return self.f(x)

    assert [block.name for block in blocks_of(Flat) if block.kind == "residual"] == ["b..c", "d..e"]
