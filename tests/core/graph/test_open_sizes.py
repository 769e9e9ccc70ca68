"""Models that leave height and width open: no size of an example may end up in what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from core.errors import OperatorUnknown
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.export import check_parity, run_onnx, write_onnx
from core.graph.groups import channel_groups
from core.graph.ids import operator_name
from core.graph.importers import read_onnx
from core.graph.network import Network
from core.graph.onnx_reading import Reading
from tests.core.graph.onnx_texts import model, saved

OPEN: dict[str, Any] = {"inputs": "float[n,3,height,width] x", "outputs": "float[n,4] y"}
RESHAPES: dict[str, tuple[str, list[int], tuple[int, ...]]] = {
    "places in a row": ("c = ReduceMean<axes=[2], keepdims=0>(b)", [0, 8, -1], (8, 4)),
    "places in a row, two more": ("c = ReduceMean<axes=[2,3,4], keepdims=0>(b)", [0, 0, 1, -1, 1], (8, 4)),
    "channels parted": ("d = ReduceMean<axes=[3], keepdims=0>(b)  c = Flatten(d)", [0, 2, 4, -1], (8, 4)),
}


def opened(reshape: list[int], rest: str, head: tuple[int, ...]) -> Any:
    body = f"a = Conv<pads=[1,1,1,1]>(x, w)  b = Reshape(a, s)  {rest}  y = Gemm(c, v)"
    return model(body, weights={"w": (8, 3, 3, 3), "s": np.array(reshape), "v": head}, **OPEN)


@pytest.mark.parametrize("name", RESHAPES)
def test_a_reshape_of_open_sizes_goes_out_as_it_came_in(name: str, tmp_path: Path) -> None:
    rest, reshape, head = RESHAPES[name]
    path = saved(opened(reshape, rest, head), tmp_path)
    network = read_onnx(path)
    removal = {group.name: [0] for group in channel_groups(network).groups if group.cuttable}
    smaller, _ = cut(network, removal)
    assert check_cut(network, removal, smaller, network.example_input()).passed
    write_onnx(network, tmp_path / "whole.onnx")
    write_onnx(smaller, tmp_path / "cut.onnx")
    again = read_onnx(tmp_path / "whole.onnx")
    for shape in ((3, 32, 32), (3, 20, 14)):
        other = Network(network.module, network.inputs, network.outputs, network.origin, (shape,))
        inputs = other.example_input(2)
        assert check_parity(other, path, inputs).passed
        assert check_parity(other, tmp_path / "whole.onnx", inputs).passed
        assert torch.allclose(again(inputs), other(inputs))
        (found,) = run_onnx(tmp_path / "cut.onnx", None, inputs)
        assert torch.allclose(found, smaller(inputs), atol=1e-4)


def test_lines_of_places_with_their_channels_last(tmp_path: Path) -> None:
    body = """
        a = Conv(x, w)  b = Transpose<perm=[0,2,3,1]>(a)  c = Reshape(b, s)  d = MatMul(c, v)
        y = ReduceMean<axes=[1], keepdims=0>(d)
    """
    weights = {"w": (8, 3, 3, 3), "s": np.array([0, -1, 8]), "v": (8, 4)}
    path = saved(model(body, weights=weights, **OPEN), tmp_path)
    network = read_onnx(path)
    smaller, _ = cut(network, {"n0": [1, 5]})
    write_onnx(smaller, tmp_path / "cut.onnx")
    inputs = torch.randn(2, 3, 17, 12)
    assert check_parity(network, path, inputs).passed
    assert check_parity(smaller, tmp_path / "cut.onnx", inputs).passed


def test_a_reshape_to_two_open_sizes_is_refused(tmp_path: Path) -> None:
    body = """
        a = Conv(x, w)  s = Shape(a)  n, c, h, v = Split<axis=0, num_outputs=4>(s)  g = Mul(h, two)  u = Mul(v, two)
        r = Constant<value_ints=[0, 8, -1]>()  d = Reshape(a, r)  t = Concat<axis=0>(n, two, g, u)  y = Reshape(d, t)
    """
    weights = {"w": (8, 3, 1, 1), "two": np.array([2])}
    made = model(body, weights=weights, inputs=OPEN["inputs"], outputs="float[n,a,b,c] y", opset=18)
    with pytest.raises(OperatorUnknown, match="several sizes that follow dynamic dimensions"):
        read_onnx(saved(made, tmp_path))


HEAD = "a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)  s = Shape(a)  n, c, h, k = Split<axis=0, num_outputs=4>(s)  "
NEAREST = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
ARITHMETIC: dict[str, tuple[str, set[str]]] = {
    "resized to the input's size": (
        'z = Shape<start=2>(x)  t = Concat<axis=0>(n, c, z)  b = Resize<mode="linear">(a, , , t)',
        {"resize_like"},
    ),
    "resized to twice its size": (
        f"i = Mul(h, two)  j = Mul(two, k)  t = Concat<axis=0>(n, c, i, j)  b = Resize<{NEAREST}>(a, , , t)",
        {"aten.upsample_nearest2d.vec"},
    ),
    "resized to twice its size by way of floats": (
        """f = Cast<to=1>(s)  g = Slice(f, two, four)  i = Mul(g, half)  j = Mul(i, more)  l = Floor(j)
        m = Cast<to=7>(l)
        t = Concat<axis=0>(n, c, m)  b = Resize<mode="linear", coordinate_transformation_mode="align_corners">(a, , , t)
        """,
        {"aten.upsample_bilinear2d.vec"},
    ),
    "resized to twice another's size": (
        f"""d = MaxPool<kernel_shape=[3,3], strides=[2,2]>(a)  i = Mul(h, two)  j = Mul(k, two)
        t = Concat<axis=0>(n, c, i, j)  b = Resize<{NEAREST}>(d, , , t)""",
        {"aten.max_pool2d.default", "resize_like"},
    ),
    "channels shuffled": (
        """g = Div(c, two)  t = Concat<axis=0>(n, two, g, h, k)  d = Reshape(a, t)
        e = Transpose<perm=[0,2,1,3,4]>(d)  b = Reshape(e, s)""",
        {"aten.unflatten.int", "aten.permute.default", "aten.flatten.using_ints"},
    ),
    "expanded to another's size": ("g = GlobalAveragePool(a)  d = Expand(g, s)  b = Mul(a, d)", {"expand_like"}),
    "in a row and back": (
        """m = Mul(h, k)  t = Concat<axis=0>(n, c, m)  d = Reshape(a, t)  e = Transpose<perm=[0,2,1]>(d)
        f = Relu(e)  g = Transpose<perm=[0,2,1]>(f)  b = Reshape(g, s)""",
        {"aten.flatten.using_ints", "unflatten_like", "aten.permute.default", "aten.relu.default"},
    ),
    "depth to space and back": (
        "d = DepthToSpace<blocksize=2>(a)  b = SpaceToDepth<blocksize=2>(d)",
        {"aten.index_select.default", "aten.pixel_shuffle.default", "aten.pixel_unshuffle.default"},
    ),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_with_open_sizes(name: str, tmp_path: Path) -> None:
    """No size of the example is in the network: it computes what ONNX Runtime does for others, and so does its cut."""
    middle, calls = ARITHMETIC[name]
    weights = {"w": (16, 3, 3, 3), "v": (5, 16, 3, 3), "two": np.array([2]), "four": np.array([4])}
    weights |= {"half": np.array(0.5, np.float32), "more": np.array([4], np.float32)}
    made = model(HEAD + middle + "  y = Conv(b, v)", opset=18, weights=weights, inputs=OPEN["inputs"],
                 outputs="float[n,a,b,c] y")  # fmt: skip
    path = saved(made, tmp_path)
    network = read_onnx(path)
    names = {operator_name(network.module, node) for node in network.module.graph.nodes if node.op == "call_function"}
    assert {call.removeprefix("aten.").split(".")[0] for call in calls} <= names
    removal = {group.name: [0] for group in channel_groups(network).groups if group.cuttable}
    smaller, _ = cut(network, removal)
    assert check_cut(network, removal, smaller, network.example_input()).passed
    write_onnx(network, tmp_path / "whole.onnx")
    write_onnx(smaller, tmp_path / "cut.onnx")
    again = read_onnx(tmp_path / "whole.onnx")
    for shape in ((3, 32, 32), (3, 20, 14), (3, 17, 31)):
        whole, less, same = (
            Network(item.clone().module, item.inputs, item.outputs, item.origin, (shape,))
            for item in (network, smaller, again)
        )
        inputs = whole.example_input(2)
        assert check_parity(whole, path, inputs).passed
        assert check_parity(whole, tmp_path / "whole.onnx", inputs).passed
        assert check_parity(less, tmp_path / "cut.onnx", inputs).passed
        assert torch.allclose(same(inputs), whole(inputs), atol=1e-5)


@pytest.mark.parametrize(("rounding", "taken"), [("floor", True), ("ceil", False)])
def test_nearest_from_open_sizes_to_fixed_ones(rounding: str, taken: bool, tmp_path: Path) -> None:
    """Which places are chosen follows from the input's size: only where torch does the same for all of them."""
    rule = f'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="{rounding}"'
    body = HEAD + f"t = Concat<axis=0>(n, c, five, five)  y = Resize<{rule}>(a, , , t)"
    weights = {"w": (16, 3, 3, 3), "five": np.array([5])}
    made = model(body, opset=18, weights=weights, inputs=OPEN["inputs"], outputs="float[n,a,b,c] y")
    path = saved(made, tmp_path)
    if not taken:
        with pytest.raises(OperatorUnknown, match=r"'nearest' \(asymmetric, ceil\) of dynamic"):
            read_onnx(path)
        return
    network = read_onnx(path)
    inputs = torch.randn(2, 3, 22, 34)
    write_onnx(network, tmp_path / "again.onnx")
    assert check_parity(network, path, inputs).passed
    assert check_parity(network, tmp_path / "again.onnx", inputs).passed


