"""Norms of every kind are cut: over channels, the norm of what stays."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core.errors import ExactnessFailed
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.groups import channel_groups
from core.graph.importers import read_onnx
from core.graph.lowering import trace
from core.graph.network import Network
from tests.core.graph.norm_texts import norms_of, parts
from tests.core.graph.round_trips import cut_and_check, read_case

WEIGHTS: dict[str, Any] = {
    "w0": (12, 4, 3, 3), "s": (12,), "b": (12,), "s1": (12, 1, 1), "b1": (12, 1, 1), "whole": (12, 4, 4),
    "wa": (12, 24), "ba": (24,), "wb": (24, 12), "bb": (12,), "last": (5, 12, 4, 4),
    "parted": np.array([0, 4, -1]), "one": np.ones(4, np.float32), "zero": np.zeros(4, np.float32),
    "two": np.array(2, np.float32), "e": np.array(1e-3, np.float32), "half": (6, 4, 3, 3), "rest": (6, 4, 3, 3),
    "places": (4, 4), "dw": (12, 1, 3, 3), "long": (192,), "wl": (192, 12),
}  # fmt: skip
STEM = "c = Conv(x, w0)  "
NHWC, NCHW = "Transpose<perm=[0,2,3,1]>", "Transpose<perm=[0,3,1,2]>"
CHANNEL_LAST = "t = {nhwc}(c)  {norm}  u = {nchw}(n)  y = Conv(u, last)"


def last(norm: str) -> str:
    return STEM + CHANNEL_LAST.format(nhwc=NHWC, nchw=NCHW, norm=norm)


CUTS: dict[str, tuple[str, int]] = {
    "layer norm over channels behind a transpose": (last("n = LayerNormalization(t, s, b)"), 12),
    "layer norm over channels and places": (STEM + "n = LayerNormalization<axis=1>(c, whole)  y = Conv(n, last)", 12),
    "layer norm over places": (STEM + "n = LayerNormalization<axis=2>(c, places)  y = Conv(n, last)", 12),
    "spelled-out layer norm over channels": (
        STEM + parts("1", x="c", end="o = Mul(q, s1)  n = Add(o, b1)  y = Conv(n, last)"), 12,
    ),
    "spelled-out norm over all": (
        STEM + parts("1,2,3", x="c", end="o = Mul(q, s1)  n = Add(o, b1)  y = Conv(n, last)"), 12,
    ),
    "spelled-out layer norm over places": (STEM + parts("2,3", x="c", end="y = Conv(q, last)"), 12),
    "root mean square": (
        STEM + "p = Mul(c, c)  v = ReduceMean<axes=[1]>(p)  a = Add(v, e)  r = Sqrt(a)  q = Div(c, r)  n = Mul(q, s1)  "
        "y = Conv(n, last)", 12,
    ),
    "group norm": (
        STEM + "g = Reshape(c, parted)  i = InstanceNormalization(g, one, zero)  z = Shape(c)  h = Reshape(i, z)  "
        "o = Mul(h, s1)  n = Add(o, b1)  y = Conv(n, last)", 4,
    ),
    "instance norm": (STEM + "n = InstanceNormalization(c, s, b)  y = Conv(n, last)", 12),
    "mean and variance of places": (STEM + "n = MeanVarianceNormalization<axes=[2,3]>(c)  y = Conv(n, last)", 12),
    "a ConvNeXt block": (
        STEM + "d = Conv<group=12, pads=[1,1,1,1]>(c, dw)  t = Transpose<perm=[0,2,3,1]>(d)  "
        "n = LayerNormalization(t, s, b)  f = MatMul(n, wa)  g = Add(f, ba)  h = Sigmoid(g)  i = MatMul(h, wb)  "
        "j = Add(i, bb)  k = Mul(j, b)  l = Transpose<perm=[0,3,1,2]>(k)  m = Add(l, c)  y = Conv(m, last)", 12,
    ),
    "a norm over two layers": (
        "c1 = Conv(x, half)  c2 = Conv(x, rest)  c = Concat<axis=1>(c1, c2)  t = Transpose<perm=[0,2,3,1]>(c)  "
        "n = LayerNormalization(t, s, b)  u = Transpose<perm=[0,3,1,2]>(n)  y = Conv(u, last)", 6,
    ),
    "two norms, one behind a flattening": (
        STEM + "f = Flatten(c)  n = LayerNormalization(f, long)  p = MatMul(n, wl)  m = LayerNormalization(p, s, b)  "
        "y = MatMul(m, wa)", 12,
    ),
}  # fmt: skip


def network_to_cut(name: str, folder: Path) -> Network:
    body, _ = CUTS[name]
    words = re.findall(r"\w+", body)
    weights = {key: value for key, value in WEIGHTS.items() if key in words}
    outputs = {"outputs": "float[batch,n] y"} if "Flatten" in body else {}
    return read_case({"body": body, "weights": weights, **outputs}, folder)


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_norms_are_cut_exactly(name: str, seed: int, tmp_path: Path) -> None:
    network = network_to_cut(name, tmp_path)
    first = channel_groups(network).groups[0]
    assert (first.cuttable, first.width) == (True, CUTS[name][1])
    smaller = cut_and_check(network, tmp_path, 0.5, seed)
    before, after = (sum(p.numel() for p in item.parameters()) for item in (network, smaller))
    assert after < 0.75 * before
    again = read_onnx(tmp_path / "cut.onnx")
    assert [type(layer) for layer in norms_of(again)] == [type(layer) for layer in norms_of(smaller)]


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("opset", [9, 13, 21, 23])
def test_cut_norms_are_written_for_every_opset(name: str, opset: int, tmp_path: Path) -> None:
    network = network_to_cut(name, tmp_path)
    network.origin = replace(network.origin, opset=opset)
    cut_and_check(network, tmp_path)


def test_attributes_follow_the_tensors(tmp_path: Path) -> None:
    layer_norm = norms_of(
        cut_and_check(network_to_cut("layer norm over channels behind a transpose", tmp_path), tmp_path)
    )
    assert repr(layer_norm[1]) == "LayerNorm((8,), eps=1e-05, elementwise_affine=True, bias=True)"
    both = norms_of(cut_and_check(network_to_cut("layer norm over channels and places", tmp_path), tmp_path))
    assert repr(both[1]) == "LayerNorm((8, 4, 4), eps=1e-05, elementwise_affine=True, bias=False)"
    groups = norms_of(cut_and_check(network_to_cut("group norm", tmp_path), tmp_path, 0.25))
    assert repr(groups[1]) == "GroupNorm(3, 9, eps=1e-05, affine=True, bias=True)"
    one = norms_of(cut_and_check(network_to_cut("spelled-out norm over all", tmp_path), tmp_path))
    assert repr(one[1]).startswith("GroupNorm(1, 8")
    instance = norms_of(cut_and_check(network_to_cut("instance norm", tmp_path), tmp_path))
    assert repr(instance[1]).startswith("InstanceNorm2d(8,")


def test_the_proof_of_a_norm_over_channels_can_fail(tmp_path: Path) -> None:
    """Zeroed behind the norm alone, its mean would still be over all channels."""
    network = network_to_cut("layer norm over channels behind a transpose", tmp_path)
    smaller, _ = cut(network, {"n0": [1, 2]})
    inputs = network.example_input(3)
    assert check_cut(network, {"n0": [1, 2]}, smaller, inputs).passed
    with torch.no_grad():
        smaller.layers()["n2"].get_parameter("weight")[3] *= 1.0001
    with pytest.raises(ExactnessFailed):
        check_cut(network, {"n0": [1, 2]}, smaller, inputs)
    other, _ = cut(network, {"n0": [1, 3]})
    with pytest.raises(ExactnessFailed):
        check_cut(network, {"n0": [1, 2]}, other, inputs)


def test_neighbours_freeze_each_other(tmp_path: Path) -> None:
    body = STEM + "n = LRN<size=3>(c)  m = Conv(n, w1)  y = Conv(m, w2)"
    weights = {"w0": (12, 4, 3, 3), "w1": (8, 12, 1, 1), "w2": (5, 8, 1, 1)}
    network = read_case({"body": body, "weights": weights}, tmp_path)
    found = channel_groups(network)
    assert [group.name for group in found.groups if group.cuttable] == ["n2"]
    (reason,) = [item for item in found.frozen if item.layers == ["n0"]]
    assert (reason.operator, reason.reason) == ("LocalResponseNorm", "it normalises each channel by its neighbours")
    cut_and_check(network, tmp_path)


def test_an_lp_norm_over_channels_freezes_them(tmp_path: Path) -> None:
    body = STEM + "n = LpNormalization<axis=1>(c)  y = Conv(n, last)"
    network = read_case({"body": body, "weights": {key: WEIGHTS[key] for key in ("w0", "last")}}, tmp_path)
    assert not any(group.cuttable for group in channel_groups(network).groups)


class UsedTwice(nn.Module):
    """One norm over two dimensions, used after each of two permutations of a convolution's result."""

    def __init__(self, *orders: tuple[int, ...]) -> None:
        super().__init__()
        self.conv, self.middle, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 8)
        self.norm = nn.LayerNorm((8, 8))
        self.orders = orders

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        for order in self.orders:
            back = [order.index(dim) for dim in range(4)]
            x = torch.relu(self.norm(x.permute(*order)).permute(*back))
        return self.head(self.middle(x))


@pytest.mark.parametrize(
    ("orders", "free"),
    [
        (((0, 2, 1, 3), (0, 2, 1, 3)), True),
        (((0, 2, 1, 3), (0, 2, 3, 1)), False),
        (((0, 1, 2, 3), (0, 2, 1, 3)), False),
        (((0, 2, 3, 1), (0, 1, 3, 2)), False),
        (((0, 1, 2, 3), (0, 1, 3, 2)), True),
    ],
)
def test_a_norm_used_twice_is_cut_along_one_dimension_or_frozen(
    orders: tuple[tuple[int, ...], ...], free: bool, tmp_path: Path
) -> None:
    network = trace(UsedTwice(*orders).eval(), (3, 8, 8))
    found = channel_groups(network)
    assert found.groups[0].cuttable == free
    if not free:
        reasons = {item.reason for item in found.frozen if "conv" in item.layers}
        assert reasons & {
            "the norm goes over other dimensions than the channels", "the norm is used along several dimensions",
        }  # fmt: skip
    cut_and_check(network, tmp_path)
