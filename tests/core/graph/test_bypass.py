"""A bypass is exact, complete and replayable; what cannot be bypassed is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.errors import CutRefused, ExactnessFailed
from core.graph.architectures import build
from core.graph.blocks import find_blocks
from core.graph.bypass import bypass, check_bypass, obstacles
from core.graph.counts import count
from core.graph.cuts import cut
from core.graph.exactness import check_cut, relative_error
from core.graph.export import check_parity, write_onnx
from core.graph.groups import channel_groups
from core.graph.lowering import trace
from core.graph.network import Network
from core.graph.plans import channel_map, replay
from tests.core.graph import block_topologies as made
from tests.core.graph.topologies import SHAPE, random_removal, seeded, topology


def network_of(*blocks: nn.Module, channels: int) -> Network:
    return trace(seeded(made.stages(*blocks, channels=channels)), SHAPE)


def settled(name: str, size: int) -> Network:
    network = build(name, image_size=(size, size)).train()
    with torch.no_grad():
        for seed in range(2):
            network(network.example_input(4, seed))
    return network.eval()


NETWORKS: dict[str, Callable[[], Network]] = {
    "basic": lambda: network_of(made.Basic(6), made.Basic(6, 12, 2), channels=12),
    "resnext": lambda: network_of(made.GroupedBottleneck(6, 12, 2, False), made.Basic(12), channels=12),
    "regnet": lambda: network_of(made.GroupedBottleneck(6, 12, 1, True), channels=12),
    "long skip": lambda: network_of(made.LongSkip(6), channels=6),
    "layer scale": lambda: network_of(made.Scaled(6), made.Scaled(6), channels=6),
    "inception": lambda: network_of(made.Branches(6), channels=18),
    "fire": lambda: network_of(made.Fire(6), made.Fire(12), channels=12),
    "depthwise behind": lambda: network_of(made.DepthwiseBehind(6), channels=12),
    "identity branch": lambda: network_of(made.IdentityBranch(6), channels=12),
    "zero padded": lambda: topology("ZeroPaddedShortcut"),
    "softmax": lambda: topology("EndsInSoftmax"),
    "resnet20": lambda: settled("resnet20", 16),
    "preresnet20": lambda: settled("preresnet20", 16),
    "small_inception": lambda: settled("small_inception", 32),
    "vgg16": lambda: settled("vgg16", 32),
}
LARGE = ("mobilenet_v2", "efficientnet_b0", "convnext_tiny", "googlenet", "resnet164")


def tried(network: Network, *, every: int = 1) -> list[tuple[Network, dict[str, Any]]]:
    """Every block, branch and layer that can be bypassed (each `every`-th of a kind), bypassed and proved."""
    inputs = network.example_input(2, seed=1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    blocks = [block for block in find_blocks(network) if block.position % every == 0]
    reasons = obstacles(network, blocks, channel_groups(network))
    found = []
    for block in blocks:
        for branch in block.branches or (None,):
            name = None if branch is None else branch.name
            if reasons[block.name, name] is not None:
                with pytest.raises(CutRefused) as caught:
                    bypass(network, block.name, name)
                assert caught.value.faults[0].message == reasons[block.name, name]
                continue
            smaller, entry = bypass(network, block.name, name)
            assert check_bypass(network, entry, smaller, inputs).error <= 1e-9
            lost = count(network).params - count(smaller).params
            assert lost == block.params if branch is None else lost >= branch.params
            assert set(entry["removed"]) == set(block.own if branch is None else branch.layers)
            assert network.layers().keys() - smaller.layers().keys() == set(entry["removed"])
            assert smaller.state_dict().keys() < before.keys() or not entry["removed"]
            assert (smaller.inputs, smaller.outputs, smaller.origin) == (
                network.inputs, network.outputs, network.origin,
            )  # fmt: skip
            found.append((smaller, entry))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "the original is kept"
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_bypasses_are_exact_and_replayed(name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]()
    inputs = network.example_input(2, seed=2)
    for index, (smaller, entry) in enumerate(tried(network, every=3 if name in ("vgg16", "small_inception") else 1)):
        again = replay(network, json.loads(json.dumps([entry])))
        assert relative_error(smaller(inputs), again(inputs)) == 0
        if index == 0:
            write_onnx(smaller, tmp_path / "bypassed.onnx")
            assert check_parity(smaller, tmp_path / "bypassed.onnx", inputs).passed


@pytest.mark.parametrize("name", LARGE)
def test_large_networks(name: str) -> None:
    assert len(tried(settled(name, 32), every=9)) >= 2


def test_all_blocks_of_a_stage_one_after_the_other_and_cuts_in_between() -> None:
    network = NETWORKS["resnet20"]()
    inputs = network.example_input(2)
    plan = []
    smaller = network
    for name in ("layer1.1", "layer2.0", "layer1.0", "layer3.2", "layer3.1.conv1", "layer1.2"):
        before = smaller
        smaller, entry = bypass(smaller, name)
        assert check_bypass(before, entry, smaller, inputs).passed
        removal = random_removal(smaller, 0.2)
        thinner, cut_entry = cut(smaller, removal)
        assert check_cut(smaller, removal, thinner, inputs).passed
        smaller = thinner
        plan += [entry, cut_entry]
    assert [block.name for block in find_blocks(smaller) if block.kind == "residual"] == [
        "layer2.1", "layer2.2", "layer3.0", "layer3.1",
    ]  # fmt: skip
    assert "layer2.0.downsample.0" in smaller.layers(), "the projection stays"
    again = replay(network, json.loads(json.dumps(plan)))
    assert relative_error(smaller(inputs), again(inputs)) == 0
    left = channel_map(network, plan)
    assert left["layer1.0.conv1"] == []
    counts = count(smaller).layers
    assert all(len(channels) == (counts[name].channels if name in counts else 0) for name, channels in left.items())


def test_what_follows_the_sum_stays() -> None:
    network = NETWORKS["resnet20"]()
    smaller, _ = bypass(network, "layer1.0")
    relus = [sum("relu" in str(node.target) for node in each.module.graph.nodes) for each in (network, smaller)]
    assert relus[0] - relus[1] == 1, "the one inside goes, the one behind the sum stays"


def test_consumers_of_a_branch_lose_its_channels() -> None:
    network = NETWORKS["depthwise behind"]()
    smaller, entry = bypass(network, "blocks.0.fire", "expand3x3")
    assert entry == {
        "op": "bypass", "block": "blocks.0.fire", "branch": "expand3x3",
        "removed": ["blocks.0.fire.expand3x3.0", "blocks.0.fire.expand3x3.1"],
        "layers": {"blocks.0.depthwise.0": [6, 7, 8, 9, 10, 11]},
    }  # fmt: skip
    depthwise, pointwise = (smaller.layers()[f"blocks.0.{name}.0"] for name in ("depthwise", "pointwise"))
    assert (depthwise.in_channels, depthwise.groups, pointwise.in_channels) == (6, 6, 6)
    assert smaller.grouped.keys() == {"blocks.0.depthwise.0"}
    assert "cat" not in [str(node.target).removeprefix("aten.").split(".")[0] for node in smaller.module.graph.nodes]
    assert channel_map(network, [entry])["blocks.0.depthwise.0"] == [0, 1, 2, 3, 4, 5]


def test_a_branch_that_only_pools_can_go() -> None:
    network = NETWORKS["inception"]()
    smaller, entry = bypass(network, "blocks.0", "branch 4")
    assert entry["removed"] == []
    assert smaller.layers()["fc"].in_features == 12
    assert not [node for node in smaller.module.graph.nodes if "max_pool" in str(node.target)]


class OnlyOne(nn.Module):
    """Input, a block, output."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.beside = nn.Conv2d(3, 3, 1) if head else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.two(torch.relu(self.one(self.beside(x))))


