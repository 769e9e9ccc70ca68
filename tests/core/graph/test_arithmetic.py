"""Arithmetic, comparisons and casts: read, compared with ONNX Runtime, written for old and new opsets, read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core.errors import RecipeInvalid
from core.graph.export import check_parity, to_onnx, write_onnx
from core.graph.importers import read_onnx
from core.graph.lowering import trace
from core.graph.shapes import propagate_shapes
from tests.core.graph.round_trips import OPSETS, read_case, refused, round_trip

aten = torch.ops.aten
FLAT: dict[str, Any] = {"inputs": "float[batch,12] x", "outputs": "float[batch,n] y"}
TWO: dict[str, Any] = {"inputs": "float[batch,4,6,6] x, float[batch,4,6,6] z"}


def number(*value: float) -> np.ndarray:
    return np.array(value[0] if len(value) == 1 else value, dtype=np.float32)


MASK = np.random.default_rng(7).random((4, 1, 1)) > 0.5
ODD = np.array([-3, -2.5, -1.5, -0.5, 0, 0.5, 0.49999997, 1.5, 2.5, 1e6 + 0.5, -1e6 - 0.5, 8388609], np.float32)
NAN = np.array([np.nan, 1, np.inf, -np.inf, 0, 2], np.float32)

CASES: dict[str, dict[str, Any]] = {
    "abs": {"body": "y = Abs(x)"},
    "acos": {"body": "a = Tanh(x)  y = Acos(a)"},
    "acosh": {"body": "a = Exp(x)  b = Add(a, w)  y = Acosh(b)", "weights": {"w": number(1)}},
    "asin": {"body": "a = Tanh(x)  y = Asin(a)"},
    "asinh": {"body": "y = Asinh(x)"},
    "atan": {"body": "y = Atan(x)"},
    "atanh": {"body": "a = Sin(x)  b = Mul(a, w)  y = Atanh(b)", "weights": {"w": number(0.9)}},
    "ceil": {"body": "y = Ceil(x)"},
    "cos": {"body": "y = Cos(x)"},
    "cosh": {"body": "y = Cosh(x)"},
    "erf": {"body": "y = Erf(x)"},
    "exp": {"body": "y = Exp(x)"},
    "floor": {"body": "y = Floor(x)"},
    "log": {"body": "a = Exp(x)  b = Add(a, w)  y = Log(b)", "weights": {"w": number(1)}},
    "neg": {"body": "y = Neg(x)"},
    "reciprocal": {"body": "a = Exp(x)  y = Reciprocal(a)"},
    "round": {"body": "y = Round(x)", "opset": 11},
    "round halves to even": {
        "body": "a = Mul(x, zero)  b = Add(a, w)  y = Round(b)",
        "weights": {"zero": number(0), "w": ODD.reshape(2, 6, 1)},
        "inputs": "float[batch,2,6,1] x",
    },
    "sign": {"body": "y = Sign(x)"},
    "sin": {"body": "y = Sin(x)"},
    "sinh": {"body": "y = Sinh(x)"},
    "sqrt": {"body": "a = Abs(x)  y = Sqrt(a)"},
    "tan": {"body": "y = Tan(x)"},
    "add, sub, mul, div": {
        "body": "a = Add(x, w)  b = Sub(a, x)  c = Mul(b, a)  y = Div(c, v)",
        "weights": {"w": (4, 1, 1), "v": np.full((1, 4, 1, 1), 2, np.float32)},
    },
    "numbers": {
        "body": "a = Add(x, w)  b = Sub(v, a)  c = Mul(v, b)  d = Div(c, w)  y = Sub(d, w)",
        "weights": {"w": number(3), "v": np.full((1,), 2, np.float32)},
    },
    "numbers divided by": {"body": "a = Exp(x)  y = Div(w, a)", "weights": {"w": number(3)}},
    "two inputs": {"body": "a = Mul(x, z)  y = Sub(a, z)", **TWO},
    "pow": {"body": "y = Pow(x, w)", "weights": {"w": number(2)}},
    "pow of an integer": {"body": "y = Pow(x, w)", "weights": {"w": np.array(3, np.int64)}},
    "pow per channel": {"body": "a = Abs(x)  y = Pow(a, w)", "weights": {"w": np.ones((4, 1, 1), np.float32) * 1.5}},
    "pow of integers": {"body": "y = Pow(x, w)", "weights": {"w": np.arange(4, dtype=np.int32).reshape(4, 1, 1)}},
    "pow to the input": {"body": "y = Pow(w, x)", "weights": {"w": number(2)}},
    "pow of activations": {"body": "a = Exp(z)  y = Pow(a, x)", **TWO},
    "mod": {"body": "y = Mod<fmod=1>(x, w)", "weights": {"w": number(0.4)}, "from": 10},
    "mod of a number": {"body": "a = Exp(x)  y = Mod<fmod=1>(w, a)", "weights": {"w": number(3)}, "from": 10},
    "mod of activations": {"body": "a = Exp(z)  y = Mod<fmod=1>(x, a)", "from": 10, **TWO},
    "max": {"body": "a = Sigmoid(z)  y = Max(x, a, z)", **TWO},
    "max of one": {"body": "a = Max(x)  y = Relu(a)"},
    "max with numbers": {"body": "y = Max(w, x, v)", "weights": {"w": number(-0.5), "v": (4, 1, 1)}},
    "min": {"body": "y = Min(x, w)", "weights": {"w": number(0.3)}},
    "min of activations": {"body": "y = Min(x, z)", **TWO},
    "sum": {"body": "a = Relu(z)  y = Sum(x, w, a)", "weights": {"w": (1, 4, 1, 1)}, **TWO},
    "sum with constants in front": {"body": "y = Sum(w, v, x)", "weights": {"w": (1, 4, 1, 1), "v": (6,)}},
    "sum with a number": {"body": "y = Sum(w, x, x)", "weights": {"w": number(2)}},
    "mean": {"body": "a = Relu(z)  y = Mean(x, a, z)", **TWO},
    "equal": {"body": "a = Floor(x)  b = Floor(z)  m = Equal(a, b)  y = Where(m, x, z)", **TWO},
    "equal to a number": {
        "body": "a = Floor(x)  m = Equal(a, w)  y = Where(m, x, w)", "weights": {"w": number(0)}, "opset": 11,
    },
    "greater": {"body": "m = Greater(x, z)  y = Where(m, x, z)", **TWO},
    "greater or equal": {"body": "m = GreaterOrEqual(w, x)  y = Where(m, x, w)", "weights": {"w": number(0.2)}},
    "greater or equal to a number": {
        "body": "m = GreaterOrEqual(x, w)  y = Where(m, x, w)", "weights": {"w": number(0.2)},
    },
    "less": {"body": "m = Less(w, x)  y = Where(m, w, x)", "weights": {"w": number(0.2)}},
    "less or equal": {"body": "m = LessOrEqual(x, z)  y = Where(m, x, z)", **TWO},
    "logic": {
        "body": "a = Less(x, z)  b = Less(x, w)  c = And(a, b)  d = Or(a, b)  e = Xor(c, d)  f = Not(e)  "
                "g = Equal(a, f)  y = Where(g, x, z)",
        "weights": {"w": number(0.1)}, **TWO,
    },
    "logic of constants": {"body": "a = Less(x, z)  b = And(a, m)  y = Where(b, x, z)", "weights": {"m": MASK}, **TWO},
    "where of a constant mask": {"body": "y = Where(m, x, z)", "weights": {"m": MASK}, **TWO},
    "where of constant values": {
        "body": "m = Less(x, w)  y = Where(m, v, x)", "weights": {"w": number(0), "v": (1, 4, 1, 1)},
    },
    "not finite": {
        "body": "b = Mul(x, w)  n = IsNaN(b)  i = IsInf(b)  p = IsInf<detect_negative=0>(b)  "
                "q = IsInf<detect_positive=0>(b)  c = Where(n, x, v)  d = Where(p, x, c)  e = Where(q, v, d)  "
                "f = Cast<to=1>(i)  y = Add(e, f)",
        "weights": {"w": NAN, "v": number(3)},
    },
    "comparisons of NaN": {
        "body": "b = Mul(x, w)  e = Equal(b, x)  g = GreaterOrEqual(b, x)  l = LessOrEqual(b, x)  f = Cast<to=1>(e)  "
                "h = Cast<to=1>(g)  k = Cast<to=1>(l)  y = Concat<axis=1>(f, h, k, x)",
        "weights": {"w": NAN},
    },
    "cast to float": {"body": "a = Cast<to=1>(x)  y = Relu(a)"},
    "cast to integers": {"body": "a = Cast<to=7>(x)  b = Cast<to=6>(a)  c = Cast<to=6>(b)  y = Cast<to=1>(c)"},
    "cast to bool": {"body": "a = Floor(x)  b = Cast<to=9>(a)  y = Cast<to=1>(b)"},
    "cast of integers to bool": {"body": "a = Cast<to=6>(x)  b = Cast<to=9>(a)  c = Cast<to=7>(b)  y = Cast<to=1>(c)"},
    "cast like": {"body": "m = Less(x, w)  a = CastLike(m, x)  b = CastLike(v, x)  y = Mul(a, b)", "opset": 15,
                  "weights": {"w": number(0), "v": np.array([2], np.int64)}},
    "cast like what is read for its type only": {
        "body": "m = Less(x, w)  a = Exp(x)  y = CastLike(m, a)", "opset": 15, "weights": {"w": number(0)},
    },
    "integers": {
        "body": "a = Cast<to=7>(x)  b = Mul(a, w)  c = Add(b, a)  d = Sub(c, w)  e = Greater(d, a)  f = Equal(d, w)  "
                "g = Or(e, f)  h = LessOrEqual(d, w)  k = Xor(g, h)  l = Where(k, d, a)  y = Cast<to=1>(l)",
        "weights": {"w": np.array(2, np.int64)},
    },
    "masks that move": {
        "body": "m = Less(x, w)  a = Transpose<perm=[0,1,3,2]>(m)  b = Concat<axis=1>(a, m)  s = Concat<axis=1>(x, x)  "
                "y = Where(b, s, w)", "weights": {"w": number(0)},
    },
    "masks and integers that move": {
        "body": "m = Less(x, w)  g = Gather<axis=1>(m, i)  h = Slice(g, one, two, one)  t = Tile(h, r)  "
                "k = Cast<to=7>(x)  f = Flatten(k)  u = Reshape(f, s)  p, q = Split<axis=1>(u, e)  "
                "v = Concat<axis=1>(q, p)  o = Cast<to=1>(v)  y = Where(t, o, w)",
        "weights": {"w": number(0), "i": np.array([3, 0, 2]), "one": np.array([1]), "two": np.array([2]),
                    "r": np.array([1, 4, 1, 1]), "s": np.array([0, 4, 6, 6]), "e": np.array([1, 3])},
    },
    "a leaky relu of parts": {
        "body": "z = CastLike(zero, x)  l = Less(x, z)  a = Mul(k, x)  y = Where(l, a, x)", "opset": 16,
        "weights": {"zero": number(0), "k": number(0.1)},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_read_written_read(name: str, tmp_path: Path) -> None:
    round_trip(CASES[name], tmp_path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a cast to half": ({"body": "y = Cast<to=10>(x)"}, "a cast to FLOAT16"),
    "a cast to double": ({"body": "a = Cast<to=11>(x)  y = Cast<to=1>(a)"}, "a cast to DOUBLE"),
    "a cast to bytes": ({"body": "a = Cast<to=2>(x)  y = Cast<to=1>(a)"}, "a cast to UINT8"),
    "a cast to what is not there": ({"body": "y = Cast<to=99>(x)"}, "a cast to 99"),
    "a cast like bytes": (
        {"body": "y = CastLike(x, w)", "weights": {"w": np.zeros(1, np.uint8)}},
        "operator CastLike at node 'n0' has a cast to uint8",
    ),
    "integers into a layer": (
        {"body": "a = Cast<to=7>(x)  y = Conv(a, w)", "weights": {"w": (4, 4, 1, 1)}}, "input 0 of type int64",
    ),
    "truth values into an activation": ({"body": "a = IsNaN(x)  y = Relu(a)"}, "input 0 of type bool, where float32"),
    "truth values added": ({"body": "a = IsNaN(x)  y = Add(a, a)"}, "an input of type bool, where numbers"),
    "integers divided": ({"body": "a = Cast<to=7>(x)  y = Div(a, a)"}, "input 0 of type int64"),
    "two types": ({"body": "a = Cast<to=7>(x)  y = Add(a, x)"}, "of the types float32, int64, not of one"),
    "two types compared": ({"body": "a = Cast<to=7>(x)  m = Less(a, x)  y = Where(m, x, x)"}, "not of one"),
    "two types chosen from": ({"body": "m = IsNaN(x)  y = Where(m, m, x)"}, "the other two of one type"),
    "a choice by numbers": ({"body": "y = Where(x, x, x)"}, "the condition must be of type bool"),
    "logic of numbers": ({"body": "m = And(x, x)  y = Where(m, x, x)"}, "its inputs must be of type bool"),
    "a mod of integers": ({"body": "a = Cast<to=7>(x)  y = Mod(a, a)"}, "input 0 of type int64"),
    "an open size as a number": (
        {"body": "s = Shape(x)  k = Cast<to=1>(s)  y = Mul(x, k)"}, "of the types float32, open size, not of one",
    ),
    "a value whose batch was moved": (
        {"body": "a = Transpose<perm=[1,0,2,3]>(x)  y = Add(a, a)"}, "is not dimension 0 of the output 'y'",
    ),
    "a choice of values whose batch was moved": (
        {"body": "a = Transpose<perm=[1,0,2,3]>(x)  m = Less(a, a)  y = Where(m, a, a)"}, "of the output 'y'",
    ),
    "a left-out input": ({"body": "y = Max(x, , x)"}, "input 1 is missing"),
    "no infinity": ({"body": "m = IsInf<detect_negative=0, detect_positive=0>(x)  y = Where(m, x, x)"}, "neither sign"),
    "an output of truth values": ({"body": "y = IsNaN(x)"}, "'y' is declared as float32, but is computed as bool"),
    "an output of integers": ({"body": "y = Cast<to=7>(x)"}, "'y' is declared as float32, but is computed as int64"),
    "half weights": ({"body": "y = Mul(x, w)", "weights": {"w": np.ones((1, 4, 1, 1), np.float16)}}, "float16"),
    "shapes that do not fit": (
       {"body": "a = Transpose<perm=[0,2,3,1]>(x)  y = Add(a, x)"}, "operator Add at node 'n1'",
    ),
    "a number with a dimension more": (
        {"body": "y = Add(x, w)", "weights": {"w": np.ones((1, 1, 1, 1, 1), np.float32)}}, "mixes the batch",
    ),
    "a batch that meets two channels, of a static batch of 1": (
        {"body": "m = ReduceMean<axes=[1], keepdims=0>(x)  y = Mul(x, m)", "inputs": "float[1,2,4,4] x",
         "outputs": "float[1,2,4,4] y"}, "one image fits, a batch of 3 does not",
    ),
    "a batch that meets two channels, of a static batch of 2": (
        {"body": "m = ReduceMean<axes=[1], keepdims=0>(x)  y = Mul(x, m)", "inputs": "float[2,2,4,4] x",
         "outputs": "float[2,2,4,4] y"}, "one image fits, a batch of 3 does not",
    ),
    "numbers that meet two features": (
        {"body": "m = ReduceMax<axes=[1], keepdims=0>(x)  y = Add(m, x)", "inputs": "float[batch,2] x",
         "outputs": "float[batch,2] y"}, "one image fits, a batch of 3 does not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_by_name(name: str, tmp_path: Path) -> None:
    refused(*REFUSED[name], tmp_path)


def test_the_rest_of_a_division_needs_opset_10(tmp_path: Path) -> None:
    network = read_case(CASES["mod"], tmp_path)
    with pytest.raises(RecipeInvalid, match="opset 9 cannot hold Mod of floating-point numbers"):
        write_onnx(network, tmp_path / "never.onnx", opset=9)


@pytest.mark.parametrize("target", [aten.ne, aten.eq, aten.ge, aten.le, aten.gt, aten.lt])
@pytest.mark.parametrize("is_number", [False, True])
def test_comparisons_that_other_importers_make(target: Any, is_number: bool, tmp_path: Path) -> None:
    network = trace(nn.Sequential(nn.Hardswish(), nn.ReLU(), nn.Sigmoid()), (4, 6, 6))
    swish, relu, sigmoid = (node for node in network.module.graph.nodes if node.op == "call_function")
    relu.target = target.Scalar if is_number else target.Tensor
    relu.args = (swish, 0 if is_number else swish.args[0])
    sigmoid.target, sigmoid.args = aten.type_as.default, (relu, swish)
    network.module.recompile()
    propagate_shapes(network.module, network.input_shapes)
    inputs = network.example_input(3)
    inputs[:, :, 0] = 0
    for opset in OPSETS:
        write_onnx(network, tmp_path / "made.onnx", opset=opset)
        assert check_parity(network, tmp_path / "made.onnx", inputs).passed
        assert torch.equal(read_onnx(tmp_path / "made.onnx")(inputs), network(inputs))


def test_a_rest_with_the_sign_of_the_divisor(tmp_path: Path) -> None:
    """Of opset 28, which ONNX Runtime does not know: before it, it is written as several operators."""
    body = "a = Mod(x, w)  b = Mod(v, x)  c = Mod(x, z)  y = Concat<axis=1>(a, b, c)"
    case = {"body": body, "weights": {"w": number(-0.4), "v": number(2)}, "opset": 28, **TWO}
    network = read_case(case, tmp_path)
    inputs = network.example_inputs(3)
    assert torch.equal(network(*inputs)[:, :4], torch.remainder(inputs[0], np.float32(-0.4)))
    assert [node.op_type for node in to_onnx(network).graph.node] == ["Mod", "Mod", "Mod", "Concat"]
    for opset in OPSETS[1:]:
        write_onnx(network, tmp_path / "made.onnx", opset=opset)
        assert check_parity(network, tmp_path / "made.onnx", *inputs).passed
        assert torch.allclose(read_onnx(tmp_path / "made.onnx")(*inputs), network(*inputs), atol=1e-5)


def test_a_choice_of_truth_values_is_written_as_logic(tmp_path: Path) -> None:
    """ONNX Runtime has no Where for them, so that there is no upload to compare with."""
    body = "a = Less(x, z)  b = Less(x, w)  c = Less(z, w)  d = Where(a, b, c)  y = Where(d, x, z)"
    network = read_case({"body": body, "weights": {"w": number(0.1)}, **TWO}, tmp_path)
    inputs = network.example_inputs(3)
    for opset in OPSETS:
        write_onnx(network, tmp_path / "made.onnx", opset=opset)
        assert check_parity(network, tmp_path / "made.onnx", *inputs).passed
        assert torch.equal(read_onnx(tmp_path / "made.onnx")(*inputs), network(*inputs))


def test_a_mask_is_made_in_double_precision_too(tmp_path: Path) -> None:
    network = read_case(
        {"body": "m = Less(x, w)  a = Cast<to=1>(m)  y = Conv(a, c)",
         "weights": {"w": number(0), "c": (4, 4, 1, 1)}}, tmp_path,
    )  # fmt: skip
    inputs = network.example_input(2, dtype=torch.float64)
    assert network.to(torch.float64)(inputs).dtype == torch.float64
