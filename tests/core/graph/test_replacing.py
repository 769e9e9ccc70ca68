"""Blocks in a row are replaced by one with new weights: exactly, replayably; what cannot be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from core.errors import CutRefused, ExactnessFailed
from core.graph.architectures import build
from core.graph.blocks import find_blocks
from core.graph.bypass import without_blocks
from core.graph.counts import count
from core.graph.exactness import relative_error
from core.graph.lowering import trace
from core.graph.network import Network
from core.graph.plans import channel_map, replay
from core.graph.replacing import WEIGHTS, Weights, check_replacement, follows, own_parameters, replace_blocks
from core.training.memory_format import to_channels_last
from tests.core.graph import block_topologies as made
from tests.core.graph.topologies import SHAPE, seeded


def settled(name: str, size: int = 16) -> Network:
    """With statistics of its own."""
    return _settled(name, size).clone()


@cache
def _settled(name: str, size: int) -> Network:
    network = build(name, image_size=(size, size)).train()
    with torch.no_grad():
        for seed in range(2):
            network(network.example_input(4, seed))
    return network.eval()


def of(*blocks: nn.Module, channels: int = 6) -> Network:
    return trace(seeded(made.stages(*blocks, channels=channels)), SHAPE)


@pytest.fixture(scope="module")
def resnet() -> Network:
    return settled("resnet20")


def residual_path(network: Network, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """What the residual path of a block gives."""
    (block,) = (each for each in find_blocks(network) if each.name == name)
    looked_at = network.clone()
    nodes = {node.name: node for node in looked_at.module.graph.nodes}
    (output,) = looked_at.module.graph.find_nodes(op="output")
    output.args = (nodes[block.exit].args[block.path or 0],)
    looked_at.module.recompile()
    result: torch.Tensor = looked_at.module(inputs)
    return result


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", ["resnet20", "preresnet20", "scaled"])
def test_it_is_exact_and_replayed_with_the_same_weights(name: str, weights: Weights) -> None:
    rows: dict[str, list[str]] = {
        "resnet20": ["layer2.0", "layer2.1", "layer2.2"],
        "preresnet20": ["layer2.0", "layer2.1"],
        "scaled": ["blocks.0.conv", "blocks.1.conv"],
    }
    network = of(made.Scaled(6), made.Scaled(6)) if name == "scaled" else settled(name, 16 if name[-2:] == "20" else 32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    inputs = network.example_input(2, seed=3)
    smaller, entry = replace_blocks(network, rows[name], seed=5, weights=weights)
    assert check_replacement(network, entry, smaller, inputs).passed
    again = replay(network, json.loads(json.dumps([entry])))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in smaller.state_dict().items())
    assert relative_error(smaller(inputs), again(inputs)) == 0
    assert count(smaller).blocks == count(network).blocks - len(rows[name]) + 1
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "the original is kept"
    path = residual_path(smaller, rows[name][0], inputs)
    assert bool(path.any()) == (weights == "random")


def test_by_hand_what_stays_what_goes_and_what_is_new(resnet: Network) -> None:
    smaller, entry = replace_blocks(resnet, ["layer2.0", "layer2.1"], seed=5, weights="random")
    assert entry == {
        "op": "replace", "blocks": ["layer2.0", "layer2.1"], "seed": 5, "with": "random", "layers": {},
        "removed": [f"layer2.1.{name}" for name in ("conv1", "bn1", "conv2", "bn2")],
    }  # fmt: skip
    ours, theirs = smaller.state_dict(), resnet.state_dict()
    changed = {key for key, value in ours.items() if not torch.equal(value, theirs[key])}
    assert {key.rpartition(".")[0] for key in changed} == {
        "layer2.0.conv1", "layer2.0.bn1", "layer2.0.conv2", "layer2.0.bn2",
    }, "the projection keeps its weights"  # fmt: skip
    assert ours["layer2.0.conv1.weight"].std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.05)
    assert ours["layer2.0.bn1.running_var"].eq(1).all()
    assert channel_map(resnet, [entry])["layer2.1.conv1"] == []
    other, _ = replace_blocks(resnet, ["layer2.0", "layer2.1"], seed=6, weights="random")
    assert not torch.equal(other.state_dict()["layer2.0.conv1.weight"], ours["layer2.0.conv1.weight"])


def test_zero_weights_are_those_of_the_last_normalisation(resnet: Network) -> None:
    random, _ = replace_blocks(resnet, ["layer2.0", "layer2.1"], seed=5, weights="random")
    zero, _ = replace_blocks(resnet, ["layer2.0", "layer2.1"], seed=5, weights="zero")
    ours, theirs = zero.state_dict(), random.state_dict()
    assert {key for key, value in ours.items() if not torch.equal(value, theirs[key])} == {"layer2.0.bn2.weight"}
    assert not ours["layer2.0.bn2.weight"].any()
    inputs = resnet.example_input(2)
    # y = shortcut(x) + 0: what is left where the first is taken out as well
    without = without_blocks(resnet, ["layer2.0", "layer2.1"])
    assert relative_error(zero(inputs), without(inputs)) == 0


def zeroed(network: Network) -> list[str]:
    """The layers whose weights are all 0."""
    return [layer for layer, module in network.layers().items() if not module.get_parameter("weight").any()]


def test_where_no_normalisation_is_last_it_is_the_last_layer() -> None:
    zero, _ = replace_blocks(settled("preresnet20"), ["layer1.0", "layer1.1"], seed=5, weights="zero")
    assert zeroed(zero) == ["layer1.0.conv2"]
    scaled = of(made.Scaled(6), made.Scaled(6))
    zero, _ = replace_blocks(scaled, ["blocks.0.conv", "blocks.1.conv"], seed=5, weights="zero")
    assert zeroed(zero) == ["blocks.0.conv"]
    assert zero.state_dict()["blocks.0.gamma"].eq(0.5).all(), "a scale of no layer stays"


def test_a_gate_behind_the_normalisation_is_not_zeroed() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.gate = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), made.Gate(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.gate(self.bn(self.conv(x)))  # type: ignore[no-any-return]

    zero, _ = replace_blocks(of(Gated(), Gated()), ["blocks.0", "blocks.1"], seed=5, weights="zero")
    assert zeroed(zero) == ["blocks.0.bn"]


def test_a_zeroed_block_learns(resnet: Network) -> None:
    zero, _ = replace_blocks(resnet, ["layer1.0", "layer1.1"], seed=5, weights="zero")
    optimizer = torch.optim.SGD(zero.parameters(), lr=0.1)
    before = zero.state_dict()["layer1.0.conv1.weight"].clone()
    for seed in range(2):  # first the zeros move, then what is in front of them
        optimizer.zero_grad()
        zero.train()(zero.example_input(4, seed)).square().sum().backward()
        optimizer.step()
    assert zero.state_dict()["layer1.0.bn2.weight"].any()
    assert not torch.equal(zero.state_dict()["layer1.0.conv1.weight"], before)


def test_the_block_that_changes_shapes_stays(resnet: Network) -> None:
    smaller, entry = replace_blocks(resnet, ["layer1.2", "layer2.0"], seed=5, weights="random")
    assert [name.rpartition(".")[0] for name in entry["removed"]] == ["layer1.2"] * 4
    assert check_replacement(resnet, entry, smaller, resnet.example_input(2)).passed
    kept = smaller.state_dict()["layer2.0.conv1.weight"]
    assert not torch.equal(kept, resnet.state_dict()["layer2.0.conv1.weight"])


def test_the_proof_finds_another_structure_and_other_weights(resnet: Network) -> None:
    names = ["layer1.0", "layer1.1"]
    smaller, entry = replace_blocks(resnet, names, seed=5, weights="random")
    inputs = resnet.example_input(2)
    wrong, _ = replace_blocks(resnet, ["layer1.1", "layer1.2"], seed=5, weights="random")
    with torch.no_grad():
        smaller.module.get_submodule("layer1.2.conv1").get_parameter("weight").mul_(1.01)
    with pytest.raises(ExactnessFailed):
        check_replacement(resnet, entry, smaller, inputs)
    with pytest.raises((ExactnessFailed, AttributeError)):
        check_replacement(resnet, entry, wrong, inputs)


def test_layout_and_mode_of_what_is_renewed_stay() -> None:
    network = settled("resnet20")
    to_channels_last(network)
    smaller, _ = replace_blocks(network, ["layer1.0", "layer1.1"], seed=5, weights="random")
    weight = smaller.state_dict()["layer1.0.conv1.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    plain, _ = replace_blocks(settled("resnet20"), ["layer1.0", "layer1.1"], seed=5, weights="random")
    assert torch.equal(weight, plain.state_dict()["layer1.0.conv1.weight"])
    assert not smaller.training


REFUSED: dict[str, tuple[Callable[[], Network], list[str], str]] = {
    "unknown": (lambda: settled("resnet20"), ["layer1.0", "layer9.9"], "no residual block 'layer9.9'"),
    "one": (lambda: settled("resnet20"), ["layer1.0"], "two at least"),
    "twice": (lambda: settled("resnet20"), ["layer1.0", "layer1.0"], "does not follow"),
    "a gap": (lambda: settled("resnet20"), ["layer1.0", "layer1.2"], "'layer1.2' does not follow 'layer1.0'"),
    "backwards": (lambda: settled("resnet20"), ["layer1.1", "layer1.0"], "does not follow"),
    "two sizes": (lambda: of(made.Basic(6, 9), made.Basic(9, 12), channels=12), ["blocks.0", "blocks.1"],
                  "change shapes: one block cannot"),
    "a layer between": (lambda: of(made.Basic(6), made.unit(6), made.Basic(6)), ["blocks.0", "blocks.2"],
                        "does not follow"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    make, names, reason = REFUSED[case]
    with pytest.raises(CutRefused, match=reason):
        replace_blocks(make(), names, seed=0, weights="random")


def test_a_block_that_shares_a_layer_is_refused() -> None:
    shared = nn.Conv2d(6, 6, 3, padding=1)

    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = shared, nn.Conv2d(6, 6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.last(torch.relu(self.conv(x)))  # type: ignore[no-any-return]

    network = of(Sharing(), Sharing(), Sharing())
    names = [block.name for block in find_blocks(network) if block.kind == "residual"]
    with pytest.raises(CutRefused, match=r"conv is used outside of it"):
        replace_blocks(network, names[:2], seed=0, weights="random")


def test_zero_is_refused_where_it_could_not_learn() -> None:
    network = of(made.Basic(6), made.Basic(6))  # its path ends in a ReLU, which has no slope at 0
    with pytest.raises(CutRefused, match="could learn from there"):
        replace_blocks(network, ["blocks.0", "blocks.1"], seed=0, weights="zero")
    smaller, entry = replace_blocks(network, ["blocks.0", "blocks.1"], seed=0, weights="random")
    assert check_replacement(network, entry, smaller, network.example_input(2)).passed


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"with": "ones"}, "/0/with"),
        ({"seed": -1}, "/0/seed"),
        ({"seed": None}, "/0/seed"),
        ({"blocks": "layer1.0"}, "/0/blocks"),
        ({"blocks": ["layer1.0", 3]}, "/0/blocks"),
        ({"removed": []}, "/0/removed"),
        ({"layers": {"layer1.0.conv1": [0]}}, "/0/layers"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(resnet: Network, change: dict[str, Any], pointer: str) -> None:
    _, entry = replace_blocks(resnet, ["layer1.0", "layer1.1"], seed=5, weights="random")
    with pytest.raises(CutRefused) as caught:
        replay(resnet, [entry | change])
    assert [fault.pointer for fault in caught.value.faults] == [pointer]


def test_who_follows_whom() -> None:
    for name in ("resnet20", "preresnet20"):  # with a ReLU between blocks, and without
        network = settled(name)
        blocks = [block for block in find_blocks(network) if block.kind == "residual"]
        follow = [(one.name, other.name) for one in blocks for other in blocks if follows(network, one, other)]
        inside = [(f"layer{group}.{at}", f"layer{group}.{at + 1}") for group in (1, 2, 3) for at in (0, 1)]
        across = [("layer1.2", "layer2.0"), ("layer2.2", "layer3.0")]
        # in the other one a normalisation stands in front of a group's fork
        assert set(follow) == {*inside, *(across if name == "resnet20" else ())}


def test_bare_parameters_are_of_the_block() -> None:
    network = of(made.Scaled(6), made.Scaled(6))
    (first, _) = (block for block in find_blocks(network) if block.kind == "residual")
    assert own_parameters(network, first) == ["blocks.0.gamma", "blocks.0.conv.weight", "blocks.0.conv.bias"]
