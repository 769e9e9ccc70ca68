"""Every operator: read, compared with ONNX Runtime, written for old and new opsets, read again."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import ModelRefused, OperatorUnknown, RecipeInvalid
from core.graph.export import check_parity, to_onnx, write_onnx
from core.graph.importers import read_onnx
from core.graph.network import Network
from core.graph.operators import FORMS, READERS
from tests.core.graph.onnx_texts import model, saved

aten = torch.ops.aten
CONV = {"w": (6, 4, 3, 3), "b": (6,)}
FLAT: dict[str, Any] = {"inputs": "float[batch,12] x", "outputs": "float[batch,n] y"}
LINE: dict[str, Any] = {"inputs": "float[batch,4,9] x", "outputs": "float[batch,n,h] y"}
SPACE: dict[str, Any] = {"inputs": "float[batch,2,5,5,5] x", "outputs": "float[batch,n,d,h,w] y"}
NORM = {"s": (4,), "c": (4,), "m": (4,), "v": np.array([0.5, 1, 2, 3], np.float32)}


def axes(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def number(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


CASES: dict[str, dict[str, Any]] = {
    "conv": {"body": "y = Conv(x, w, b)", "weights": CONV},
    "conv strided, padded, dilated": {
        "body": "y = Conv<strides=[2,1], pads=[1,2,1,2], dilations=[1,2]>(x, w)", "weights": {"w": (6, 4, 3, 3)},
    },
    "conv padded on one side": {"body": "y = Conv<pads=[0,0,1,2]>(x, w, b)", "weights": CONV},
    "conv same upper": {"body": 'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w, b)', "weights": CONV},
    "conv same lower": {"body": 'y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w, b)', "weights": CONV},
    "conv valid": {"body": 'y = Conv<auto_pad="VALID">(x, w, b)', "weights": CONV},
    "conv grouped": {"body": "y = Conv<group=2>(x, w)", "weights": {"w": (6, 2, 3, 3)}},
    "conv depthwise": {"body": "y = Conv<group=4>(x, w)", "weights": {"w": (4, 1, 3, 3)}},
    "conv 1d": {"body": "y = Conv<pads=[1,1]>(x, w, b)", "weights": {"w": (6, 4, 3), "b": (6,)}, **LINE},
    "conv 3d": {"body": "y = Conv<strides=[2,1,1]>(x, w)", "weights": {"w": (4, 2, 3, 3, 3)}, **SPACE},
    "batch norm": {"body": "y = BatchNormalization<epsilon=0.001>(x, s, c, m, v)", "weights": NORM},
    "batch norm 1d": {"body": "y = BatchNormalization(x, s, c, m, v)", "weights": NORM, **LINE},
    "batch norm 3d": {
        "body": "y = BatchNormalization(x, s, c, m, v)", "weights": {**NORM, "s": (2,), "c": (2,), "m": (2,),
        "v": np.ones(2, np.float32)}, **SPACE,
    },
    "gemm": {"body": "y = Gemm<transB=1>(x, w, b)", "weights": {"w": (5, 12), "b": (5,)}, **FLAT},
    "gemm scaled": {
        "body": "y = Gemm<alpha=0.5, beta=2.0>(x, w, b)", "weights": {"w": (12, 5), "b": (1, 5)}, **FLAT,
    },
    "gemm without bias": {"body": "y = Gemm(x, w)", "weights": {"w": (12, 5)}, **FLAT},
    "gemm with one number as bias": {"body": "y = Gemm(x, w, b)", "weights": {"w": (12, 5), "b": number(2)}, **FLAT},
    "matmul": {"body": "y = MatMul(x, w)", "weights": {"w": (12, 5)}, **FLAT},
    "matmul and add": {"body": "a = MatMul(x, w)  y = Add(b, a)", "weights": {"w": (12, 5), "b": (5,)}, **FLAT},
    "matmul and add over lines": {
        "body": "a = MatMul(x, w)  y = Add(a, b)", "weights": {"w": (9, 5), "b": (5,)}, **LINE,
    },
    "matmul read twice": {
        "body": "a = MatMul(x, w)  c = Add(a, b)  y = Mul(a, c)", "weights": {"w": (12, 5), "b": (5,)}, **FLAT,
    },
    "max pool": {"body": "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)"},
    "max pool padded on one side": {"body": "y = MaxPool<kernel_shape=[3,3], pads=[0,0,1,1]>(x)"},
    "max pool rounded up": {"body": "y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", "from": 10},
    "max pool rounded up in vain": {"body": "y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)"},
    "max pool dilated": {"body": "y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)", "from": 10},
    "max pool 1d": {"body": "y = MaxPool<kernel_shape=[2]>(x)", **LINE},
    "max pool 3d": {"body": "y = MaxPool<kernel_shape=[2,2,2]>(x)", **SPACE},
    "average pool": {"body": "y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)"},
    "average pool padded": {"body": "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)"},
    "average pool counting": {
        "body": "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
    },
    "average pool counting one side": {
        "body": "y = AveragePool<kernel_shape=[3,3], pads=[0,1,1,1], count_include_pad=1>(x)",
    },
    "average pool 1d": {"body": "y = AveragePool<kernel_shape=[2]>(x)", **LINE},
    "average pool 3d": {"body": "y = AveragePool<kernel_shape=[2,2,2]>(x)", **SPACE},
    "global average pool": {"body": "y = GlobalAveragePool(x)"},
    "global max pool": {"body": "y = GlobalMaxPool(x)"},
    "reduce mean by attribute": {"body": "y = ReduceMean<axes=[2,3], keepdims=0>(x)", "outputs": "float[batch,n] y"},
    "reduce mean by input": {
        "body": "y = ReduceMean<keepdims=1>(x, a)", "weights": {"a": axes(-1, -2)}, "opset": 18,
    },
    "reduce mean of lines": {"body": "y = ReduceMean<axes=[3]>(x)"},
    "reduce max": {"body": "y = ReduceMax<axes=[2,3], keepdims=0>(x)", "outputs": "float[batch,n] y"},
    "concat": {"body": "a = Relu(x)  y = Concat<axis=1>(x, a, x)"},
    "flatten": {"body": "y = Flatten(x)", "outputs": "float[batch,n] y"},
    "reshape": {"body": "y = Reshape(x, s)", "weights": {"s": axes(0, 2, 12, 6)}},
    "reshape flat": {"body": "y = Reshape(x, s)", "weights": {"s": axes(-1, 144)}, "outputs": "float[batch,n] y"},
    "reshape of a dynamic batch": {
        "body": """
            s = Shape(x)  zero = Constant<value=int64 {0}>()  n = Gather<axis=0>(s, zero)
            axes = Constant<value=int64[1] {0}>()  n1 = Unsqueeze(n, axes)
            rest = Constant<value=int64[1] {-1}>()  target = Concat<axis=0>(n1, rest)  y = Reshape(x, target)
        """,
        "outputs": "float[batch,n] y",
    },
    "reshape of open sizes": {
        "body": "y = Reshape(x, s)", "weights": {"s": axes(0, 2, 2, -1)}, "inputs": "float[batch,4,h,w] x",
    },
    "reshape like another": {
        "body": "a = Flatten(x)  s = Shape(x)  t = Cast<to=7>(s)  y = Reshape(a, t)",
    },
    "squeeze": {
        "body": "a = GlobalAveragePool(x)  y = Squeeze(a, d)", "weights": {"d": axes(2, 3)},
        "outputs": "float[batch,n] y",
    },
    "squeeze and unsqueeze by attribute": {
        "body": "a = GlobalAveragePool(x)  b = Squeeze<axes=[2,3]>(a)  y = Unsqueeze<axes=[2,3]>(b)", "opset": 11,
    },
    "unsqueeze": {"body": "y = Unsqueeze(x, d)", "weights": {"d": axes(2, 4)}, **FLAT,
                  "outputs": "float[batch,a,b,c] y", "inputs": "float[batch,3,5] x", "rank": 5},
    "transpose": {"body": "y = Transpose<perm=[0,3,1,2]>(x)"},
    "pad": {"body": "y = Pad(x, p, v)", "weights": {"p": axes(0, 1, 0, 2, 0, 2, 1, 0), "v": number(0.5)}},
    "pad some axes": {
        "body": "y = Pad(x, p, , a)", "weights": {"p": axes(1, 1), "a": axes(1)}, "opset": 18,
    },
    "pad by attribute": {"body": "y = Pad<pads=[0,0,1,1,0,0,1,1]>(x)", "opset": 9},
    "slice": {
        "body": "y = Slice(x, s, e, a)", "weights": {"s": axes(1, 0), "e": axes(-1, 2**63 - 1), "a": axes(1, 2)},
    },
    "slice with steps": {
        "body": "y = Slice(x, s, e, a, t)", "from": 10,
        "weights": {"s": axes(0, 1), "e": axes(2**63 - 1, 5), "a": axes(2, 3), "t": axes(2, 3)},
    },
    "slice by attribute": {"body": "y = Slice<starts=[1], ends=[3], axes=[2]>(x)", "opset": 9},
    "slice of the whole batch": {
        "body": "a = Slice(x, s, e, d)  y = Relu(a)", "weights": {"s": axes(0), "e": axes(2**63 - 1), "d": axes(0)},
    },
    "split": {"body": "a, b = Split<axis=1>(x, s)  y = Concat<axis=1>(b, a)", "weights": {"s": axes(1, 3)}},
    "split evenly": {"body": "a, b = Split<axis=1, num_outputs=2>(x)  y = Sub(a, b)", "opset": 18},
    "split by attribute": {"body": "a, b = Split<axis=1, split=[3, 1]>(x)  y = Concat<axis=1>(b, a)", "opset": 11},
    "identity": {"body": "a = Identity(x)  b = Relu(a)  y = Identity(b)"},
    "identity of weights": {"body": "a = Identity(w)  b = Conv(x, a)  y = Conv(b, c)",
                            "weights": {"w": (6, 4, 3, 3), "c": (3, 6, 1, 1)}},
    "weights as constants": {"body": "v = Constant<value_floats=[1.0, 2.0, 3.0, 4.0]>()  "
                                     "s = Constant<value_ints=[4,1,1]>()  w = Reshape(v, s)  y = Mul(x, w)"},
    "transposed weights": {"body": "t = Transpose<perm=[1,0]>(w)  y = MatMul(x, t)", "weights": {"w": (5, 12)}, **FLAT},
    "filled weights": {"body": "w = ConstantOfShape<value=float[1] {2.0}>(s)  y = Mul(x, w)",
                       "weights": {"s": axes(1, 4, 1, 1)}},
}  # fmt: skip


def build(case: dict[str, Any], opset: int | None = None) -> Any:
    keys = ("inputs", "outputs", "weights")
    outputs = {"outputs": "float[batch,a,b,c,d] y"} if case.get("rank") == 5 else {}
    given = {**{key: case[key] for key in keys if key in case}, **outputs}
    return model(case["body"], opset=opset or case.get("opset", 17), **given)


@pytest.mark.parametrize("name", CASES)
def test_read_written_read(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = saved(build(case), tmp_path)
    network = read_onnx(path)
    inputs = network.example_input(3)
    assert check_parity(network, path, inputs).passed, "the reader"
    for opset in (9, 10, 11, 12, 13, 17, 18, 21, 23):
        if opset >= case.get("from", 9):
            write_onnx(network, tmp_path / "again.onnx", opset=opset)
            assert check_parity(network, tmp_path / "again.onnx", inputs).passed, f"the writer for opset {opset}"
            again = read_onnx(tmp_path / "again.onnx")
            assert torch.allclose(again(inputs), network(inputs), atol=1e-6), f"the reader for opset {opset}"


WITHOUT_CASE: set[Any] = {aten.ne.Tensor, aten.remainder.Scalar, aten.remainder.Tensor}
"""Forms that no operator is read as which ONNX Runtime knows; they have tests of their own."""


def all_cases() -> list[dict[str, Any]]:
    """The CASES of every file of tests beside this one."""
    found: list[dict[str, Any]] = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if "\nCASES: dict[str, dict[str, Any]]" in path.read_text():
            found += import_module(f"tests.core.graph.{path.stem}").CASES.values()
    return found


def test_every_operator_is_among_the_cases(tmp_path: Path) -> None:
    cases = all_cases()
    text = " ".join(case["body"] for case in cases)
    assert [name for name in READERS if f"{name}(" not in text and f"{name}<" not in text] == []
    forms: set[Any] = set(WITHOUT_CASE)
    for case in cases:
        module = read_onnx(saved(build(case), tmp_path)).module
        for node in module.graph.nodes:
            is_layer = node.op == "call_module"
            forms.add(type(module.get_submodule(node.target)) if is_layer else node.target)
    of_open_sizes = {form for form in FORMS if isinstance(form, FunctionType)}  # those are in test_open_sizes.py
    assert [form for form in FORMS if form not in forms | of_open_sizes] == []


@pytest.mark.parametrize("opset", [*range(9, 27)])
def test_the_opset_is_kept(opset: int, tmp_path: Path) -> None:
    body = "a = Conv(x, w, b)  c = Relu(a)  d = GlobalAveragePool(c)  y = Flatten(d)"
    network = read_onnx(saved(model(body, opset=opset, weights=CONV, outputs="float[batch,6] y"), tmp_path))
    assert to_onnx(network).opset_import[0].version == opset
    write_onnx(network, tmp_path / "again.onnx")


@pytest.mark.parametrize(
    ("name", "opset", "operator"),
    [
        ("max pool dilated", 9, "MaxPool with dilations"),
    ],
)
def test_an_opset_that_cannot_hold_an_operator_names_it(name: str, opset: int, operator: str, tmp_path: Path) -> None:
    network = read_onnx(saved(build(CASES[name]), tmp_path))
    with pytest.raises(RecipeInvalid, match=f"opset {opset} cannot hold {operator}") as caught:
        write_onnx(network, tmp_path / "never.onnx", opset=opset)
    assert caught.value.faults[0].pointer == "/export/opset"
    assert not (tmp_path / "never.onnx").exists()


@pytest.mark.parametrize("opset", [8, 99])
def test_an_opset_out_of_range_is_refused(opset: int, tmp_path: Path) -> None:
    network = read_onnx(saved(model("y = Relu(x)"), tmp_path))
    with pytest.raises(RecipeInvalid, match=f"opset {opset} cannot be written"):
        write_onnx(network, tmp_path / "never.onnx", opset=opset)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "weights that are computed": ({"body": "a = Relu(x)  y = Conv(x, a)"}, "that is not constant"),
    "weights that are computed of constants": (
        {"body": "a = Erf(w)  y = Conv(x, a)", "weights": CONV}, "constants only, which cannot be folded",
    ),
    "a batch that moves": (
        {"body": "y = Reshape(x, s)", "weights": {"s": axes(4, -1, 6, 6)}},
        "puts [batch, 4, 6, 6] into [4, -1, 6, 6], which does not keep the batch apart in front; right is the batch, 0",
    ),
    "a batch fixed inside": ({"body": "y = Reshape(x, s)", "weights": {"s": axes(1, 4, 6, 6)}}, "into [1, 4, 6, 6]"),
    "a batch in a place of its own": (
        {"body": "s = Shape(x)  y = Reshape(x, t)  z = Gather(s, i)  t = Concat<axis=0>(z, z, m)"}, "out of order",
    ),
    "a weight shared by unlike layers": (
        {"body": "a = Conv<pads=[1,1,1,1]>(x, w)  b = Conv<pads=[2,2,2,2], dilations=[2,2]>(x, w)  y = Add(a, b)",
         "weights": {"w": (6, 4, 3, 3)}}, "the weight 'w' of node 'n0' in an unlike layer",
    ),
    "training mode": (
        {"body": "y = BatchNormalization<training_mode=1>(x, s, c, m, v)", "weights": NORM}, "training mode",
    ),
    "a slice of the batch": (
        {"body": "y = Slice(x, s, e, a)", "weights": {"s": axes(0), "e": axes(1), "a": axes(0)}},
        "a slice of the batch",
    ),
    "a split that does not fit": (
        {"body": "y, b = Split<axis=1>(x, s)", "weights": {"s": axes(1, 4)}}, "do not split 4 into 2",
    ),
    "a channel concatenated to the batch": ({"body": "y = Concat<axis=0>(x, x)"}, "along the batch"),
    "a mean over the batch": ({"body": "y = ReduceMean<axes=[0]>(x)"}, "over the batch"),
    "groups that do not fit": (
        {"body": "y = Conv<group=3>(x, w)", "weights": {"w": (6, 2, 3, 3)}}, "do not fit together",
    ),
    "NaN weights": (
        {"body": "y = Conv(x, w)", "weights": {"w": np.full((6, 4, 3, 3), np.nan, np.float32)}}, "holds NaN",
    ),
    "whole weights": ({"body": "y = Conv(x, w)", "weights": {"w": np.ones((6, 4, 3, 3), np.int8)}}, "int8"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_by_name(name: str, tmp_path: Path) -> None:
    case, message = REFUSED[name]
    made = model(case["body"], **{key: value for key, value in case.items() if key != "body"})
    with pytest.raises(ModelRefused) as caught:
        read_onnx(saved(made, tmp_path))
    assert message in caught.value.message


def test_an_unknown_operator_says_what_is_known(tmp_path: Path) -> None:
    made = model("y = Hardmax(x)")
    made.graph.node[0].name = "/block/Hardmax"
    with pytest.raises(OperatorUnknown) as caught:
        read_onnx(saved(made, tmp_path))
    (fault,) = caught.value.faults
    assert fault.pointer == "/graph/node/~1block~1Hardmax"
    assert fault.expected is not None
    assert "Conv" in fault.expected


def test_all_unknown_operators_are_named_at_once(tmp_path: Path) -> None:
    made = model("a = Hardmax(x)\n b = Relu(a)\n y = Det(b)")
    with pytest.raises(OperatorUnknown, match=r"operator Hardmax .*; nor are 1 more nodes \(Det\)") as caught:
        read_onnx(saved(made, tmp_path))
    assert [fault.message for fault in caught.value.faults] == ["unknown operator Hardmax", "unknown operator Det"]


def as_network(body: str, tmp_path: Path, **options: Any) -> Network:
    return read_onnx(saved(model(body, **options), tmp_path))


def test_matmul_and_add_become_one_linear(tmp_path: Path) -> None:
    network = as_network("a = MatMul(x, w)  y = Add(a, b)", tmp_path, weights={"w": (12, 5), "b": (5,)}, **FLAT)
    (layer,) = network.layers().values()
    assert isinstance(layer, torch.nn.Linear)
    assert layer.bias is not None


def test_aliased_weights_are_untied_and_shared_layers_are_not(tmp_path: Path) -> None:
    weights = {"w": (4, 4, 1, 1)}
    aliased = as_network("a = Identity(w)  b = Conv(x, w)  y = Conv(b, a)", tmp_path, weights=weights)
    assert len(aliased.layers()) == 2
    shared = as_network("b = Conv(x, w)  y = Conv(b, w)", tmp_path, weights=weights)
    assert len(shared.layers()) == 1
