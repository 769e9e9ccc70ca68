"""Cuts through element-wise operators: slopes, constants of every shape, masks, several inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from core.graph.counts import count
from core.graph.groups import channel_groups
from core.graph.lowering import trace
from core.graph.network import Network
from tests.core.graph.round_trips import cut_and_check, read_case

STEM, HEAD = "c = Conv(x, w1, b1)  ", "  y = Conv(r, w2)"
WEIGHTS = {"w1": (8, 3, 1, 1), "b1": (8,), "w2": (5, 8, 1, 1)}
IMAGE: dict[str, Any] = {"inputs": "float[batch,3,6,6] x", "outputs": "float[batch,5,h,w] y"}
RANDOM = np.random.default_rng(3)
MASK = np.array([True, False, True, True, False, True, False, True])


def between(body: str, **weights: Any) -> dict[str, Any]:
    """`body` makes r (8 channels) of c (8 channels), between two convolutions."""
    return {"body": STEM + body + HEAD, "weights": {**WEIGHTS, **weights}, **IMAGE}


def number(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


FREE: dict[str, dict[str, Any]] = {
    "slopes per channel": between("r = PRelu(c, s)", s=(8, 1, 1)),
    "one slope": between("r = PRelu(c, s)", s=(1,)),
    "a slope per place": between("r = PRelu(c, s)", s=(8, 6, 6)),
    "slopes of what is flat": {
        "body": STEM + "f = Flatten(c)  p = PRelu(f, s)  y = Gemm<transB=1>(p, w2)",
        "weights": {**WEIGHTS, "s": (288,), "w2": (5, 288)}, **IMAGE, "outputs": "float[batch,5] y",
    },
    "a scale per channel": between("r = Mul(c, s)", s=(8, 1, 1)),
    "a scale per channel that is computed": between("g = Sigmoid(s)  r = Mul(c, g)", s=(8, 1, 1)),
    "shares that are computed": between(
        "h = Softmax<axis=0>(s)  g = Gather<axis=0>(h, i)  r = Mul(c, g)", s=(3,), i=np.array([1])
    ),
    "a shift per channel, the constant in front": between("r = Sub(s, c)", s=(1, 8, 1, 1)),
    "a scale along the last dimension": between(
        "t = Transpose<perm=[0,2,3,1]>(c)  u = Mul(t, s)  v = Add(u, d)  r = Transpose<perm=[0,3,1,2]>(v)",
        s=(1, 1, 1, 8), d=(8,),
    ),
    "one gate, made as wide as what it meets": between(
        "g = Conv(c, w3)  e = Expand(g, s)  r = Mul(c, e)", w3=(1, 8, 1, 1), s=np.array([1, 8, 6, 6])
    ),
    "one gate, repeated": between(
        "g = Conv(c, w3)  e = Tile(g, s)  r = Mul(c, e)", w3=(1, 8, 1, 1), s=np.array([1, 8, 1, 1])
    ),
    "one gate, made as wide, channels last": between(
        "t = Transpose<perm=[0,2,3,1]>(c)  m = MatMul(t, w3)  e = Expand(m, s)  u = Mul(t, e)"
        "  r = Transpose<perm=[0,3,1,2]>(u)",
        w3=(8, 1), s=np.array([1, 6, 6, 8]),
    ),
    "one gate, repeated along space too": between(
        "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)  g = Conv(p, w3)  e = Tile(g, s)  r = Mul(c, e)",
        w3=(1, 8, 1, 1), s=np.array([1, 1, 2, 2]),
    ),
    "a position embedding": between("r = Add(c, s)", s=(1, 8, 6, 6)),
    "a position embedding for all channels": between("r = Add(s, c)", s=(1, 1, 6, 6)),
    "positions along one dimension": between("r = Mul(c, s)", s=(8, 1, 6)),
    "a number": between("a = Exp(c)  b = Add(a, one)  r = Div(s, b)", s=number(2), one=number(1)),
    "an exponent per channel": between("a = Abs(c)  r = Pow(a, s)", s=RANDOM.random((8, 1, 1), np.float32) + 1),
    "a constant used twice": between("a = Mul(c, s)  b = Relu(a)  r = Add(b, s)", s=(8, 1, 1)),
    "a mask per channel": between("a = Relu(c)  r = Where(m, a, c)", m=MASK.reshape(8, 1, 1)),
    "a mask of places": between("r = Where(m, c, z)", m=RANDOM.random((6, 6)) > 0.5, z=number(0)),
    "a computed mask": between("m = Greater(c, s)  a = Neg(c)  r = Where(m, c, a)", s=(8, 1, 1)),
    "a computed mask per channel": between("a = GlobalAveragePool(c)  m = Less(a, z)  r = Where(m, c, v)",
                                           z=number(0), v=(8, 6, 1)),
    "a mask as numbers": between("m = Greater(c, z)  a = Cast<to=1>(m)  r = Mul(c, a)", z=number(0)),
    "counted in integers": between("a = Cast<to=7>(c)  b = Mul(a, s)  d = Cast<to=1>(b)  r = Add(c, d)",
                                   s=np.arange(8, dtype=np.int64).reshape(8, 1, 1)),
    "a gelu of parts": between("a = Div(c, k)  b = Erf(a)  d = Add(b, one)  e = Mul(c, d)  r = Mul(e, half)",
                               k=number(2**0.5), one=number(1), half=number(0.5)),
    "a gate": between("a = GlobalAveragePool(c)  b = Conv(a, g)  d = HardSigmoid(b)  r = Mul(c, d)", g=(8, 8, 1, 1)),
    "three paths": between("a = Conv(x, w3)  b = Conv(c, w4)  r = Sum(a, b, c)", w3=(8, 3, 1, 1), w4=(8, 8, 1, 1)),
    "the mean of three paths": between("a = Conv(x, w3)  b = Conv(c, w4)  r = Mean(a, b, c)", w3=(8, 3, 1, 1),
                                       w4=(8, 8, 1, 1)),
    "the largest of paths and constants": between("a = Conv(x, w3)  r = Max(a, c, s, z)", w3=(8, 3, 1, 1),
                                                  s=(8, 1, 1), z=number(-1)),
    "constants in front": between("r = Sum(s, p, z, c)", s=(1, 8, 1, 1), p=(6, 1), z=number(2)),
    "what f makes of 0 is not 0": between("a = Exp(c)  b = Cos(a)  d = Add(b, one)  r = Sigmoid(d)", one=number(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", FREE)
def test_cut(name: str, tmp_path: Path) -> None:
    network = read_case(FREE[name], tmp_path)
    (group,) = (group for group in channel_groups(network).groups if group.cuttable)
    assert group.width == 8
    smaller = cut_and_check(network, tmp_path)
    assert count(smaller).params < count(network).params


def constants(network: Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.module.named_buffers()}


def test_constants_are_cut_along(tmp_path: Path) -> None:
    shapes = {"a scale per channel": (5, 1, 1), "a position embedding": (1, 5, 6, 6),
              "a scale along the last dimension": (1, 1, 1, 5), "positions along one dimension": (5, 1, 6),
              "a mask per channel": (5, 1, 1), "a position embedding for all channels": (1, 1, 6, 6),
              "counted in integers": (5, 1, 1)}  # fmt: skip
    for name, shape in shapes.items():
        smaller = cut_and_check(read_case(FREE[name], tmp_path), tmp_path)
        assert shape in constants(smaller).values(), name


def test_slopes_are_carried(tmp_path: Path) -> None:
    network = read_case(FREE["slopes per channel"], tmp_path)
    group = next(group for group in channel_groups(network).groups if group.cuttable)
    assert [len(carrier.channels) for carrier in group.carriers] == [8]
    smaller = cut_and_check(network, tmp_path)
    (layer,) = (layer for layer in smaller.layers().values() if isinstance(layer, nn.PReLU))
    assert layer.num_parameters == layer.weight.numel() == 5


def test_paths_that_meet_go_together(tmp_path: Path) -> None:
    network = read_case(FREE["three paths"], tmp_path)
    group = next(group for group in channel_groups(network).groups if group.cuttable)
    assert len(group.producers) == 3


def test_one_channel_of_a_mask_for_all_stays(tmp_path: Path) -> None:
    """The mask of a choice, of one channel, is broadcast along the others'."""
    case = between("a = Conv(c, w3)  m = Less(a, z)  b = Neg(c)  r = Where(m, c, b)", w3=(1, 8, 1, 1), z=number(0))
    network = read_case(case, tmp_path)
    groups = channel_groups(network)
    (frozen,) = (item for item in groups.frozen if item.operator == "where")
    assert frozen.reason == "it is broadcast along the channels of another tensor"
    assert [group.width for group in groups.groups if group.cuttable] == [8]
    cut_and_check(network, tmp_path)


