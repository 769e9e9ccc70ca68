"""Convolutions, plain and transposed: read, written, cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from core.graph.counts import count
from core.graph.groups import channel_groups
from core.graph.network import Network
from tests.core.graph.round_trips import cut_and_check, read_case, refused, round_trip

LINE: dict[str, Any] = {"inputs": "float[batch,4,9] x", "outputs": "float[batch,n,h] y"}
SPACE: dict[str, Any] = {"inputs": "float[batch,2,5,5,5] x", "outputs": "float[batch,n,d,h,w] y"}
OPEN: dict[str, Any] = {"inputs": "float[batch,4,h,w] x", "outputs": "float[batch,n,h2,w2] y"}
T = {"w": (4, 6, 3, 3), "b": (6,)}

CASES: dict[str, dict[str, Any]] = {
    "transposed": {"body": "y = ConvTranspose(x, w, b)", "weights": T},
    "transposed without bias": {"body": "y = ConvTranspose(x, w)", "weights": {"w": (4, 6, 3, 3)}},
    "transposed strided": {
        "body": "y = ConvTranspose<strides=[2,3], pads=[1,1,1,1], dilations=[2,1], output_padding=[1,2]>(x, w, b)",
        "weights": T,
    },
    "transposed grouped": {"body": "y = ConvTranspose<group=2, strides=[2,2]>(x, w)", "weights": {"w": (4, 3, 3, 3)}},
    "transposed depthwise": {"body": "y = ConvTranspose<group=4>(x, w, b)", "weights": {"w": (4, 1, 3, 3), "b": (4,)}},
    "transposed, more pads in front": {"body": "y = ConvTranspose<pads=[2,0,1,0]>(x, w, b)", "weights": T},
    "transposed, more pads behind": {"body": "y = ConvTranspose<pads=[0,1,1,2]>(x, w, b)", "weights": T},
    "transposed, pads behind that output padding gives back": {
        "body": "y = ConvTranspose<strides=[3,3], pads=[0,0,1,2], output_padding=[2,1]>(x, w, b)", "weights": T,
    },
    "transposed same upper": {
        "body": 'y = ConvTranspose<strides=[2,2], auto_pad="SAME_UPPER">(x, w, b)', "weights": T,
    },
    "transposed same lower": {
        "body": 'y = ConvTranspose<strides=[2,2], auto_pad="SAME_LOWER">(x, w, b)', "weights": T,
    },
    "transposed valid": {"body": 'y = ConvTranspose<strides=[2,2], auto_pad="VALID">(x, w, b)', "weights": T},
    "transposed to a shape": {
        "body": "y = ConvTranspose<strides=[3,2], output_shape=[17,12]>(x, w, b)", "weights": T,
    },
    "transposed to a wider shape": {
        "body": "y = ConvTranspose<strides=[3,2], output_shape=[20,14]>(x, w, b)", "weights": T,
    },
    "transposed to a shape, more behind": {
        "body": 'y = ConvTranspose<strides=[3,2], auto_pad="SAME_UPPER", output_shape=[17,12]>(x, w, b)', "weights": T,
    },
    "transposed to a shape with output padding": {
        "body": "y = ConvTranspose<strides=[3,2], output_shape=[10,8], output_padding=[1,1], kernel_shape=[3,3]>(x, w)",
        "weights": {"w": (4, 6, 3, 3)}, "inputs": "float[batch,4,3,3] x",
    },
    "transposed 1d": {
        "body": "y = ConvTranspose<strides=[2]>(x, w, b)", "weights": {"w": (4, 5, 4), "b": (5,)}, **LINE,
    },
    "transposed 3d": {
        "body": "y = ConvTranspose<strides=[2,1,2], pads=[1,0,1,0,1,0]>(x, w)", "weights": {"w": (2, 3, 3, 2, 3)},
        **SPACE,
    },
    "transposed of an open size": {
        "body": "y = ConvTranspose<strides=[2,2], pads=[0,2,2,0]>(x, w, b)", "weights": T, **OPEN,
    },
    "transposed same of an open size": {
        "body": 'y = ConvTranspose<strides=[2,2], auto_pad="SAME_LOWER">(x, w, b)', "weights": T, **OPEN,
    },
    "transposed used twice": {
        "body": "a = ConvTranspose(x, w)  y = ConvTranspose(a, w)", "weights": {"w": (4, 4, 2, 2)},
    },
    "conv same of an open size": {
        "body": 'y = Conv<auto_pad="SAME_UPPER">(x, w)', "weights": {"w": (6, 4, 4, 3)}, **OPEN,
    },
    "conv of one place, same, of an open size": {
        "body": 'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', "weights": {"w": (6, 4, 1, 1)}, **OPEN,
    },
    "conv same of a size that is known beside one that is open": {
        "body": 'y = Conv<auto_pad="SAME_LOWER", strides=[2,1]>(x, w)', "weights": {"w": (6, 4, 3, 3)},
        **OPEN, "inputs": "float[batch,4,9,w] x",
    },
    "conv 1d same": {
        "body": 'y = Conv<auto_pad="SAME_UPPER", strides=[2]>(x, w)', "weights": {"w": (6, 4, 4)}, **LINE,
    },
    "conv 3d padded on one side": {
        "body": "y = Conv<pads=[0,1,2,1,0,0]>(x, w)", "weights": {"w": (3, 2, 3, 3, 3)}, **SPACE,
    },
    "conv dilated and grouped 1d": {
        "body": "y = Conv<dilations=[2], group=2, pads=[2,2]>(x, w)", "weights": {"w": (6, 2, 3)}, **LINE,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_read_written_read(name: str, tmp_path: Path) -> None:
    round_trip(CASES[name], tmp_path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a computed weight": (
        {"body": "a = Relu(x)  y = ConvTranspose(x, a)"}, "ConvTranspose at node 'n1' has input 1 ('a') that is not",
    ),
    "a computed weight of a convolution": (
        {"body": "a = Relu(x)  y = Conv(x, a)"}, "operator Conv at node 'n1' has input 1 ('a') that is not constant",
    ),
    "same pads of an open size": (
        {"body": 'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', "weights": {"w": (6, 4, 3, 3)}, **OPEN},
        "auto_pad 'SAME_UPPER' with a stride on inputs of dynamic size",
    ),
    "channels that do not fit": (
        {"body": "y = ConvTranspose(x, w)", "weights": {"w": (5, 6, 3, 3)}}, "do not fit together",
    ),
    "groups that do not fit": (
        {"body": "y = ConvTranspose<group=3>(x, w)", "weights": {"w": (4, 6, 3, 3)}}, "do not fit together",
    ),
    "a bias that does not fit": (
        {"body": "y = ConvTranspose<group=2>(x, w, b)", "weights": T}, "the bias has shape [6], not [12]",
    ),
    "a kernel that is not the weight's": (
        {"body": "y = ConvTranspose<kernel_shape=[2,2]>(x, w, b)", "weights": T}, "kernel_shape is [2, 2]",
    ),
    "negative pads": ({"body": "y = ConvTranspose<pads=[-1,0,0,0]>(x, w, b)", "weights": T}, "pads is [-1, 0, 0, 0]"),
    "pads that leave nothing": ({"body": "y = ConvTranspose<pads=[8,0,0,0]>(x, w, b)", "weights": T}, "leave nothing"),
    "an unknown auto_pad": ({"body": 'y = ConvTranspose<auto_pad="HALF">(x, w, b)', "weights": T}, "auto_pad 'HALF'"),
    "same pads of strides past the kernel": (
        {"body": 'y = ConvTranspose<strides=[4,5], auto_pad="SAME_UPPER">(x, w, b)', "weights": T}, "do not agree",
    ),
    "too much output padding": (
        {"body": "y = ConvTranspose<output_padding=[1,0]>(x, w, b)", "weights": T}, "1 places behind its output",
    ),
    "half an output padding": (
        {"body": "y = ConvTranspose<output_padding=[1]>(x, w, b)", "weights": T}, "output_padding is [1]",
    ),
    "half an output shape": ({"body": "y = ConvTranspose<output_shape=[9]>(x, w, b)", "weights": T}, "shape is [9]"),
    "an output shape of an open size": (
        {"body": "y = ConvTranspose<output_shape=[9,9]>(x, w, b)", "weights": T, **OPEN}, "an output_shape on inputs",
    ),
    "four dimensions": (
        {"body": "y = ConvTranspose(x, w)", "weights": {"w": (2, 2, 1, 1, 1, 1)},
         "inputs": "float[batch,2,3,3,3,3] x", "outputs": "float[batch,a,b,c,d,e] y"}, "a weight of rank 6",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_by_name(name: str, tmp_path: Path) -> None:
    refused(*REFUSED[name], tmp_path)


@pytest.mark.parametrize(
    ("arguments", "size"),
    [((3, 2, 1, 1), 7), ((4, 2, 1, 0), 5), ((3, 3, 0, 2, 1, True, 2), 4), ((2, 1, 0, 0), 6)],
)
def test_macs_are_those_of_the_input(arguments: tuple[Any, ...], size: int, tmp_path: Path) -> None:
    """Each number of the input meets every weight of its channel once."""
    layer = nn.ConvTranspose2d(4, 6, *arguments)
    kernel, stride, padding, extra = arguments[:4]
    dilation = layer.dilation[0]
    body = (
        f"y = ConvTranspose<strides=[{stride},{stride}], pads=[{padding},{padding},{padding},{padding}], "
        f"output_padding=[{extra},{extra}], dilations=[{dilation},{dilation}]>(x, w)"
    )
    weights = {"w": (4, 6, kernel, kernel)}
    network = read_case({"body": body, "weights": weights, "inputs": f"float[batch,4,{size},{size}] x"}, tmp_path)
    assert count(network).macs == size * size * 4 * 6 * kernel * kernel
    assert count(network).filters == 6


# --- cuts ------------------------------------------------------------------------------------------------------------


AUTOENCODER = """
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)  r = Relu(a)
    c = ConvTranspose<strides=[2,2], pads=[0,0,1,1]>(r, w2, b2)  s = Relu(c)
    d = ConvTranspose<group={group}, pads=[1,1,1,1]>(s, w3)  t = Relu(d)  y = ConvTranspose(t, w4, b4)