@pytest.mark.parametrize(
    "middle",
    [
        "i = Div(h, two)  t = Concat<axis=0>(n, c, i, k)",
        "i = Mod(h, two)  t = Concat<axis=0>(n, c, i, k)",
        "i = Min(h, four)  t = Concat<axis=0>(n, c, i, k)",
        "i = Greater(h, four)  j = Where(i, h, four)  t = Concat<axis=0>(n, c, j, k)",
    ],
)
def test_what_is_not_exact_for_all_images_is_refused(middle: str, tmp_path: Path) -> None:
    weights = {"w": (16, 3, 3, 3), "two": np.array([2]), "four": np.array([4])}
    body = HEAD + middle + '  y = Resize<mode="linear">(a, , , t)'
    made = model(body, opset=18, weights=weights, inputs=OPEN["inputs"], outputs="float[n,a,b,c] y")
    with pytest.raises(OperatorUnknown, match="open sizes of an input, computed with in a way that is not exact"):
        read_onnx(saved(made, tmp_path))


@pytest.mark.parametrize("size", [8, 28, 96, 384])
def test_a_head_that_fits_one_size_tells_it(size: int, tmp_path: Path) -> None:
    body = "a = Conv<strides=[4,4]>(x, w)  b = Flatten(a)  y = Gemm(b, v)"
    made = model(body, weights={"w": (2, 3, 4, 4), "v": (2 * (size // 4) ** 2, 4)}, **OPEN)
    assert read_onnx(saved(made, tmp_path)).input_shapes == ((3, size, size),)


def test_a_reshape_that_fits_one_size_tells_it_and_is_read_again(tmp_path: Path) -> None:
    body = (
        "a = Conv(x, w)  b = Reshape(a, s)  c = Add(b, k)  d = ReduceMean<axes=[2,3,4], keepdims=0>(c)  y = Gemm(d, v)"
    )
    weights = {"w": (6, 3, 1, 1), "s": np.array([0, 3, 2, 28, 28]), "k": (1, 3, 1, 28, 28), "v": (3, 4)}
    network = read_onnx(saved(model(body, weights=weights, **OPEN), tmp_path))
    assert network.input_shapes == ((3, 28, 28),)
    write_onnx(network, tmp_path / "again.onnx")
    inputs = network.example_input(2)
    assert check_parity(network, tmp_path / "model.onnx", inputs).passed
    assert torch.equal(read_onnx(tmp_path / "again.onnx")(inputs), network(inputs))


def test_an_error_that_no_size_mends_is_not_tried_at_all_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = 'a = Relu(x)  y = Pad<mode="wrap">(a, p)'
    weights = {"p": np.ones(8, np.int64) * np.array([0, 0, 1, 1] * 2)}
    made = model(body, weights=weights, inputs=OPEN["inputs"], outputs="float[n,a,b,c] y", opset=19)
    tried = []

    class Counted(Reading):
        def __init__(self, *args: Any) -> None:
            tried.append(args)
            super().__init__(*args)

    monkeypatch.setattr("core.graph.importers.Reading", Counted)
    with pytest.raises(OperatorUnknown, match="wrap"):
        read_onnx(saved(made, tmp_path))
    assert len(tried) == 2


def test_a_size_of_minus_one_is_an_open_one(tmp_path: Path) -> None:
    """As Paddle writes it, for the batch too; the file that goes out says the same."""
    made = model(
        "a = Conv<pads=[1,1,1,1]>(x, w)  y = ReduceMean<axes=[2,3], keepdims=0>(a)", weights={"w": (4, 3, 3, 3)}, **OPEN
    )
    for dim in (
        *made.graph.input[0].type.tensor_type.shape.dim[2:],
        made.graph.output[0].type.tensor_type.shape.dim[0],
    ):
        dim.dim_value = -1
    network = read_onnx(saved(made, tmp_path))
    assert network.inputs[0].shape == ("n", 3, "dim_2", "dim_3")
    path = tmp_path / "out.onnx"
    write_onnx(network, path)
    assert [dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim] == [0, 3, -1, -1]
    images = torch.randn(3, 3, 8, 12)
    assert torch.allclose(run_onnx(path, None, images)[0], network(images), atol=1e-6)


def test_a_second_example_past_the_cap_says_what_is_open_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is run at it; were it given up, the export would hold the sizes of the first."""
    middle, _ = ARITHMETIC["channels shuffled"]
    weights = {"w": (16, 3, 3, 3), "v": (5, 16, 3, 3), "two": np.array([2])}
    monkeypatch.setattr("core.graph.shapes.MAX_ACTIVATION_ELEMENTS", 16 * 16 * 16 + 1)
    made = model(HEAD + middle + "  y = Conv(b, v)", opset=18, weights=weights, inputs=OPEN["inputs"],
                 outputs="float[n,a,b,c] y")  # fmt: skip
    network = read_onnx(saved(made, tmp_path))
    write_onnx(network, tmp_path / "again.onnx")
    monkeypatch.undo()
    assert check_parity(network, tmp_path / "again.onnx", torch.randn(2, 3, 20, 44)).passed