def test_a_softmax_over_space_leaves_channels_free(tmp_path: Path) -> None:
    network = read_case({**between("r = Softmax<axis=2>(c)"), "opset": 11}, tmp_path)
    cut_and_check(network, tmp_path)


def test_a_softmax_over_all_freezes_the_channels(tmp_path: Path) -> None:
    network = read_case({**between("r = Softmax<axis=1>(c)"), "opset": 11}, tmp_path)
    groups = channel_groups(network)
    assert not any(group.cuttable for group in groups.groups)
    assert "a softmax along the channels needs all of them" in [item.reason for item in groups.frozen]


class SharedSlopes(nn.Module):
    """One PReLU behind two convolutions: one set of slopes, so one group."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)
        self.act = nn.PReLU(8)
        nn.init.normal_(self.act.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv2(self.act(self.conv1(x)))))


def test_slopes_used_twice_tie_what_they_are_used_on(tmp_path: Path) -> None:
    network = trace(SharedSlopes().eval(), (3, 6, 6))
    (group,) = (group for group in channel_groups(network).groups if group.cuttable)
    assert [producer.layer for producer in group.producers] == ["conv1", "conv2"]
    smaller = cut_and_check(network, tmp_path)
    assert smaller.module.get_parameter("act.weight").shape == (5,)