@pytest.mark.parametrize(
    ("make", "block", "branch", "reason"),
    [
        (lambda: network_of(made.SpreadShortcut(6), channels=6), "blocks.0.conv", None, "is spread over the sum's"),
        (lambda: trace(seeded(lambda: OnlyOne(False)), SHAPE), "one..two", None, "no layer with weights would be left"),
        (lambda: topology("Shared"), "shared", None, "the layer is used 2 times"),
        (lambda: network_of(made.TiedBranches(6), channels=12), "blocks.0.fire", "expand1x1", "go together with those"),
        (lambda: network_of(made.IdentityBranch(6), channels=12), "blocks.0", "branch 2", "the block's input itself"),
        (lambda: settled("resnet20", 16), "layer9", None, "there is no such block"),
        (lambda: settled("resnet20", 16), "layer1.0", "left", "it has no branch 'left'"),
        (lambda: network_of(made.Fire(6), channels=12), "blocks.0", None, "its branches go one by one"),
        (lambda: network_of(made.Fire(6), channels=12), "blocks.0", "third", "it has no branch 'third'"),
    ],
)
def test_refusals(make: Callable[[], Network], block: str, branch: str | None, reason: str) -> None:
    network = make()
    with pytest.raises(CutRefused) as caught:
        bypass(network, block, branch)
    assert reason in caught.value.message
    assert reason in caught.value.faults[0].message
    with pytest.raises(CutRefused):
        check_bypass(network, {"block": block, "branch": branch}, network, network.example_input())


