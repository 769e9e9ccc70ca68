"""Pooling and reductions: each read, written for old and new opsets, read again; what is refused, and what freezes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import RecipeInvalid
from core.graph.export import check_parity, write_onnx
from core.graph.groups import channel_groups
from core.graph.importers import read_onnx
from core.graph.operators import pooling, reduce
from tests.core.graph.round_trips import cut_and_check, read_case, refused, round_trip

LINE: dict[str, Any] = {"inputs": "float[batch,4,9] x", "outputs": "float[batch,n,h] y"}
SPACE: dict[str, Any] = {"inputs": "float[batch,2,5,5,5] x", "outputs": "float[batch,n,d,h,w] y"}
VECTOR: dict[str, Any] = {"outputs": "float[batch,n] y"}
POSITIVE = "p = Mul(x, x)  q = Add(p, one)  "
ONE = {"one": np.array(1, np.float32)}


def axes(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


CASES: dict[str, dict[str, Any]] = {
    "max pool": {"body": "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)"},
    "max pool padded on one side": {"body": "y = MaxPool<kernel_shape=[3,3], pads=[0,0,1,1]>(x)"},
    "max pool padded by more than half": {"body": "y = MaxPool<kernel_shape=[3,3], pads=[2,2,2,2]>(x)"},
    "max pool rounded up": {"body": "y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)"},
    "max pool rounded up, padded": {
        "body": "y = MaxPool<kernel_shape=[2,3], strides=[3,4], pads=[1,1,1,1], ceil_mode=1>(x)",
    },
    "max pool rounded up in vain": {"body": "y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)"},
    "max pool dilated": {"body": "y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)", "from": 10},
    "max pool, same": {"body": 'y = MaxPool<kernel_shape=[2,2], strides=[1,1], auto_pad="SAME_UPPER">(x)'},
    "max pool, same, rounded up": {
        "body": 'y = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER", ceil_mode=1>(x)',
    },
    "max pool 1d": {"body": "y = MaxPool<kernel_shape=[2]>(x)", **LINE},
    "max pool 3d": {"body": "y = MaxPool<kernel_shape=[2,2,2], strides=[2,2,2], ceil_mode=1>(x)", **SPACE},
    "average pool": {"body": "y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)"},
    "average pool padded": {"body": "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)"},
    "average pool counting": {
        "body": "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
    },
    "average pool counting one side": {
        "body": "y = AveragePool<kernel_shape=[3,3], pads=[0,1,1,1], count_include_pad=1>(x)",
    },
    "average pool counting one side, rounded up": {
        "body": "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1], ceil_mode=1, "
                "count_include_pad=1>(x)",
        "from": 10,
    },
    "average pool not counting one side": {"body": "y = AveragePool<kernel_shape=[3,3], pads=[0,0,1,1]>(x)"},
    "average pool not counting one side, rounded up": {
        "body": "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,0,1], ceil_mode=1>(x)", "from": 10,
    },
    "average pool rounded up": {"body": "y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)"},
    "average pool rounded up, counting": {
        "body": "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1, "
                "count_include_pad=1>(x)",
        "from": 10,
    },
    "average pool dilated": {
        "body": "y = AveragePool<kernel_shape=[2,3], dilations=[2,1], strides=[1,2], pads=[1,0,0,1]>(x)", "opset": 19,
        "from": 10,
    },
    "average pool dilated, counting, rounded up": {
        "body": "y = AveragePool<kernel_shape=[2,2], dilations=[2,2], strides=[3,2], pads=[1,1,1,1], ceil_mode=1, "
                "count_include_pad=1>(x)",
        "opset": 19, "from": 10,
    },
    "max pool whose last window starts behind": {
        "body": "y = MaxPool<kernel_shape=[1,1], strides=[5,5], pads=[0,0,0,0], ceil_mode=1>(x)",
    },
    "average pool, same": {"body": 'y = AveragePool<kernel_shape=[2,2], strides=[1,1], auto_pad="SAME_LOWER">(x)'},
    "average pool 1d": {"body": "y = AveragePool<kernel_shape=[2], pads=[0,1]>(x)", **LINE},
    "average pool 3d": {"body": "y = AveragePool<kernel_shape=[2,2,2], pads=[0,1,0,0,0,1]>(x)", **SPACE},
    "lp pool": {"body": "y = LpPool<kernel_shape=[2,2], strides=[2,2], p=2>(x)"},
    "lp pool of the first order": {"body": "y = LpPool<kernel_shape=[3,2], p=1, pads=[1,0,1,0]>(x)"},
    "lp pool of the third order": {"body": "y = LpPool<kernel_shape=[2,2], p=3, pads=[0,0,1,1]>(x)"},
    "lp pool dilated, rounded up": {
        "body": "y = LpPool<kernel_shape=[2,2], dilations=[2,1], strides=[2,2], ceil_mode=1>(x)", "opset": 18,
        "from": 10,
    },
    "reduce sum of nothing": {"body": "a = ReduceSum<noop_with_empty_axes=1>(x)  y = Relu(a)", "opset": 13},
    "global average pool": {"body": "y = GlobalAveragePool(x)"},
    "global max pool": {"body": "y = GlobalMaxPool(x)"},
    "global lp pool": {"body": "y = GlobalLpPool(x)"},
    "global lp pool of the third order": {"body": "y = GlobalLpPool<p=3>(x)"},
    "global average pool 1d": {"body": "y = GlobalAveragePool(x)", **LINE},
    "global max pool 3d": {"body": "y = GlobalMaxPool(x)", **SPACE},
    "reduce mean by attribute": {"body": "y = ReduceMean<axes=[2,3], keepdims=0>(x)", **VECTOR},
    "reduce mean by input": {"body": "y = ReduceMean<keepdims=1>(x, a)", "weights": {"a": axes(-1, -2)}, "opset": 18},
    "reduce mean of lines": {"body": "y = ReduceMean<axes=[3]>(x)"},
    "reduce mean of the channels": {"body": "y = ReduceMean<axes=[1]>(x)"},
    "reduce max": {"body": "y = ReduceMax<axes=[2,3], keepdims=0>(x)", **VECTOR},
    "reduce max by input": {"body": "y = ReduceMax(x, a)", "weights": {"a": axes(1)}, "opset": 18},
    "reduce min": {"body": "y = ReduceMin<axes=[2,3]>(x)"},
    "reduce sum": {"body": "y = ReduceSum(x, a)", "weights": {"a": axes(2, 3)}, "opset": 13},
    "reduce sum by attribute": {"body": "y = ReduceSum<axes=[1,2], keepdims=0>(x)", "opset": 11, **VECTOR},
    "reduce product": {"body": "y = ReduceProd<axes=[2,3]>(x)"},
    "reduce product, gone": {"body": "y = ReduceProd<axes=[1,3], keepdims=0>(x)", **VECTOR},
    "reduce l1": {"body": "y = ReduceL1<axes=[2,3]>(x)"},
    "reduce l2": {"body": "y = ReduceL2<axes=[2,3], keepdims=0>(x)", **VECTOR},
    "reduce l2 by input": {"body": "y = ReduceL2(x, a)", "weights": {"a": axes(1)}, "opset": 18},
    "reduce sum of squares": {"body": "y = ReduceSumSquare<axes=[2,3]>(x)"},
    "reduce log of sums": {"body": POSITIVE + "y = ReduceLogSum<axes=[2,3]>(q)", "weights": ONE},
    "reduce log of sums of exponentials": {"body": "y = ReduceLogSumExp<axes=[2,3]>(x)"},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_read_written_read(name: str, tmp_path: Path) -> None:
    round_trip(CASES[name], tmp_path)


def test_every_operator_is_among_the_cases(tmp_path: Path) -> None:
    text = " ".join(case["body"] for case in CASES.values())
    operators = {**pooling.READERS, **reduce.READERS}
    assert [name for name in operators if f"{name}(" not in text and f"{name}<" not in text] == []
    found = {node.target for case in CASES.values() for node in read_case(case, tmp_path).module.graph.nodes}
    assert [form for form in (*pooling.FORMS, *reduce.FORMS) if form not in found] == []


AROUND = {"w": (8, 4, 3, 3), "v": (5, 8, 1, 1)}
CUTS = {
    "max pool": "b = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(a)",
    "uneven max pool": "b = MaxPool<kernel_shape=[2,2], pads=[0,0,1,1]>(a)",
    "uneven average": "b = AveragePool<kernel_shape=[3,3], pads=[0,0,1,1]>(a)",
    "lp pool": "b = LpPool<kernel_shape=[2,2], p=3>(a)",
    "mean": "b = ReduceMean<axes=[3]>(a)",
    "product": "b = ReduceProd<axes=[3]>(a)",
    "l2": "b = ReduceL2<axes=[2,3]>(a)",
    "least": "b = ReduceMin<axes=[2,3]>(a)",
    "log of sums of exponentials": "b = ReduceLogSumExp<axes=[2,3]>(a)",
    "sum of squares": "b = ReduceSumSquare<axes=[2,3]>(a)",
}


@pytest.mark.parametrize("name", CUTS)
def test_a_reduction_over_space_is_cut_through(name: str, tmp_path: Path) -> None:
    case = {
        "body": f"a = Conv(x, w)  {CUTS[name]}  y = Conv(b, v)",
        "weights": AROUND,
        "inputs": "float[batch,4,9,9] x",
    }
    smaller = cut_and_check(read_case(case, tmp_path), tmp_path)
    assert smaller.layers()["n0"].get_parameter("weight").shape[0] == 5


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceSumSquare", "ReduceL2", "ReduceProd", "ReduceMin"])
def test_a_reduction_over_the_channels_freezes_them(operator: str, tmp_path: Path) -> None:
    case = {"body": f"a = Conv(x, w)  b = {operator}<axes=[1]>(a)  y = Mul(b, b)", "weights": {"w": (8, 4, 3, 3)}}
    groups = channel_groups(read_case(case, tmp_path))
    assert not any(group.cuttable for group in groups.groups)
    assert "a reduction over the channels needs all of them" in {item.reason for item in groups.frozen}


def test_channels_that_lie_along_space_are_not_pooled_apart(tmp_path: Path) -> None:
    body = "a = Conv(x, w)  b = Transpose<perm=[0,2,1,3]>(a)  y = MaxPool<kernel_shape=[2,2]>(b)"
    groups = channel_groups(read_case({"body": body, "weights": {"w": (8, 4, 3, 3)}}, tmp_path))
    assert {item.reason for item in groups.frozen} >= {"it mixes places along which channels lie"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "indices": (
        {"body": "a, i = MaxPool<kernel_shape=[2,2]>(x)  b = Cast<to=1>(i)  y = Add(a, b)"}, "whose indices are read",
    ),
    "a dilated average of open sizes": (
        {"body": "y = AveragePool<kernel_shape=[2,2], dilations=[2,2]>(x)", "opset": 19, "inputs": "float[n,4,h,w] x"},
        "dilations [2, 2] on dynamic dimensions",
    ),
    "padding that is not counted, of open sizes": (
        {"body": "y = AveragePool<kernel_shape=[3,3], pads=[0,0,1,1]>(x)", "inputs": "float[n,4,h,w] x"},
        "not counted, of dynamic dimensions",
    ),
    "a window in the padding": (
        {"body": "y = AveragePool<kernel_shape=[2,2], pads=[0,0,3,3]>(x)"}, "a window that lies in the padding",
    ),
    "a kernel of another rank": ({"body": "y = MaxPool<kernel_shape=[2]>(x)"}, "kernel_shape [2] on an input of"),
    "a norm of order 0": ({"body": "y = LpPool<kernel_shape=[2,2], p=0>(x)"}, "p is 0"),
    "a global norm of order 0": ({"body": "y = GlobalLpPool<p=0>(x)"}, "p is 0"),
    "a global pooling of nothing": (
        {"body": "y = GlobalMaxPool(x)", "inputs": "float[n,4] x", "outputs": "float[n,c] y"}, "at least one spatial",
    ),
    "a mean over the batch": ({"body": "y = ReduceMean<axes=[0]>(x)"}, "over the batch"),
    "a mean over all": ({"body": "y = ReduceMean(x)"}, "over the batch"),
    "a norm over nothing": ({"body": "y = ReduceL2<noop_with_empty_axes=1>(x)", "opset": 18}, "no axes"),
    "the place of the largest": ({"body": "a = ArgMax<axis=1>(x)  y = Cast<to=1>(a)"}, "operator ArgMax at node 'n0'"),
    "running sums": (
        {"body": "y = CumSum(x, a)", "weights": {"a": np.array(2)}}, "operator CumSum at node 'n0'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_by_name(name: str, tmp_path: Path) -> None:
    refused(*REFUSED[name], tmp_path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)", "MaxPool with dilations"),
        (
            "y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1, pads=[1,1,1,1], count_include_pad=1>(x)",
            "AveragePool with ceil_mode",
        ),
    ],
)
def test_what_opset_9_cannot_hold(body: str, message: str, tmp_path: Path) -> None:
    network = read_case({"body": body}, tmp_path)
    with pytest.raises(RecipeInvalid, match=f"opset 9 cannot hold {message}"):
        write_onnx(network, tmp_path / "never.onnx", opset=9)


@pytest.mark.parametrize("pool", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize("opset", [10, 13, 20])
def test_a_window_of_one_place_behind_a_pad_runs(pool: str, opset: int, tmp_path: Path) -> None:
    """ONNX Runtime makes one node of the two and refuses it; as a Slice it cannot."""
    window = "kernel_shape=[1,1], strides=[2,2]"
    body = f"a = Conv(x, w)  b = Pad(a, amounts, zero)  c = {pool}<{window}>(b)  y = Conv(c, v)"
    weights: dict[str, Any] = {
        "w": (6, 4, 3, 3),
        "v": (6, 6, 1, 1),
        "amounts": np.array([0, 0, 1, 1, 0, 0, 0, 0]),
        "zero": np.array(0, np.float32),
    }
    network = read_case({"body": body, "weights": weights}, tmp_path)
    write_onnx(network, tmp_path / "out.onnx", opset=opset)
    assert check_parity(network, tmp_path / "out.onnx", network.example_input(3)).passed
    assert read_onnx(tmp_path / "out.onnx").computed_outputs()[0].shape[1:] == (6, 3, 3)
    cut_and_check(network, tmp_path)


STACK = (
    "a = Conv(x, w)  b = Conv(x, v)  c = Unsqueeze<axes=[1]>(a)  d = Unsqueeze<axes=[1]>(b)  s = Concat<axis=1>(c, d)"
)


@pytest.mark.parametrize(
    "reduced",
    [
        "r = ReduceMean<axes=[1], keepdims=0>(s)",
        "m = ReduceMax<axes=[1]>(s)  r = Squeeze<axes=[1]>(m)",
        "t = Transpose<perm=[0,2,3,4,1]>(s)  p = Softmax<axis=-1>(t)  q = Mul(p, t)  "
        "r = ReduceSum<axes=[4], keepdims=0>(q)",
    ],
)
def test_a_reduction_over_a_stack_of_branches_unites_them(reduced: str, tmp_path: Path) -> None:
    """FractalNet's mean of its columns, the attention of a selective kernel: channel by channel."""
    weights = {"w": (8, 4, 3, 3), "v": (8, 4, 3, 3), "u": (5, 8, 1, 1)}
    network = read_case({"body": f"{STACK} {reduced} y = Conv(r, u)", "weights": weights, "opset": 12}, tmp_path)
    free = [group for group in channel_groups(network).groups if group.cuttable]
    assert [(group.width, len(group.producers)) for group in free] == [(8, 2)]
    cut_and_check(network, tmp_path)