"""


def autoencoder(group: int, folder: Path, out: int = 12) -> Network:
    weights = {
        "w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 12, 3, 3), "b2": (12,), "w3": (12, out // group, 3, 3),
        "w4": (out, 3, 1, 1), "b4": (3,),
    }  # fmt: skip
    return read_case({"body": AUTOENCODER.format(group=group), "weights": weights}, folder)


@pytest.mark.parametrize(
    ("group", "out", "way", "width"),
    [(1, 12, None, 12), (4, 12, "whole", 4), (4, 24, "whole", 4), (2, 12, "inside", 6), (2, 24, "inside", 6),
     (12, 12, "whole", 12), (12, 24, "whole", 12)],
)  # fmt: skip
def test_transposed_convolutions_are_cut(group: int, out: int, way: str | None, width: int, tmp_path: Path) -> None:
    network = autoencoder(group, tmp_path, out)
    assert set(network.grouped.values()) == ({way} if way else set())
    groups = channel_groups(network).by_name()
    assert all(item.cuttable for name, item in groups.items() if name != "n6")
    assert groups["n2"].width == width
    smaller = cut_and_check(network, tmp_path)
    third = smaller.layers()["n4"]
    assert isinstance(third, nn.ConvTranspose2d)
    assert third.weight.shape == (third.in_channels, third.out_channels // third.groups, 3, 3)
    assert third.in_channels < 12
    assert third.groups == (group if way != "whole" else round(group * third.in_channels / 12))


def body_of(lines: list[str]) -> str:
    return "  ".join(lines)


def resnext_like(folder: Path) -> Network:
    """Two bottleneck blocks with a grouped convolution in the middle, and a shortcut around each."""
    lines, weights = ["v0 = Conv(x, w0)"], {"w0": (16, 4, 1, 1)}
    for block in (1, 2):
        i = f"{block}"
        weights |= {f"a{i}": (24, 16, 1, 1), f"g{i}": (24, 4, 3, 3), f"c{i}": (16, 24, 1, 1)}
        lines += [
            f"p{i} = Conv(v{block - 1}, a{i})", f"q{i} = Relu(p{i})",
            f"r{i} = Conv<group=6, pads=[1,1,1,1]>(q{i}, g{i})", f"s{i} = Relu(r{i})",
            f"t{i} = Conv(s{i}, c{i})", f"v{i} = Add(t{i}, v{block - 1})",
        ]  # fmt: skip
    weights["last"] = (5, 16, 6, 6)
    return read_case({"body": body_of([*lines, "y = Conv(v2, last)"]), "weights": weights}, folder)


def regnet_like(folder: Path) -> Network:
    """Few wide groups: one would take too much with it, so all lose the same channels inside."""
    body = """
        a = Conv(x, w0)  b = Relu(a)  c = Conv<group=2, pads=[1,1,1,1]>(b, g)  d = Relu(c)  e = Conv(d, w1)
        f = GlobalAveragePool(d)  h = Conv(f, w2)  i = Relu(h)  j = Conv(i, w3)  k = Sigmoid(j)  l = Mul(d, k)
        m = Conv(l, w4)  n = Add(e, m)  y = Conv(n, w5)
    """
    weights = {
        "w0": (24, 4, 1, 1), "g": (24, 12, 3, 3), "w1": (10, 24, 1, 1), "w2": (6, 24, 1, 1), "w3": (24, 6, 1, 1),
        "w4": (10, 24, 1, 1), "w5": (5, 10, 6, 6),
    }  # fmt: skip
    return read_case({"body": body, "weights": weights}, folder)


def shufflenet_like(folder: Path) -> Network:
    """Grouped, shuffled across the groups, depthwise, grouped again, and a shortcut around all of it.

    Each group after the shuffle has as many channels of each group before it, so that some go from all alike.
    """
    body = """
        v = Conv(x, w0)  a = Conv<group=3>(v, w1)  b = Relu(a)
        c = Reshape(b, apart)  d = Transpose<perm=[0,2,1,3,4]>(c)  e = Reshape(d, whole)
        f = Conv<group=36, pads=[1,1,1,1]>(e, w2)  g = Conv<group=3>(f, w3)  h = Add(v, g)  y = Conv(h, w4)
    """
    weights = {
        "w0": (24, 4, 1, 1), "w1": (36, 8, 1, 1), "w2": (36, 1, 3, 3), "w3": (24, 12, 1, 1), "w4": (5, 24, 6, 6),
        "apart": np.array([0, 3, 12, 6, 6]), "whole": np.array([0, 36, 6, 6]),
    }  # fmt: skip
    return read_case({"body": body, "weights": weights}, folder)


@pytest.mark.parametrize("make", [resnext_like, regnet_like, shufflenet_like])
@pytest.mark.parametrize("seed", range(3))
def test_grouped_convolutions_are_cut_exactly(make: Callable[[Path], Network], seed: int, tmp_path: Path) -> None:
    network = make(tmp_path)
    smaller = cut_and_check(network, tmp_path, 0.5, seed)
    assert count(smaller).macs < 0.6 * count(network).macs


def test_grouped_convolutions_go_whole_or_inside(tmp_path: Path) -> None:
    assert set(resnext_like(tmp_path).grouped.values()) == {"whole"}
    assert set(regnet_like(tmp_path).grouped.values()) == {"inside"}
    groups = channel_groups(regnet_like(tmp_path)).by_name()
    assert groups["n2"].width == 12
    assert groups["n2"].producers[0].channels[1] == (1, 13)


def test_a_channel_shuffle_leaves_units_of_a_channel_from_every_pair_of_groups(tmp_path: Path) -> None:
    groups = channel_groups(shufflenet_like(tmp_path)).by_name()
    middle = groups["n1"]
    assert (middle.width, middle.cuttable) == (4, True)
    assert middle.producers[0].channels[0] == (0, 4, 8, 12, 16, 20, 24, 28, 32)
