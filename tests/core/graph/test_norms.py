"""Norms of every kind: read, raised from their parts, written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core.graph.export import to_onnx
from core.graph.importers import read_onnx
from tests.core.graph.norm_texts import PARTS, norms_of, parts
from tests.core.graph.round_trips import read_case, refused, round_trip

LINE: dict[str, Any] = {"inputs": "float[batch,4,9] x", "outputs": "float[batch,n,h] y"}
FLAT: dict[str, Any] = {"inputs": "float[batch,12] x", "outputs": "float[batch,n] y"}
SPACE: dict[str, Any] = {"inputs": "float[batch,4,3,5,2] x", "outputs": "float[batch,n,d,h,w] y"}
OPEN: dict[str, Any] = {"inputs": "float[batch,4,h,w] x", "outputs": "float[batch,n,h2,w2] y"}


AFFINE = "o = Mul(q, s)  y = Add(o, b)"

CASES: dict[str, dict[str, Any]] = {
    "layer norm": {"body": "y = LayerNormalization(x, s, b)", "weights": {"s": (6,), "b": (6,)}},
    "layer norm without bias": {"body": "y = LayerNormalization<epsilon=0.01>(x, s)", "weights": {"s": (6,)}},
    "layer norm over channels and places": {
        "body": "y = LayerNormalization<axis=1>(x, s, b)", "weights": {"s": (4, 6, 6), "b": (4, 6, 6)},
    },
    "layer norm of vectors": {"body": "y = LayerNormalization(x, s, b)", "weights": {"s": (12,), "b": (12,)}, **FLAT},
    "layer norm of lines": {"body": "y = LayerNormalization<axis=-2>(x, s)", "weights": {"s": (4, 9)}, **LINE},
    "rms norm": {"body": "y = RMSNormalization(x, s)", "weights": {"s": (6,)}, "opset": 23},
    "rms norm over two": {"body": "y = RMSNormalization<axis=2>(x, s)", "weights": {"s": (6, 6)}, "opset": 23},
    "group norm": {
        "body": "y = GroupNormalization<num_groups=2, epsilon=0.001>(x, s, b)",
        "weights": {"s": (4,), "b": (4,)}, "opset": 21,
    },
    "group norm of one group": {
        "body": "y = GroupNormalization<num_groups=1>(x, s, b)",
        "weights": {"s": (4,), "b": (4,)}, "opset": 21, **SPACE,
    },
    "group norm of vectors": {
        "body": "y = GroupNormalization<num_groups=3>(x, s, b)",
        "weights": {"s": (12,), "b": (12,)}, "opset": 21, **FLAT,
    },
    "group norm of an open size": {
        "body": "y = GroupNormalization<num_groups=2>(x, s, b)", "weights": {"s": (4,), "b": (4,)}, "opset": 21, **OPEN,
    },
    "instance norm": {"body": "y = InstanceNormalization(x, s, b)", "weights": {"s": (4,), "b": (4,)}},
    "instance norm 1d": {"body": "y = InstanceNormalization(x, s, b)", "weights": {"s": (4,), "b": (4,)}, **LINE},
    "instance norm 3d": {"body": "y = InstanceNormalization(x, s, b)", "weights": {"s": (4,), "b": (4,)}, **SPACE},
    "batch norm of vectors": {
        "body": "y = BatchNormalization(x, s, b, m, v)",
        "weights": {"s": (12,), "b": (12,), "m": (12,), "v": np.arange(1, 13, dtype=np.float32)}, **FLAT,
    },
    "lrn": {"body": "y = LRN<size=3, alpha=0.3, beta=0.6, bias=1.5>(x)"},
    "lrn of one": {"body": "y = LRN<size=1>(x)"},
    "mean and variance": {"body": "y = MeanVarianceNormalization<axes=[2,3]>(x)"},
    "mean and variance of all": {"body": "y = MeanVarianceNormalization<axes=[1,2,3]>(x)"},
    "lp norm": {"body": "y = LpNormalization<axis=1>(x)"},
    "lp norm of absolutes": {"body": "y = LpNormalization<p=1>(x)"},
    "parts of a layer norm": {"body": parts("-1", end=AFFINE), "weights": {**PARTS, "s": (6,), "b": (6,)}},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_read_written_read(name: str, tmp_path: Path) -> None:
    round_trip(CASES[name], tmp_path)


RAISED: dict[str, tuple[dict[str, Any], str]] = {
    "layer norm": (CASES["parts of a layer norm"], "LayerNorm((6,), eps=0.25, elementwise_affine=True, bias=True)"),
    "layer norm without scale": (
        {"body": parts("3", end="y = Relu(q)"), "weights": PARTS}, "LayerNorm((6,), eps=0.25, elementwise_affine=False",
    ),
    "layer norm without bias": (
        {"body": parts("3", end="y = Mul(s, q)"), "weights": {**PARTS, "s": (1, 1, 1, 6)}},
        "LayerNorm((6,), eps=0.25, e",
    ),
    "layer norm over places": (
        {"body": parts("2,3", end=AFFINE), "weights": {**PARTS, "s": (6, 6), "b": (6,)}}, "LayerNorm((6, 6), eps=0.25",
    ),
    "layer norm over channels": (
        {"body": parts("1", end=AFFINE), "weights": {**PARTS, "s": (4, 1, 1), "b": (1, 4, 1, 1)}},
        "LayerNorm((4,), eps=",
    ),
    "layer norm over channels of lines": (
        {"body": parts("1", end="y = Mul(q, s)"), "weights": {**PARTS, "s": (4, 1)}, **LINE},
        "LayerNorm((4,), eps=0.25",
    ),
    "all of it by channels": (
        {"body": parts("1,2,3", end=AFFINE), "weights": {**PARTS, "s": (4, 1, 1), "b": (4, 1, 1)}},
        "GroupNorm(1, 4, eps",
    ),
    "all of it by places": (
        {"body": parts("1,2,3", end=AFFINE), "weights": {**PARTS, "s": (4, 6, 6), "b": (6,)}},
        "LayerNorm((4, 6, 6), eps",
    ),
    "all of it by the last": (
        {"body": parts("1,2,3", end=AFFINE), "weights": {**PARTS, "s": (6,), "b": (6,)}}, "LayerNorm((4, 6, 6), eps",
    ),
    "all of it": ({"body": parts("1,2,3", end="y = Relu(q)"), "weights": PARTS}, "GroupNorm(1, 4, eps=0.25, affine=F"),
    "of an open size": (
        {"body": parts("1", end=AFFINE), "weights": {**PARTS, "s": (4, 1, 1), "b": (4, 1, 1)}, **OPEN},
        "LayerNorm((4,), ",
    ),
    "x - mean twice, squared by a product, the reciprocal of the root": (
        {"body": "m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)  d2 = Sub(x, m)  p = Mul(d, d)  "
                 "v = ReduceMean<axes=[3]>(p)  "
                 "a = Add(e, v)  r = Sqrt(a)  i = Reciprocal(r)  q = Mul(i, d2)  y = Mul(s, q)",
         "weights": {**PARTS, "s": (6,)}}, "LayerNorm((6,), eps=0.25, elementwise_affine=True, bias=False)",
    ),
    "root mean square": (
        {"body": "p = Pow(x, two)  "
                 "v = ReduceMean<axes=[-1]>(p)  a = Add(v, e)  r = Sqrt(a)  q = Div(x, r)  y = Mul(q, s)",
         "weights": {**PARTS, "s": (6,)}}, "RMSNorm((6,), eps=0.25, elementwise_affine=True",
    ),
    "root mean square over channels": (
        {"body": "p = Mul(x, x)  v = ReduceMean<axes=[1]>(p)  a = Add(v, e)  r = Sqrt(a)  y = Div(x, r)",
         "weights": PARTS}, "RMSNorm((4,), eps=0.25, elementwise_affine=False",
    ),
    "group norm": (
        {"body": "g = Reshape(x, parted)  i = InstanceNormalization(g, one, zero)  z = Shape(x)  w = Reshape(i, z)  "
                 "o = Mul(w, s)  y = Add(o, b)",
         "weights": {"parted": np.array([0, 2, -1]), "one": np.ones(2, np.float32), "zero": np.zeros(2, np.float32),
                     "s": (4, 1, 1), "b": (4, 1, 1)}}, "GroupNorm(2, 4, eps=1e-05, affine=True",
    ),
    "group norm of an open size": (
        {"body": "g = Reshape(x, parted)  i = InstanceNormalization(g, s, b)  z = Shape(x)  y = Reshape(i, z)",
         "weights": {"parted": np.array([0, 2, -1]), "s": (2,), "b": (2,)}, **OPEN},
        "GroupNorm(2, 4, eps=1e-05, affine=T",
    ),
    "group norm without scale": (
        {"body": "g = Reshape(x, parted)  i = InstanceNormalization(g, one, zero)  z = Shape(x)  y = Reshape(i, z)",
         "weights": {"parted": np.array([0, 2, -1]), "one": np.ones(2, np.float32), "zero": np.zeros(2, np.float32)}},
        "GroupNorm(2, 4, eps=1e-05, affine=False",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RAISED)
def test_norms_are_raised_from_their_parts(name: str, tmp_path: Path) -> None:
    case, layer = RAISED[name]
    network = round_trip(case, tmp_path)
    (norm,) = norms_of(network)
    assert repr(norm).startswith(layer)
    left = {str(node.target) for node in network.module.graph.nodes if node.op == "call_function"}
    assert left <= {"aten.permute.default", "aten.relu.default"}


NOT_RAISED = {
    "another exponent": (parts("-1", end="y = Mul(q, s)").replace("Pow(d, two)", "Pow(d, e)"), {"s": (6,)}),
    "another variance": (parts("-1", end="y = Mul(q, s)").replace("<axes=[-1]>(p)", "<axes=[2]>(p)"), {"s": (6,)}),
    "another numerator": (parts("-1", end="y = Mul(q, s)").replace("Div(d, r)", "Div(m, r)"), {"s": (6,)}),
}


@pytest.mark.parametrize("name", NOT_RAISED)
def test_what_only_looks_like_a_norm_stays(name: str, tmp_path: Path) -> None:
    body, weights = NOT_RAISED[name]
    network = read_case({"body": body, "weights": {**PARTS, **weights}}, tmp_path)
    assert norms_of(network) == []


def test_a_scale_that_is_not_of_the_norm_stays_behind_it(tmp_path: Path) -> None:
    network = round_trip({"body": parts("-1"), "weights": {**PARTS, "s": (4, 1, 1)}}, tmp_path)
    (norm,) = norms_of(network)
    assert repr(norm).startswith("LayerNorm((6,), eps=0.25, elementwise_affine=False")


def test_what_is_centred_along_another_dimension_is_raised_without_its_mean(tmp_path: Path) -> None:
    body = parts("-1", end="y = Mul(q, s)").replace("<axes=[-1]>(x)", "<axes=[2]>(x)")
    (norm,) = norms_of(round_trip({"body": body, "weights": {**PARTS, "s": (6,)}}, tmp_path))
    assert isinstance(norm, nn.RMSNorm)


def test_raised_norms_are_named_after_their_weights(tmp_path: Path) -> None:
    body = parts("-1", end="o = Mul(q, s)  y = Add(o, b)")
    made = {"body": body, "weights": {**PARTS, "s": (6,), "b": (6,)}}
    network = read_case(made, tmp_path)
    (tmp_path / "again").mkdir()
    for opset in (13, 17):
        written = to_onnx(network, opset=opset)
        path = tmp_path / "again" / "model.onnx"
        path.write_bytes(written.SerializeToString())
        assert read_onnx(path).layers().keys() == network.layers().keys()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a norm over the batch": (
        {"body": "y = LayerNormalization<axis=0>(x, s)", "weights": {"s": (6,)}}, "a norm over the batch",
    ),
    "an lp norm over the batch": ({"body": "y = LpNormalization<axis=0>(x)"}, "a norm over the batch"),
    "a cubic norm": ({"body": "y = LpNormalization<p=3>(x)"}, "p is 3"),
    "a mean over the batch": ({"body": "y = MeanVarianceNormalization(x)"}, "a mean over the batch"),
    "a mean that is read": (
        {"body": "a, m = LayerNormalization(x, s)  y = Add(a, m)", "weights": {"s": (6,)}}, "that is read",
    ),
    "a scale that does not fit": (
        {"body": "y = LayerNormalization(x, s)", "weights": {"s": (5,)}}, "has shape [5], not [6]",
    ),
    "a computed scale": ({"body": "a = Relu(x)  y = LayerNormalization(x, a)"}, "that is not constant"),
    "another stash type": (
        {"body": "y = LayerNormalization<stash_type=16>(x, s)", "weights": {"s": (6,)}}, "stash_type 16",
    ),
    "another stash type of groups": (
        {"body": "y = GroupNormalization<num_groups=2, stash_type=11>(x, s, s)", "weights": {"s": (4,)}, "opset": 21},
        "stash_type 11",
    ),
    "groups that do not fit": (
        {"body": "y = GroupNormalization<num_groups=3>(x, s, s)", "weights": {"s": (4,)}, "opset": 21},
        "3 groups of an",
    ),
    "a scale per group, since 21 per channel": (
        {"body": "y = GroupNormalization<num_groups=2>(x, s, s)", "weights": {"s": (2,)}, "opset": 21}, "4 numbers",
    ),
    "an instance norm's scale": (
        {"body": "y = InstanceNormalization(x, s, s)", "weights": {"s": (6,)}}, "must each hold 4 numbers",
    ),
    "an instance norm of vectors": (
        {"body": "y = InstanceNormalization(x, s, s)", "weights": {"s": (12,)}, **FLAT}, "an input of rank 2",
    ),
    "an even number of neighbours": ({"body": "y = LRN<size=2>(x)"}, "ONNX and torch take other neighbours"),
    "no neighbours": ({"body": "y = LRN<size=0>(x)"}, "size 0"),
    "neighbours of vectors": ({"body": "y = LRN<size=3>(x)", **FLAT}, "an input of rank 2; only 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_by_name(name: str, tmp_path: Path) -> None:
    refused(*REFUSED[name], tmp_path)


@pytest.mark.parametrize("training", [0, 1])
def test_a_standardised_weight_is_folded(training: int, tmp_path: Path) -> None:
    """As timm's networks with weight standardisation are exported: a BatchNorm of the weight, in training mode."""
    outputs = "n, m2, v2" if training else "n"
    body = (
        f"r = Reshape(w, rows)  {outputs} = BatchNormalization<training_mode={training}>(r, s, b, m, v)  "
        "k = Reshape(n, back)  y = Conv(x, k)"
    )
    numbers = {name: np.arange(1, 7, dtype=np.float32) for name in "sbmv"}
    weight = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32)
    weights = {**numbers, "w": weight, "rows": np.array([1, 6, -1]), "back": np.array([6, 4, 3, 3])}
    network = read_case({"body": body, "weights": weights}, tmp_path)
    (layer,) = network.layers().values()
    scale, shift, mean, variance = (torch.from_numpy(numbers[name]) for name in "sbmv")
    rows = torch.from_numpy(weight).reshape(1, 6, -1)
    expected = nn.functional.batch_norm(rows, mean, variance, scale, shift, training=bool(training)).reshape(6, 4, 3, 3)
    assert torch.allclose(layer.get_parameter("weight"), expected, atol=1e-5)
