"""Operators that move, choose and repeat numbers: each read, written for old and new opsets, read again, and cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import ModelRefused, RecipeInvalid
from core.graph.cuts import cut
from core.graph.export import write_onnx
from core.graph.groups import channel_groups
from core.graph.operators import gather, padding, reshape, reshape_reading, shape, slicing, space_depth
from core.graph.operators import resize as resize_family
from core.graph.plans import replay
from tests.core.graph.round_trips import cut_and_check, read_case, round_trip

aten = torch.ops.aten
LINE: dict[str, Any] = {"inputs": "float[batch,4,9] x", "outputs": "float[batch,n,h] y"}
SPACE: dict[str, Any] = {"inputs": "float[batch,2,4,4,4] x", "outputs": "float[batch,n,d,h,w] y"}
VECTOR: dict[str, Any] = {"outputs": "float[batch,n] y"}


def whole(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def number(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def resize(attributes: str, sizes: tuple[int, ...] | None = None, scales: tuple[float, ...] | None = None) -> Any:
    weights = {"r": floats()}
    if sizes is not None:
        weights["s"] = whole(*sizes)
        return {"body": f"y = Resize<{attributes}>(x, , , s)", "weights": weights, "opset": 19}
    return {
        "body": f"y = Resize<{attributes}>(x, r, s)",
        "weights": {**weights, "s": floats(*(scales or ()))},
        "opset": 13,
    }


FLOOR = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
CASES: dict[str, dict[str, Any]] = {
    "resize nearest by factors": resize(FLOOR, scales=(1, 1, 2, 3)),
    "resize nearest to sizes": {**resize(FLOOR, sizes=(1, 4, 8, 9)), "batch": 1, "from": 11},
    "resize nearest by default rules": {**resize('mode="nearest"', scales=(1, 1, 2, 2))},
    "resize nearest exactly": {
        **resize('mode="nearest", nearest_mode="round_prefer_ceil"', scales=(1, 1, 1.5, 2)), "from": 11,
    },
    "resize nearest of TF": {
        **resize('mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn"', scales=(1, 1, 1.5, 1.5)),
        "from": 11,
    },
    "resize nearest as torch cannot": resize(
        'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="ceil"', scales=(1, 1, 1.5, 2)
    ),
    "resize nearest with aligned corners": resize(
        'mode="nearest", coordinate_transformation_mode="align_corners"', scales=(1, 1, 2, 2)
    ),
    "resize linear": {**resize('mode="linear"', scales=(1, 1, 2, 1.5)), "from": 11},
    "resize linear to sizes": {**resize('mode="linear"', sizes=(1, 4, 7, 3)), "batch": 1, "from": 11},
    "resize linear with aligned corners": {
        **resize('mode="linear", coordinate_transformation_mode="align_corners"', scales=(1, 1, 2, 2)), "from": 11,
    },
    "resize cubic": {**resize('mode="cubic"', scales=(1, 1, 2, 2)), "from": 11},
    "resize a line": {**resize('mode="linear"', scales=(1, 1, 2)), **LINE, "from": 11},
    "resize a line nearest": {**resize(FLOOR, scales=(1, 1, 2)), **LINE},
    "resize space": {**resize('mode="linear"', scales=(1, 1, 2, 2, 1)), **SPACE, "from": 11},
    "resize space nearest": {**resize(FLOOR, scales=(1, 1, 2, 2, 1)), **SPACE},
    "resize space exactly": {
        **resize('mode="nearest", nearest_mode="round_prefer_ceil"', scales=(1, 1, 1.5, 1, 1)), **SPACE, "from": 11,
    },
    "resize a line exactly": {
        **resize('mode="nearest", nearest_mode="round_prefer_ceil"', scales=(1, 1, 1.5)), **LINE, "from": 11,
    },
    "resize of some axes": {
        "body": f"y = Resize<{FLOOR}, axes=[2,3]>(x, , , s)", "weights": {"s": whole(12, 6)}, "opset": 18, "from": 11,
    },
    "resize with the channels last": {
        "body": f"y = Resize<{FLOOR}>(x, , s)", "weights": {"s": floats(1, 2, 2, 1)}, "opset": 13,
    },
    "resize to itself": {"body": "a = Resize(x, , s)  y = Relu(a)", "weights": {"s": floats(1, 1, 1, 1)}, "opset": 13},
    "resize-10": {"body": 'y = Resize<mode="nearest">(x, s)', "weights": {"s": floats(1, 1, 2, 2)}, "opset": 10},
    "upsample": {"body": 'y = Upsample<mode="nearest">(x, s)', "weights": {"s": floats(1, 1, 2, 2)}, "opset": 9},
    "depth to space": {"body": "y = DepthToSpace<blocksize=2>(x)", "inputs": "float[batch,8,3,2] x"},
    "depth to space, channels first": {
        "body": 'y = DepthToSpace<blocksize=2, mode="CRD">(x)', "inputs": "float[batch,8,3,2] x",
    },
    "space to depth": {"body": "y = SpaceToDepth<blocksize=2>(x)"},
    "pad": {"body": "y = Pad(x, p, v)", "weights": {"p": whole(0, 1, 0, 2, 0, 2, 1, 0), "v": number(0.5)}},
    "pad some axes": {"body": "y = Pad(x, p, , a)", "weights": {"p": whole(1, 1), "a": whole(1)}, "opset": 18},
    "pad by attribute": {"body": "y = Pad<pads=[0,0,1,1,0,0,1,1]>(x)", "opset": 9},
    "pad reflected": {"body": 'y = Pad<mode="reflect">(x, p)', "weights": {"p": whole(0, 0, 1, 2, 0, 0, 3, 0)}},
    "pad with the edge": {"body": 'y = Pad<mode="edge">(x, p)', "weights": {"p": whole(0, 0, 1, 2, 0, 0, 3, 0)}},
    "pad a line reflected": {
        "body": 'y = Pad<mode="reflect">(x, p)', "weights": {"p": whole(0, 0, 1, 0, 0, 2)}, **LINE,
    },
    "pad a line with the edge": {
        "body": 'y = Pad<mode="edge">(x, p)', "weights": {"p": whole(0, 0, 1, 0, 0, 2)}, **LINE,
    },
    "pad space reflected": {
        "body": 'y = Pad<mode="reflect">(x, p)', "weights": {"p": whole(0, 0, 1, 2, 0, 0, 0, 0, 1, 3)}, **SPACE,
    },
    "pad space with the edge": {
        "body": 'y = Pad<mode="edge">(x, p)', "weights": {"p": whole(0, 0, 1, 2, 0, 0, 0, 0, 1, 3)}, **SPACE,
    },
    "pad that crops": {"body": "y = Pad(x, p)", "weights": {"p": whole(0, -1, -1, 2, 0, 0, -2, -1)}},
    "pad reflected by nothing": {
        "body": 'a = Pad<mode="reflect">(x, p)  y = Relu(a)', "weights": {"p": np.zeros(8, np.int64)},
    },
    "slice backwards": {
        "body": "y = Slice(x, s, e, a, t)", "from": 10,
        "weights": {"s": whole(-1, 4), "e": whole(-(2**63) + 1, 0), "a": whole(1, 2), "t": whole(-1, -2)},
    },
    "gather": {"body": "y = Gather<axis=1>(x, i)", "weights": {"i": whole(3, 0, -1, 2)}},
    "gather places": {"body": "y = Gather<axis=3>(x, i)", "weights": {"i": whole(5, 0, 0, 2)}},
    "gather in a row": {"body": "y = Gather<axis=1>(x, i)", "weights": {"i": whole(1, 2)}},
    "gather one": {
        "body": "y = Gather<axis=2>(x, i)", "weights": {"i": np.array(-1)}, "outputs": "float[batch,n,w] y",
    },
    "gather a table": {
        "body": "a = Gather<axis=1>(x, i)  y = Reshape(a, s)",
        "weights": {"i": np.array([[3, 1], [0, 2], [1, 1]]), "s": whole(0, 6, 6, 6)},
    },
    "expand": {
        "body": "a = GlobalAveragePool(x)  y = Expand(a, s)", "weights": {"s": whole(1, 1, 3, 5)},
    },
    "expand like another": {"body": "a = GlobalAveragePool(x)  s = Shape(x)  y = Expand(a, s)"},
    "tile": {"body": "y = Tile(x, r)", "weights": {"r": whole(1, 2, 1, 3)}},
    "tile nothing": {"body": "a = Tile(x, r)  y = Relu(a)", "weights": {"r": whole(1, 1, 1, 1)}},
    "squeeze without axes": {"body": "a = GlobalAveragePool(x)  y = Squeeze(a)", **VECTOR},
    "transposed there and back": {
        "body": "a = Transpose<perm=[1,0,2,3]>(x)  b = Transpose<perm=[1,2,3,0]>(a)  y = Transpose<perm=[0,3,1,2]>(b)",
    },
    "parts of what a transpose moved": {
        "body": """
            a = Reshape(x, r)  b = Transpose<perm=[2,0,1,3,4]>(a)
            p, q = Split<axis=0>(b)  c = Squeeze(p, zero)  d = Gather<axis=0>(q, one)
            e = Slice(b, zero, o, zero)  f = Squeeze(e, zero)  g = Add(c, d)  y = Sub(g, f)
        """,
        "weights": {"r": whole(0, 2, 2, 6, 6), "zero": whole(0), "o": whole(1), "one": np.array(0)},
    },
    "reshape with ones": {"body": "a = Reshape(x, s)  y = Reshape(a, t)",
                          "weights": {"s": whole(0, 1, 4, 36, 1), "t": whole(-1, 4, 6, 6)}},
    "shape arithmetic": {
        "body": """
            s = Shape(x)  n, c, h, w = Split<axis=0, num_outputs=4>(s)  p = Mul(h, w)  i = Cast<to=1>(c)
            j = Div(i, two)  k = Floor(j)  l = Cast<to=7>(k)  t = Concat<axis=0>(n, l, m, p)  y = Reshape(x, t)
        """,
        "weights": {"two": floats(2), "m": whole(2)}, "opset": 18, "outputs": "float[batch,a,b,c] y",
    },
    "an expansion as torch writes it": {
        "body": """
            o = ConstantOfShape<value=int64[1] {1}>(l)  e = Equal(s, m)  t = Where(e, o, s)
            a = GlobalAveragePool(x)  y = Expand(a, t)
        """,
        "weights": {"l": whole(4), "s": whole(-1, -1, 5, 2), "m": whole(-1)},
    },
}  # fmt: skip


def case_of(name: str) -> dict[str, Any]:
    case = dict(CASES[name])
    if case.get("batch"):
        case["inputs"] = "float[1,4,6,6] x"
        case["outputs"] = "float[1,n,h,w] y"
    return case


@pytest.mark.parametrize("name", CASES)
def test_read_written_read(name: str, tmp_path: Path) -> None:
    round_trip(case_of(name), tmp_path)


def test_every_operator_is_among_the_cases(tmp_path: Path) -> None:
    families = (gather, padding, reshape, resize_family, shape, slicing, space_depth)
    text = " ".join(case["body"] for case in CASES.values())
    readers = [name for family in (*families, reshape_reading) for name in getattr(family, "READERS", {})]
    elsewhere = {"Flatten", "Identity", "Unsqueeze"}  # in `test_operators.py`
    assert {name for name in readers if f"{name}(" not in text and f"{name}<" not in text} == elsewhere
    found = {node.target for name in CASES for node in read_case(case_of(name), tmp_path).module.graph.nodes}
    # those for open sizes are in `test_open_sizes.py`
    rest = {aten.unsqueeze.default, aten.flatten.using_ints, aten.unflatten.int, shape.expand_like}
    rest |= {reshape.unflatten_like, resize_family.resize_like}
    assert {form for family in families for form in family.FORMS} - found == rest


AROUND = {"w": (8, 4, 3, 3), "v": (5, 8, 1, 1)}
CUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "resize": (f"b = Resize<{FLOOR}>(a, , r)", {"r": floats(1, 1, 2, 2)}),
    "resize linear": ('b = Resize<mode="linear">(a, , r)', {"r": floats(1, 1, 2, 2)}),
    "pixel shuffle": (
        'c = DepthToSpace<blocksize=2, mode="CRD">(a)  d = Conv(c, t)  b = Relu(d)', {"t": (8, 2, 1, 1)},
    ),
    "depth to space": ("c = DepthToSpace<blocksize=2>(a)  d = Conv(c, t)  b = Relu(d)", {"t": (8, 2, 1, 1)}),
    "space to depth": (
        "c = SpaceToDepth<blocksize=2>(a)  d = Conv(c, t)  b = Relu(d)", {"t": (8, 32, 1, 1)},
    ),
    "pad": ('b = Pad<mode="reflect">(a, p)', {"p": whole(0, 0, 1, 1, 0, 0, 1, 1)}),
    "crop of the channels": (
        "c = Pad(a, p)  d = Conv(c, t)  b = Relu(d)", {"p": whole(0, -2, 0, 0, 0, 1, 0, 0), "t": (8, 7, 1, 1)},
    ),
    "flip": (
        "b = Slice(a, i, j, k, i)", {"i": whole(-1), "j": whole(-(2**63) + 1), "k": whole(1)},
    ),
    "gather": ("b = Gather<axis=1>(a, i)", {"i": whole(3, 0, 7, 1, 2, 5, 4, 6)}),
    "gather again and again": (
        "c = Gather<axis=1>(a, i)  d = Conv(c, t)  b = Relu(d)", {"i": whole(1, 6, 1, 3, 0), "t": (8, 5, 1, 1)},
    ),
    "gather a table": (
        "c = Gather<axis=1>(a, i)  b = Reshape(c, s)",
        {"i": np.array([[5, 1], [0, 2], [4, 7], [3, 6]]), "s": whole(0, 8, 4, 4)},
    ),
    "tile": ("c = Relu(a)  b = Tile(c, r)", {"r": whole(1, 1, 2, 1)}),
    "tile of the channels": (
        "c = Tile(a, r)  d = Conv(c, t)  b = Relu(d)", {"r": whole(1, 2, 1, 1), "t": (8, 16, 1, 1)},
    ),
    "expand": ("c = GlobalAveragePool(a)  d = Expand(c, s)  b = Mul(a, d)", {"s": whole(1, 8, 4, 4)}),
    "one of the channels' halves": (
        "c = Reshape(a, s)  d = Transpose<perm=[2,0,1,3,4]>(c)  e = Gather<axis=0>(d, i)  f = Gather<axis=0>(d, j)"
        "  b = Concat<axis=1>(f, e)",
        {"s": whole(0, 4, 2, 4, 4), "i": np.array(0), "j": np.array(1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CUTS)
def test_what_moves_channels_is_cut_through(name: str, tmp_path: Path) -> None:
    middle, weights = CUTS[name]
    case = {"body": f"a = Conv(x, w)  {middle}  y = Conv(b, v)", "weights": {**AROUND, **weights}, "opset": 13}
    network = read_case(case, tmp_path)
    smaller = cut_and_check(network, tmp_path, share=0.5)
    assert smaller.layers()["n0"].get_parameter("weight").shape[0] < 8


def test_indices_are_counted_anew_after_each_cut(tmp_path: Path) -> None:
    weights = {**AROUND, "i": whole(3, 0, 7, 1, 2, 5, 4, 6)}
    case = {"body": "a = Conv(x, w)  b = Gather<axis=1>(a, i)  y = Conv(b, v)", "weights": weights}
    network = read_case(case, tmp_path)
    first, one = cut(network, {"n0": [0, 4]})
    second, two = cut(first, {"n0": [1]})
    (indices,) = [value for name, value in second.state_dict().items() if value.dtype == torch.int64]
    assert indices.tolist() == [1, 4, 0, 2, 3]
    inputs = network.example_input(2)
    assert torch.equal(replay(network, [one, two])(inputs), second(inputs))
    assert [value.tolist() for value in network.state_dict().values() if value.dtype == torch.int64] == [
        weights["i"].tolist()
    ]


def test_shared_indices_freeze_the_channels(tmp_path: Path) -> None:
    body = "a = Conv(x, w)  b = Gather<axis=1>(a, i)  y = Conv(b, v)"
    network = read_case({"body": body, "weights": {**AROUND, "i": whole(3, 0, 7, 1, 2, 5, 4, 6)}}, tmp_path)
    (select,) = network.module.graph.find_nodes(op="call_function", target=aten.index_select.default)
    with network.module.graph.inserting_after(select):
        twice = network.module.graph.call_function(aten.index_select.default, (select, 1, select.args[2]))
    select.replace_all_uses_with(twice, delete_user_cb=lambda user: user is not twice)
    twice.meta = dict(select.meta)
    network.module.recompile()
    groups = channel_groups(network)
    assert "its indices are read by another operator too" in {item.reason for item in groups.frozen}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a cubic line": ({**resize('mode="cubic"', scales=(1, 1, 2)), **LINE}, "mode 'cubic' (half_pixel)"),
    "linear by the legacy rule": (
        {"body": 'y = Upsample<mode="linear">(x, s)', "weights": {"s": floats(1, 1, 2, 2)}, "opset": 9},
        "mode 'linear' (asymmetric)",
    ),
    "linear cropped": (
        resize('mode="linear", coordinate_transformation_mode="tf_crop_and_resize"', scales=(1, 1, 2, 2)),
        "mode 'linear' (tf_crop_and_resize)",
    ),
    "antialiased": (
        {"body": 'y = Resize<mode="linear", antialias=1>(x, , s)', "weights": {"s": floats(1, 1, 2, 2)}, "opset": 18},
        "antialias",
    ),
    "another cubic": (resize('mode="cubic", cubic_coeff_a=-0.5', scales=(1, 1, 2, 2)), "cubic_coeff_a -0.5"),
    "an aspect ratio": (
        {"body": 'y = Resize<mode="linear", keep_aspect_ratio_policy="not_larger">(x, , , s)',
         "weights": {"s": whole(1, 4, 3, 7)}, "opset": 18}, "keep_aspect_ratio_policy 'not_larger'",
    ),
    "more channels": (resize('mode="nearest"', scales=(1, 2, 2, 2)), "along the batch or the channels"),
    "more images": (resize('mode="nearest"', scales=(2, 1, 1, 1)), "along the batch or the channels"),
    "factors of another rank": (resize('mode="nearest"', scales=(2, 2)), "2 numbers for 4 dimensions"),
    "a factor of 0": (resize('mode="nearest"', scales=(1, 1, 0, 1)), "they are above 0"),
    "places of TF, of open sizes": (
        {**resize('mode="nearest", coordinate_transformation_mode="align_corners"', scales=(1, 1, 2, 2)),
         "inputs": "float[n,4,h,w] x"}, "of dynamic dimensions",
    ),
    "blocks that do not fit": ({"body": "y = DepthToSpace<blocksize=3>(x)"}, "4 channels do not make places of 3 x 3"),
    "a wrapped pad": (
        {"body": 'y = Pad<mode="wrap">(x, p)', "weights": {"p": whole(0, 0, 1, 1, 0, 0, 1, 1)}, "opset": 19}, "'wrap'",
    ),
    "reflected channels": (
        {"body": 'y = Pad<mode="reflect">(x, p)', "weights": {"p": whole(0, 1, 1, 1, 0, 0, 1, 1)}},
        "'reflect' of the dimensions [1, 2, 3] of 4",
    ),
    "a padded batch": ({"body": "y = Pad(x, p)", "weights": {"p": whole(1, 0, 0, 0, 0, 0, 0, 0)}}, "of the batch"),
    "a huge pad": ({"body": "y = Pad(x, p)", "weights": {"p": whole(0, 0, 0, 0, 0, 0, 0, 10**6)}}, "65535"),
    "a batch backwards": (
        {"body": "y = Slice(x, s, e, a, s)", "weights": {"s": whole(-1), "e": whole(-9), "a": whole(0)}},
        "a slice of the batch",
    ),
    "a step of 0": (
        {"body": "y = Slice(x, s, e, e, s)", "weights": {"s": whole(0), "e": whole(1)}}, "a step of 0",
    ),
    "nothing": (
        {"body": "y = Slice(x, s, e, a)", "weights": {"s": whole(3), "e": whole(3), "a": whole(1)}}, "nothing is left",
    ),
    "computed indices": (
        {"body": "a = Cast<to=7>(x)  y = Gather<axis=1>(x, a)", "outputs": "float[n,a,b,c,d,e,f] y"}, "not constant",
    ),
    "indices outside": ({"body": "y = Gather<axis=1>(x, i)", "weights": {"i": whole(4)}}, "outside a dimension of 4"),
    "a choice of images": ({"body": "y = Gather<axis=0>(x, i)", "weights": {"i": whole(0)}}, "among the batch"),
    "indices for each place": (
        {"body": "y = GatherElements<axis=1>(x, i)", "weights": {"i": np.zeros((1, 4, 6, 6), np.int64)}},
        "operator GatherElements at node 'n0'",
    ),
    "indices of several dimensions": (
        {"body": "y = GatherND(x, i)", "weights": {"i": np.zeros((1, 1), np.int64)}}, "operator GatherND at node 'n0'",
    ),
    "an expansion in front": (
        {"body": "y = Expand(x, s)", "weights": {"s": whole(2, 1, 4, 6, 6)}, "outputs": "float[a,b,c,d,e] y"},
        "puts dimensions in front of the batch, in expanding [batch, 4, 6, 6] to [2, 1, 4, 6, 6]; right is at most 4",
    ),
    "an expansion of the batch": (
        {"body": "y = Expand(x, s)", "weights": {"s": whole(3, 4, 6, 6)}}, "expands the batch to 3; right is 1",
    ),
    "an expansion that does not fit": (
        {"body": "y = Expand(x, s)", "weights": {"s": whole(1, 4, 12, 6)}}, "does not expand to 12",
    ),
    "a repeated batch": ({"body": "y = Tile(x, r)", "weights": {"r": whole(2, 1, 1, 1)}}, "repeats the batch 2 times"),
    "a batch in another place": (
        {"body": "a = Transpose<perm=[1,0,2,3]>(x)  y = MaxPool<kernel_shape=[1, 1]>(a)"},
        "whose batch a Transpose has moved",
    ),
    "an output whose batch moved": (
        {"body": "y = Transpose<perm=[1,0,2,3]>(x)"}, "is not dimension 0 of the output 'y'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_by_name(name: str, tmp_path: Path) -> None:
    case, message = REFUSED[name]
    with pytest.raises(ModelRefused) as caught:
        read_case(case, tmp_path)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("name", "opset", "message"),
    [
        ("resize linear", 10, "Resize of mode linear"),
        ("resize nearest exactly", 9, "Resize of mode nearest"),
        ("slice backwards", 9, "Slice with a step"),
    ],
)
def test_what_an_old_opset_cannot_hold(name: str, opset: int, message: str, tmp_path: Path) -> None:
    network = read_case(case_of(name), tmp_path)
    with pytest.raises(RecipeInvalid, match=f"opset {opset} cannot hold {message}"):
        write_onnx(network, tmp_path / "never.onnx", opset=opset)
