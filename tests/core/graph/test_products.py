"""Fully connected layers and products of activations: read, written, cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from core.graph.groups import channel_groups
from core.graph.network import Network
from tests.core.graph.round_trips import cut_and_check, read_case, refused, round_trip

FLAT: dict[str, Any] = {"inputs": "float[batch,12] x", "outputs": "float[batch,n] y"}
LINE: dict[str, Any] = {"inputs": "float[batch,4,9] x", "outputs": "float[batch,n,h] y"}
TWO: dict[str, Any] = {"inputs": "float[batch,12] x, float[batch,5] z", "outputs": "float[batch,n] y"}
LINES: dict[str, Any] = {"inputs": "float[batch,4,9] x, float[batch,9,5] z", "outputs": "float[batch,n,h] y"}
HEADS: dict[str, Any] = {"inputs": "float[batch,2,4,3] x, float[batch,2,5,3] z", "outputs": "float[batch,a,b,c] y"}


def einsum(equation: str, inputs: str = "x, w") -> str:
    return f'y = Einsum<equation="{equation}">({inputs})'


CASES: dict[str, dict[str, Any]] = {
    "gemm with a computed sum": {"body": "y = Gemm(x, w, z)", "weights": {"w": (12, 5)}, **TWO},
    "gemm with a scaled computed sum": {
        "body": "y = Gemm<alpha=0.5, beta=3.0, transB=1>(x, w, z)", "weights": {"w": (5, 12)}, **TWO,
    },
    "gemm with one number to add": {
        "body": "y = Gemm<beta=0.5>(x, w, b)", "weights": {"w": (12, 5), "b": (1,)}, **FLAT,
    },
    "matrix on the left": {"body": "y = MatMul(w, x)", "weights": {"w": (5, 4)}, **LINE},
    "matrix on the left of images": {"body": "a = MatMul(w, x)  y = Add(a, b)", "weights": {"w": (5, 6), "b": (5, 1)}},
    "vector on the right": {
        "body": "y = MatMul(x, w)", "weights": {"w": (9,)}, **LINE, "outputs": "float[batch,n] y",
    },
    "vector on the left": {"body": "y = MatMul(w, x)", "weights": {"w": (4,)}, **LINE, "outputs": "float[batch,n] y"},
    "one matrix in a stack": {"body": "y = MatMul(x, w)", "weights": {"w": (1, 9, 5)}, **LINE},
    "a stack of matrices": {"body": "y = MatMul(x, w)", "weights": {"w": (4, 6, 5)}},
    "a stack of matrices on the left": {"body": "y = MatMul(w, x)", "weights": {"w": (1, 4, 5, 6)}},
    "two activations": {"body": "y = MatMul(x, z)", **LINES},
    "two activations with heads": {"body": "t = Transpose<perm=[0,1,3,2]>(z)  y = MatMul(x, t)", **HEADS},
    "a matrix used twice": {
        "body": "a = MatMul(x, w)  c = Add(a, b)  d = Relu(c)  e = MatMul(d, w)  y = Add(e, f)",
        "weights": {"w": (12, 12), "b": (12,), "f": (12,)}, **FLAT,
    },
    "a gemm used twice, then added to": {
        "body": "a = Gemm(x, w)  c = Relu(a)  e = Gemm(c, w)  y = Add(e, f)",
        "weights": {"w": (12, 12), "f": (12,)}, **FLAT,
    },
    "einsum of a channel product": {"body": einsum("nchw,cd->ndhw"), "weights": {"w": (4, 5)}, "from": 9},
    "einsum of a product to heads": {
        "body": einsum("bnd,dhk->bhnk"), "weights": {"w": (9, 2, 3)}, **LINE, "outputs": "float[batch,a,b,c] y",
    },
    "einsum of a product from heads": {"body": einsum("bhwc,hcd->bwd"), "weights": {"w": (4, 6, 5)}, **LINE,
                                       "inputs": "float[batch,4,6,6] x"},
    "einsum with a vector": {
        "body": einsum("b n d , d"), "weights": {"w": (9,)}, **LINE, "outputs": "float[batch,n] y",
    },
    "einsum with sums": {"body": einsum("bnd,de->be"), "weights": {"w": (9, 5)}, **LINE, "outputs": "float[batch,n] y"},
    "einsum of one": {"body": einsum("bij->bji", "x"), **LINE},
    "einsum of a sum": {"body": einsum("bij->bj", "x"), **LINE, "outputs": "float[batch,n] y"},
    "einsum of two": {"body": einsum("bij,bjk->bik", "x, z"), **LINES},
    "einsum of queries and keys": {"body": einsum("bhqd,bhkd->bhqk", "x, z"), **HEADS},
    "einsum over two": {"body": einsum("bhqd,bhkd->bqk", "x, z"), **HEADS, "outputs": "float[batch,a,b] y"},
    "einsum to two": {"body": einsum("bhqd,bgkd->bkhqg", "x, z"), **HEADS, "outputs": "float[batch,a,b,c,d] y"},
    "einsum of elements": {
        "body": einsum("bij,bi->bij", "x, z"), **LINES, "inputs": "float[batch,4,9] x, float[batch,4] z",
    },
    "einsum of outer products": {"body": einsum("bi,bj->bji", "x, z"), **TWO, "outputs": "float[batch,n,m] y"},
    "einsum of inner products": {"body": einsum("bij,bij->b", "x, z"), **LINES,
                                 "inputs": "float[batch,4,9] x, float[batch,4,9] z", "outputs": "float[batch] y"},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_read_written_read(name: str, tmp_path: Path) -> None:
    round_trip(CASES[name], tmp_path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a sum over the batch": ({"body": "y = MatMul(w, x)", "weights": {"w": (5, 4)}, **FLAT}, "a sum over the batch"),
    "transposed A": ({"body": "y = Gemm<transA=1>(x, w)", "weights": {"w": (4, 5)}, **FLAT}, "a sum over the batch"),
    "two matrices": ({"body": "y = MatMul(x, z)", **TWO}, "rank 2 and 2, which mixes the batch"),
    "unlike ranks": (
        {"body": "y = MatMul(x, z)", **LINES, "inputs": "float[batch,4,9] x, float[batch,2,9,5] z",
         "outputs": "float[batch,a,b,c] y"}, "rank 3 and 4, which mixes the batch",
    ),
    "a matrix for each example": (
        {"body": "y = MatMul(x, w)", "weights": {"w": (2, 9, 5)}, **LINE}, "shape [2, 9, 5], one for each of the batch",
    ),
    "a weight that does not fit": (
        {"body": "y = MatMul(x, w)", "weights": {"w": (8, 5)}, **LINE}, "for 8 inputs meets 9",
    ),
    "a computed matrix": ({"body": "y = Gemm(x, z)", **TWO}, "input 1 ('z') that is not constant"),
    "a bias for each example": (
        {"body": "y = Gemm(x, w, b)", "weights": {"w": (12, 5), "b": (3, 5)}, **FLAT}, "a third input of shape [3, 5]",
    ),
    "a bias that does not fit": (
        {"body": "y = Gemm(x, w, b)", "weights": {"w": (12, 5), "b": (4,)}, **FLAT}, "shape [4] meets 5 outputs",
    ),
    "a diagonal": ({"body": einsum("bii->bi", "x"), **LINE}, "each dimension by a letter of its own"),
    "an ellipsis": ({"body": einsum("...ij->...ji", "x"), **LINE}, "each dimension by a letter of its own"),
    "three inputs": (
        {"body": einsum("bij,ij,ij->bi", "x, w, w"), "weights": {"w": (4, 9)}, **LINE}, "one or two inputs are taken",
    ),
    "a sum of all examples": ({"body": einsum("bij->ij", "x"), **LINE}, "moves the batch or sums over it"),
    "a letter of nothing": ({"body": einsum("bij->bk", "x"), **LINE}, "makes a dimension of nothing"),
    "a rank that is not the equation's": ({"body": einsum("bi->bi", "x"), **LINE}, "meets an input of rank 3"),
    "a size that is not the other's": (
        {"body": einsum("bij,jk->bik"), "weights": {"w": (8, 5)}, **LINE}, "'j' is 8 and 9",
    ),
    "a constant for each place": (
        {"body": einsum("bij,ijk->bik"), "weights": {"w": (4, 9, 5)}, **LINE}, "one constant for each place",
    ),
    "a constant that is summed with nothing": (
        {"body": einsum("bij,k->bijk"), "weights": {"w": (5,)}, **LINE}, "which sums over nothing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_by_name(name: str, tmp_path: Path) -> None:
    refused(*REFUSED[name], tmp_path)


def test_a_matrix_used_twice_is_one_layer(tmp_path: Path) -> None:
    network = read_case(CASES["a matrix used twice"], tmp_path)
    (layer,) = network.layers().values()
    assert isinstance(layer, nn.Linear)
    assert layer.bias is None


# --- cuts ------------------------------------------------------------------------------------------------------------


def test_a_matrix_on_the_left_is_cut(tmp_path: Path) -> None:
    """Tokens mixed, as in an MLP-Mixer: the places are what the layers have for channels."""
    body = "a = MatMul(w1, x)  c = Add(a, b)  d = Relu(c)  y = MatMul(w2, d)"
    weights = {"w1": (8, 4), "b": (8, 1), "w2": (3, 8)}
    network = read_case({"body": body, "weights": weights, **LINE}, tmp_path)
    smaller = cut_and_check(network, tmp_path)
    assert [layer.weight.shape[0] for layer in smaller.layers().values() if isinstance(layer, nn.Linear)] == [5, 3]


def test_channels_pass_a_layer_that_mixes_places(tmp_path: Path) -> None:
    """A block of an MLP-Mixer: the channels are cut through the mixing of tokens, whose own width stays."""
    body = """
        c = Conv(x, w0)  f = Reshape(c, flat)  a = MatMul(f, w1)  b = Add(a, b1)  d = Relu(b)  e = MatMul(d, w2)
        g = Add(e, f)  h = Transpose<perm=[0,2,1]>(g)  i = MatMul(h, w3)  j = Add(i, b3)  k = Relu(j)  l = MatMul(k, w4)
        m = Add(l, h)  n = ReduceMean<axes=[1], keepdims=0>(m)  y = MatMul(n, w5)
    """
    weights = {
        "w0": (8, 4, 1, 1), "flat": np.array([0, 8, 36]), "w1": (36, 10), "b1": (10,), "w2": (10, 36), "w3": (8, 16),
        "b3": (16,), "w4": (16, 8), "w5": (8, 5),
    }  # fmt: skip
    network = read_case({"body": body, "weights": weights, "outputs": "float[batch,n] y"}, tmp_path)
    found = channel_groups(network)
    assert {group.name: group.width for group in found.groups if group.cuttable} == {"n0": 8, "n8": 16}
    reasons = {item.reason for item in found.frozen if item.layers == ["n2"]}
    assert reasons == {"a linear layer runs across another dimension than the channels"}
    cut_and_check(network, tmp_path)


def test_a_layer_of_each_head_takes_the_same_channels_of_all(tmp_path: Path) -> None:
    body = "c = Conv(x, w0)  f = Reshape(c, heads)  t = Transpose<perm=[0,1,3,2]>(f)  y = MatMul(t, w1)"
    weights = {"w0": (12, 4, 1, 1), "heads": np.array([0, 2, 6, 36]), "w1": (6, 5)}
    network = read_case({"body": body, "weights": weights}, tmp_path)
    first = channel_groups(network).groups[0]
    assert (first.width, first.producers[0].channels[1]) == (6, (1, 7))
    cut_and_check(network, tmp_path)


def attention(folder: Path, fused: bool) -> Network:
    """A convolution, then self-attention over the places with two heads and a shortcut, then a convolution."""
    heads = "float[batch,6,6,6] x"
    lines = ["c = Conv(x, wc)  r = Relu(c)  f = Reshape(r, flat)  t = Transpose<perm=[0,2,1]>(f)"]
    weights: dict[str, Any] = {
        "wc": (16, 6, 1, 1), "flat": np.array([0, 16, 36]), "scale": np.array(0.25, np.float32),
        "joined": np.array([0, 36, 16]), "wp": (16, 16), "bp": (16,),
        "back": np.array([0, 16, 6, 6]), "last": (5, 16, 6, 6),
    }  # fmt: skip
    if fused:
        lines.append(
            "p = MatMul(t, wq)  q1 = Reshape(p, parted)  q2 = Transpose<perm=[2,0,3,1,4]>(q1)  "
            "q = Gather<axis=0>(q2, zero)  k = Gather<axis=0>(q2, one)  v = Gather<axis=0>(q2, two)"
        )
        weights |= {"wq": (16, 48), "parted": np.array([0, 36, 3, 2, 8])}
        weights |= {name: np.array(index) for index, name in enumerate(("zero", "one", "two"))}
    else:
        for name in "qkv":
            lines.append(
                f"{name}1 = MatMul(t, w{name})  {name}2 = Reshape({name}1, parted)  "
                f"{name} = Transpose<perm=[0,2,1,3]>({name}2)"
            )
            weights |= {f"w{name}": (16, 16)}
        weights["parted"] = np.array([0, 36, 2, 8])
    lines.append(
        "kt = Transpose<perm=[0,1,3,2]>(k)  s1 = MatMul(q, kt)  s2 = Mul(s1, scale)  s = Softmax<axis=-1>(s2)  "
        "o1 = MatMul(s, v)  o2 = Transpose<perm=[0,2,1,3]>(o1)  o3 = Reshape(o2, joined)  o4 = MatMul(o3, wp)  "
        "o5 = Add(o4, bp)  o6 = Add(o5, t)  o7 = Transpose<perm=[0,2,1]>(o6)  o8 = Reshape(o7, back)  "
        "y = Conv(o8, last)"
    )
    return read_case({"body": "  ".join(lines), "weights": weights, "inputs": heads}, folder)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_frozen_with_its_reason_and_the_rest_is_free(fused: bool, tmp_path: Path) -> None:
    network = attention(tmp_path, fused)
    found = channel_groups(network)
    groups = {producer.layer: group for group in found.groups for producer in group.producers}
    queries = "n4"
    assert not groups[queries].cuttable
    reasons = [item for item in found.frozen if queries in item.layers]
    assert {item.operator for item in reasons} == {"matmul"}
    assert any("needs all channels that it sums over" in item.reason for item in reasons)
    assert groups["n0"].cuttable
    assert len(groups["n0"].producers) == 2, "the convolution and the projection, which the shortcut joins"
    cut_and_check(network, tmp_path)


def test_values_of_an_attention_block_are_free(tmp_path: Path) -> None:
    """The same channels of each head go."""
    network = attention(tmp_path, fused=False)
    (values,) = [group for group in channel_groups(network).groups if group.producers[0].layer == "n10"]
    assert (values.cuttable, values.width) == (True, 8)
    assert values.producers[0].channels[3] == (3, 11)
    smaller = cut_and_check(network, tmp_path, 0.5, seed=2)
    assert smaller.layers()["n10"].get_parameter("weight").shape[0] == 8


def test_the_same_channels_of_each_head_go(tmp_path: Path) -> None:
    """Four heads of two channels: what tells the heads apart is longer, and stays."""
    body = (
        "c = Conv(x, wc)  f = Reshape(c, flat)  t = Transpose<perm=[0,2,1]>(f)  "
        + "  ".join(
            f"{n}1 = MatMul(t, w{n})  {n}2 = Reshape({n}1, parted)  {n} = Transpose<perm=[0,2,1,3]>({n}2)"
            for n in "qkv"
        )
        + "  kt = Transpose<perm=[0,1,3,2]>(k)  s = MatMul(q, kt)  a = Softmax<axis=-1>(s)  o1 = MatMul(a, v)  "
        "o2 = Transpose<perm=[0,2,1,3]>(o1)  o3 = Reshape(o2, joined)  y = MatMul(o3, wo)"
    )
    weights: dict[str, Any] = {
        "wc": (6, 4, 1, 1), "flat": np.array([0, 6, 36]), "parted": np.array([0, 36, 4, 2]), "wo": (8, 5),
        "joined": np.array([0, 36, 8]), "wq": (6, 8), "wk": (6, 8), "wv": (6, 8),
    }  # fmt: skip
    network = read_case({"body": body, "weights": weights, "outputs": "float[batch,n,m] y"}, tmp_path)
    smaller = cut_and_check(network, tmp_path, 0.5)
    widths = [layer.get_parameter("weight").shape[0] for layer in smaller.layers().values()]
    assert widths == [3, 8, 8, 4, 5]


def test_a_stack_of_matrices_is_frozen(tmp_path: Path) -> None:
    body = "a = Conv(x, w1)  b = MatMul(a, m)  y = Conv(b, w2)"
    network = read_case({"body": body, "weights": {"w1": (8, 4, 1, 1), "m": (8, 6, 6), "w2": (5, 8, 1, 1)}}, tmp_path)
    found = channel_groups(network)
    assert [group.name for group in found.groups if group.cuttable] == []
    assert any(item.operator == "matmul" and item.layers == ["n0"] for item in found.frozen)
