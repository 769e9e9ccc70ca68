"""A network without each of its blocks, what lies in front computed once: the bits, the work, the memory."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.live_bytes import LiveBytes
from core.graph.architectures.cifar_resnet import CifarResNet, PreActivationBlock, PreActivationResNet
from core.graph.blocks import Block, find_blocks, innermost_residual
from core.graph.bypass import obstacles, without_blocks
from core.graph.importers import read_onnx
from core.graph.lowering import trace
from core.graph.network import Network
from core.graph.shared_runs import SharedRuns, Sharing, without
from tests.core.graph import block_topologies as made
from tests.core.graph.onnx_texts import model, saved
from tests.core.graph.topologies import SHAPE, seeded, topology

SHARINGS: tuple[Sharing, ...] = get_args(Sharing)


class Residual(nn.Module):
    """Blocks of one width in a row: each three calls, a sum and its activation."""

    def __init__(self, blocks: int, channels: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks))
        self.last = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        for convolution in self.body:
            x = torch.relu(convolution(x) + x)
        return self.last(x.mean((2, 3)))  # type: ignore[no-any-return]


TOWERS = """
    a0 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, wa)
    a1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a0, w1)
    a2 = Add(a1, a0)
    a3 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a2, w2)
    a4 = Add(a2, a3)
    a5 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a4, w1)
    a6 = Add(a4, a5)
    y = Relu(a6)
    b0 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(z, wb)
    b1 = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(b0, w2)
    b2 = Add(b1, b0)
    b3 = Mul(b2, scale)
    t = Add(a6, b3)
    u = Sigmoid(t)
