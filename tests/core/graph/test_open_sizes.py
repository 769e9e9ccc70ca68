"""Models that leave height and width open: no size of an example may end up in what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import OperatorUnknown
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.export import check_parity, run_onnx, write_onnx
from core.graph.groups import channel_groups
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
    body = "a = Transpose<perm=[0,2,1,3]>(x)  b = Reshape(a, s)  y = Relu(b)"
    made = model(body, weights={"s": np.array([0, -1, 1, 0])}, inputs=OPEN["inputs"], outputs="float[n,a,b,c] y")
    with pytest.raises(OperatorUnknown, match="several sizes that follow dynamic dimensions"):
        read_onnx(saved(made, tmp_path))


@pytest.mark.parametrize("size", [8, 28, 96, 384])
def test_a_head_that_fits_one_size_tells_it(size: int, tmp_path: Path) -> None:
    body = "a = Conv<strides=[4,4]>(x, w)  b = Flatten(a)  y = Gemm(b, v)"
    made = model(body, weights={"w": (2, 3, 4, 4), "v": (2 * (size // 4) ** 2, 4)}, **OPEN)
    assert read_onnx(saved(made, tmp_path)).input_shapes == ((3, size, size),)


def test_an_error_that_no_size_mends_is_not_tried_at_all_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = 'a = Relu(x)  y = Pad<mode="reflect">(a, p)'
    made = model(body, weights={"p": np.zeros(8, np.int64)}, inputs=OPEN["inputs"], outputs="float[n,a,b,c] y")
    tried = []

    class Counted(Reading):
        def __init__(self, *args: Any) -> None:
            tried.append(args)
            super().__init__(*args)

    monkeypatch.setattr("core.graph.importers.Reading", Counted)
    with pytest.raises(OperatorUnknown, match="reflect"):
        read_onnx(saved(made, tmp_path))
    assert len(tried) == 2