def test_an_output_that_would_be_the_input() -> None:
    network = trace(seeded(made.stages(made.Basic(6), channels=6)), SHAPE)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    one, two = graph.call_module("one", (x,)), graph.call_module("two", (x,))
    graph.output((one, two))
    layers = nn.ModuleDict({name: nn.Conv2d(3, 3, 3, padding=1) for name in ("one", "two")})
    specs = tuple(type(network.outputs[0])(name, "float32", ("batch", 3, 8, 8)) for name in ("a", "b"))
    pair = Network(torch.fx.GraphModule(layers, graph), network.inputs, specs, network.origin, (SHAPE,))
    with pytest.raises(CutRefused, match="an output would be the input 'x' as it came"):
        bypass(pair, "one")


@pytest.mark.parametrize("stride", [1, 2])
def test_shapes_must_agree_at_every_size_that_is_left_open(stride: int) -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1, stride)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.two(torch.relu(self.one(x))))

    fixed = trace(Strided().eval(), (3, 1, 1))
    bypass(fixed, "two")
    sizes = [type(fixed.inputs[0])(name, "float32", ("batch", width, "h", "w")) for name, width in (("x", 3), ("y", 6))]
    network = Network(fixed.module, (sizes[0],), (sizes[1],), fixed.origin, ((3, 1, 1),))
    if stride == 1:
        assert bypass(network, "two")[1]["removed"] == ["two"]
        return
    with pytest.raises(CutRefused, match="agree at one size of the input only"):
        bypass(network, "two")


def test_a_branch_that_reaches_an_output_stays() -> None:
    class EndsInBranches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fire = made.unit(3, 6), made.Fire(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fire(self.stem(x))

    network = trace(seeded(EndsInBranches), SHAPE)
    with pytest.raises(CutRefused, match="the channels of a model output stay"):
        bypass(network, "fire", "expand1x1")
    (block, *_) = find_blocks(network)
    assert "output" in str(obstacles(network, [block])["fire", None])


def test_branches_that_are_shuffled_stay() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fire, self.last = made.Fire(6), made.unit(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.reshape(self.fire(x), (-1, 2, 6, 8, 8))
            x = torch.permute(x, (0, 2, 1, 3, 4))
            return self.last(torch.flatten(x, 1, 2)[:, :6])

    network = network_of(Shuffled(), channels=4)
    reasons = obstacles(network, find_blocks(network))
    assert reasons["blocks.0.fire", "expand1x1"] is not None


def test_plans_that_do_not_fit() -> None:
    network = NETWORKS["resnet20"]()
    _, entry = bypass(network, "layer1.0")
    with pytest.raises(CutRefused) as caught:
        replay(network, [{**entry, "removed": ["layer1.0.conv1"]}])
    assert caught.value.faults[0].pointer == "/0/removed"
    with pytest.raises(CutRefused) as caught:
        replay(network, [entry, entry])
    assert (caught.value.faults[0].pointer, "there is no such block" in caught.value.message) == ("/1/block", True)


def test_the_proof_fails_for_another_block_and_for_changed_weights() -> None:
    network = NETWORKS["resnet20"]()
    inputs = network.example_input(4)
    smaller, entry = bypass(network, "layer1.0")
    with pytest.raises(ExactnessFailed):
        check_bypass(network, {**entry, "block": "layer1.1"}, smaller, inputs)
    with torch.no_grad():
        smaller.layers()["fc"].get_parameter("weight")[0, 0] += 1e-5
    with pytest.raises(ExactnessFailed):
        check_bypass(network, entry, smaller, inputs)
    fire = NETWORKS["fire"]()
    smaller, entry = bypass(fire, "blocks.0", "expand1x1")
    with pytest.raises(ExactnessFailed):
        check_bypass(fire, {**entry, "branch": "expand3x3"}, smaller, inputs[:, :, :8, :8])


def test_the_mode_and_the_type_stay() -> None:
    network = NETWORKS["basic"]().to(torch.float64).train()
    smaller, _ = bypass(network, "blocks.0")
    assert smaller.training
    assert {parameter.dtype for parameter in smaller.parameters()} == {torch.float64}