"""


def towers(folder: Path) -> Network:
    """Two inputs, two outputs, a layer used by both towers and one used twice, a bare constant; all of the second tower
    is run after the first."""
    draws = np.random.default_rng(0)
    shapes = {"wa": (4, 1, 3, 3), "wb": (4, 2, 3, 3), "w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "scale": (1, 4, 1, 1)}
    weights = {name: draws.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    text = model(TOWERS, inputs="float[n,1,8,8] x, float[n,2,8,8] z", outputs="float[n,4,8,8] y, float[n,4,8,8] u",
                 weights=weights, opset=17)  # fmt: skip
    return read_onnx(saved(text, folder))


def stages(*blocks: nn.Module, channels: int) -> Network:
    return trace(seeded(made.stages(*blocks, channels=channels)), SHAPE)


NETWORKS: Mapping[str, Callable[[Path], Network]] = {
    "two towers": towers,
    "in a row": lambda _: trace(Residual(4).eval(), (1, 8, 8)),
    "projections": lambda _: trace(CifarResNet(8).eval(), (3, 8, 8)),
    "pre-activation": lambda _: trace(PreActivationResNet(8, PreActivationBlock).eval(), (3, 8, 8)),
    "bare constants": lambda _: stages(made.Scaled(6), made.Scaled(6), channels=6),
    "nested": lambda _: stages(made.LongSkip(6), made.Basic(6), channels=6),
    "a layer used twice": lambda _: stages(made.SharedTwice(6), made.Basic(6), channels=6),
    "zeros for channels": lambda _: topology("ZeroPaddedShortcut"),
}


def removable(network: Network) -> list[Block]:
    blocks = innermost_residual(find_blocks(network))
    reasons = obstacles(network, blocks)
    return [block for block in blocks if reasons[block.name, None] is None]


def without_each(network: Network) -> dict[str, list[Block]]:
    """Each of the first four blocks alone, and any two of them that follow each other."""
    blocks = removable(network)[:4]
    return {"+".join(each.name for each in chosen): chosen
            for chosen in [[block] for block in blocks] + [list(pair) for pair in pairwise(blocks)]}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_bits_are_those_of_the_smaller_networks(name: str, tmp_path: Path) -> None:
    network = NETWORKS[name](tmp_path)
    chosen = without_each(network)
    variants = {key: without(network, blocks) for key, blocks in chosen.items()}
    inputs = network.example_inputs(5, seed=1)
    with torch.inference_mode():
        found = [dict(SharedRuns(network.module, variants, sharing)(*inputs)) for sharing in SHARINGS]
        for key, blocks in chosen.items():
            expected = tuples(without_blocks(network, [block.name for block in blocks])(*inputs))
            for each in found:
                assert each.keys() == chosen.keys()
                for ours, theirs in zip(tuples(each[key]), expected, strict=True):
                    assert torch.equal(ours, theirs), key
                    assert ours.stride() == theirs.stride()


def tuples(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_more_is_held_than_said(name: str, sharing: Sharing, tmp_path: Path) -> None:
    network = NETWORKS[name](tmp_path)
    chosen = without_each(network)
    inputs = [each.contiguous(memory_format=torch.channels_last) for each in network.example_inputs(7, seed=1)]
    runs = SharedRuns(network.module, {key: without(network, blocks) for key, blocks in chosen.items()}, sharing)
    with torch.inference_mode(), LiveBytes() as live:
        deque(runs(*inputs), maxlen=0)
    given = sum(each.nbytes for each in inputs)
    said = 7 * runs.bytes_per_image
    assert 0.6 * said < live.most + given <= said


def calls(network: Network, runs: Callable[..., Any]) -> Counter[str]:
    """How often each layer is run."""
    found: Counter[str] = Counter()
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: found.update([name]))
        for name, layer in network.layers().items()
    ]
    with torch.inference_mode():
        list(runs(*network.example_inputs(2)))
    for hook in hooks:
        hook.remove()
    return found


def test_what_lies_in_front_is_computed_once() -> None:
    """Of three blocks: block 1 for all, block 2 for all and without 1, block 3 without 1 and without 2."""
    network = trace(Residual(3).eval(), (1, 8, 8))
    variants = {block.name: without(network, [block]) for block in removable(network)}
    assert calls(network, SharedRuns(network.module, variants)) == {
        "first": 1, "body.0": 1, "body.1": 2, "body.2": 2, "last": 3,
    }  # fmt: skip
    assert calls(network, SharedRuns(network.module, variants, "nothing")) == {
        "first": 3, "body.0": 2, "body.1": 2, "body.2": 2, "last": 3,
    }  # fmt: skip


def test_what_does_not_depend_on_the_block_is_computed_once(tmp_path: Path) -> None:
    network = towers(tmp_path)
    blocks = removable(network)
    variants = {block.name: without(network, [block]) for block in blocks}
    layer = next(name for name in network.layers() if "b0" in name or network.layers()[name].weight.shape[1] == 2)
    assert len(blocks) == 4
    assert [calls(network, SharedRuns(network.module, variants, sharing))[layer] for sharing in SHARINGS] == [1, 4, 4]


def test_the_less_is_shared_the_less_is_held(tmp_path: Path) -> None:
    network = towers(tmp_path)
    variants = {block.name: without(network, [block]) for block in removable(network)}
    held = [SharedRuns(network.module, variants, sharing).bytes_per_image for sharing in SHARINGS]
    assert held[0] > held[1] > held[2]


def test_memory_of_a_row_by_hand() -> None:
    """4 channels of 8×8 floats are 1,024 bytes. Most is held in a rest: the image (256), the block's input for those to
    come, and there a block's input, its convolution and the sum."""
    network = trace(Residual(4).eval(), (1, 8, 8))
    variants = {block.name: without(network, [block]) for block in removable(network)}
    runs = SharedRuns(network.module, variants)
    assert runs.bytes_per_image == 256 + 4 * 1024
    (images,) = network.example_inputs(3)
    with torch.inference_mode(), LiveBytes() as live:
        deque(runs(images), maxlen=0)
    assert live.most + images.nbytes == 3 * (256 + 4 * 1024)
