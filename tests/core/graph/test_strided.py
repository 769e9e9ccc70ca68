"""torch's `as_strided` in ONNX: a batch gathered in order is a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from core.errors import OperatorUnknown
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.export import check_parity, run_onnx, write_onnx
from core.graph.groups import channel_groups
from core.graph.importers import read_onnx
from tests.core.graph.onnx_texts import model, saved

MEAN = "a = Conv(x, w)  b = ReduceMean<keepdims=1>(a, space)  flat = Reshape(b, all)"
BEHIND = "picked = Gather<axis=0>(flat, places)  c = Flatten(picked)  y = Gemm(c, v)"
DYNAMIC = """
    sizes = Shape<start=0, end=1>(x)  count = Squeeze(sizes)  each = Range(zero, count, one)  first = Mul(each, eight)
    rows = Unsqueeze(first, axes)  places = Add(rows, channels)
"""


def weights(channels: np.ndarray) -> dict[str, object]:
    return {
        "w": (8, 3, 3, 3), "v": (8, 4), "space": np.array([2, 3]), "all": np.array([-1]), "zero": np.array(0),
        "one": np.array(1), "eight": np.array(8), "axes": np.array([1, 2, 3]), "channels": channels,
    }  # fmt: skip


def made(batch: str, channels: np.ndarray, places: str = DYNAMIC) -> onnx.ModelProto:
    given = weights(channels)
    return model(
        f"{MEAN} {places} {BEHIND}", opset=20, inputs=f"float[{batch},3,8,8] x", outputs=f"float[{batch},4] y",
        weights=given,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("batch", ["n", "1", "2"])
def test_a_batch_in_order_is_reshaped_and_cut_exactly(batch: str, tmp_path: Path) -> None:
    source = saved(made(batch, np.arange(8).reshape(1, 8, 1, 1)), tmp_path)
    network = read_onnx(source)
    images = network.example_input(4)
    expected = run_onnx(source, None if batch == "n" else int(batch), images)[0]
    assert torch.allclose(network(images), expected, atol=1e-5)
    groups = channel_groups(network)
    removal = {group.name: [1, 5] for group in groups.groups if group.cuttable}
    smaller, _ = cut(network, removal, groups)
    check_cut(network, removal, smaller, images)
    write_onnx(smaller, tmp_path / "cut.onnx")
    check_parity(smaller, tmp_path / "cut.onnx", images)


def test_places_that_are_constants_of_a_static_batch_are_reshaped(tmp_path: Path) -> None:
    constant = made("1", np.arange(8).reshape(1, 8, 1, 1), "places = Identity(channels)")
    for node in constant.graph.node:
        node.input[:] = ["channels" if name == "places" else name for name in node.input]
    kept = [node for node in constant.graph.node if node.op_type != "Identity"]
    del constant.graph.node[:]
    constant.graph.node.extend(kept)
    assert read_onnx(saved(constant, tmp_path))(torch.zeros(3, 3, 8, 8)).shape == (3, 4)


@pytest.mark.parametrize("channels", [np.arange(8)[::-1], np.array([0, 1, 2, 3, 4, 5, 6, 6]), np.arange(1, 9)])
def test_other_places_are_refused(channels: np.ndarray, tmp_path: Path) -> None:
    source = saved(made("n", channels.reshape(1, 8, 1, 1)), tmp_path)
    with pytest.raises(OperatorUnknown, match=r"operator Range at node '\w+' has open sizes of an input"):
        read_onnx(source)
