"""Attention blocks as torch exports them, the batch behind the places or heads folded into it: read, frozen, cut."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import ModelRefused
from core.graph.export import check_parity
from core.graph.groups import channel_groups
from core.graph.importers import read_onnx
from core.graph.network import Network
from tests.core.graph.round_trips import cut_and_check, read_case, round_trip

LINES: dict[str, Any] = {"inputs": "float[batch,5,8] x", "outputs": "float[batch,n,m] y"}


class Attending(nn.Module):
    """Convolutions around attention over the places, whose batch is in front or behind the places."""

    def __init__(self, block: type[nn.Module], batch_first: bool) -> None:
        super().__init__()
        self.stem, self.tail, self.head = nn.Conv2d(3, 12, 3, stride=2), nn.Conv2d(8, 10, 1), nn.Conv2d(10, 5, 1)
        self.narrow, self.batch_first = nn.Conv2d(12, 8, 1), batch_first
        options: Any = {} if block is nn.MultiheadAttention else {"dim_feedforward": 12}
        self.block = block(8, 2, batch_first=batch_first, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(F.relu(self.stem(x)))
        tokens = x.flatten(2).permute((0, 2, 1) if self.batch_first else (2, 0, 1))
        given = (tokens,) if isinstance(self.block, nn.TransformerEncoderLayer) else (tokens, tokens, tokens)
        made = self.block(*given)
        made = made[0] if isinstance(made, tuple) else made
        made = made.permute((0, 2, 1) if self.batch_first else (1, 2, 0)).reshape(x.shape)
        return self.head(F.relu(self.tail(x + made))).mean((2, 3))


def exported(module: nn.Module, path: Path, batch: int | None, dynamo: bool) -> Path:
    """As ONNX, for a `batch` of one size or (None) of any."""
    x = torch.randn(batch or 2, 3, 9, 9)
    with warnings.catch_warnings():  # torch's own, about torch's own
        warnings.simplefilter("ignore")
        if dynamo:
            dynamic: Any = None if batch else ({0: torch.export.Dim("batch", min=1, max=64)},)
            torch.onnx.export(
                module, (x,), path, dynamo=True, dynamic_shapes=dynamic, external_data=False, verbose=False
            )
        else:
            axes = None if batch else {"x": {0: "batch"}}
            torch.onnx.export(module, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return path


@pytest.mark.parametrize(
    ("block", "batch_first", "batch", "dynamo"),
    [
        (nn.MultiheadAttention, True, None, False),
        (nn.MultiheadAttention, True, 1, False),
        (nn.MultiheadAttention, False, 3, False),
        (nn.MultiheadAttention, True, None, True),
        (nn.TransformerEncoderLayer, False, None, False),
    ],
)
def test_exported_attention_comes_in_is_frozen_and_the_rest_is_cut(
    block: type[nn.Module], batch_first: bool, batch: int | None, dynamo: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Attending(block, batch_first).eval()
    path = exported(module, tmp_path / "model.onnx", batch, dynamo)
    network = read_onnx(path)
    for size in (1, 2, 3, 5):
        x = torch.randn(size, 3, 9, 9)
        with torch.no_grad():
            assert torch.allclose(network(x), module(x), atol=1e-5), f"a batch of {size}"
    assert check_parity(network, path, torch.randn(6, 3, 9, 9)).passed
    _check_frozen(network)
    smaller = cut_and_check(network, tmp_path)
    assert smaller.layers()["stem"].get_parameter("weight").shape[0] < 12
    assert smaller.layers()["tail"].get_parameter("weight").shape[0] < 10


def _check_frozen(network: Network) -> None:
    """Queries and keys, by operator, layer and reason; the layers around are free."""
    found = channel_groups(network)
    free = {producer.layer for group in found.groups if group.cuttable for producer in group.producers}
    assert {"stem", "tail"} <= free
    reasons = [item for item in found.frozen if item.operator == "matmul"]
    assert any("needs all channels that it sums over" in item.reason for item in reasons)
    (projection,) = {name for item in reasons for name in item.layers}
    assert network.layers()[projection].get_parameter("weight").shape == (24, 8), "queries, keys and values"


HEADS = "p = MatMul(t, w)  h = Reshape(p, parted)  q = Transpose<perm=[0,2,1,3]>(h)  f = Reshape(q, folded)  "
CASES: dict[str, dict[str, Any]] = {
    "places in front": {
        "body": "t = Transpose<perm=[1,0,2]>(x)  a = MatMul(t, w)  c = Add(a, b)  d = Mul(c, place)  e = Relu(d)  "
        "y = Transpose<perm=[1,0,2]>(e)",
        "weights": {"w": (8, 6), "b": (6,), "place": (5, 1, 6)}, **LINES,
    },
    "rows of all examples": {
        "body": "r = Reshape(x, rows)  a = Gemm(r, w, b)  y = Reshape(a, back)",
        "weights": {"rows": np.array([-1, 8]), "w": (8, 6), "b": (6,), "back": np.array([-1, 5, 6])}, **LINES,
    },
    "rows that the places come first in": {
        "body": "t = Transpose<perm=[1,0,2]>(x)  r = Reshape(t, rows)  a = Gemm(r, w)  s = Reshape(a, back)  "
        "y = Transpose<perm=[1,0,2]>(s)",
        "weights": {"rows": np.array([-1, 8]), "w": (8, 6), "back": np.array([5, -1, 6])}, **LINES,
    },
    "heads folded into the batch": {
        "body": HEADS.replace("t,", "x,") + "k = Transpose<perm=[0,2,1]>(f)  s = MatMul(f, k)  "
        "n = Softmax<axis=-1>(s)  o = MatMul(n, f)  u = Reshape(o, apart)  v = Transpose<perm=[0,2,1,3]>(u)  "
        "y = Reshape(v, back)",
        "weights": {
            "w": (8, 8), "parted": np.array([0, 5, 2, 4]), "folded": np.array([-1, 5, 4]),
            "apart": np.array([-1, 2, 5, 4]), "back": np.array([0, 5, 8]),
        }, "from": 9, **LINES,
    },
    "a dimension taken from what is folded into the batch on both sides": {
        "body": "t = Transpose<perm=[1,0,2,3,4]>(x)  r = Reshape(t, folded)  q = Squeeze(r, axis)  "
        "s = Softmax<axis=-1>(q)  u = Reshape(s, apart)  y = Transpose<perm=[1,0,2,3]>(u)",
        "weights": {"folded": np.array([-1, 1, 4, 1]), "axis": np.array([-3]), "apart": np.array([2, -1, 3, 4])},
        "inputs": "float[batch,2,3,4,1] x", "outputs": "float[batch,n,m,o] y",
    },
    "a mean over places in front": {
        "body": "t = Transpose<perm=[1,0,2]>(x)  y = ReduceMean<axes=[0], keepdims=0>(t)", **LINES,
        "outputs": "float[batch,n] y",
    },
    "a class token in front": {
        "body": "t = Transpose<perm=[1,0,2]>(x)  m = ReduceMean<axes=[0]>(t)  c = Concat<axis=0>(m, t)  "
        "s = Softmax<axis=0>(c)  y = Gather<axis=0>(s, zero)",
        "weights": {"zero": np.array(0)}, **LINES, "outputs": "float[batch,n] y",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_read_written_read(name: str, tmp_path: Path) -> None:
    round_trip(CASES[name], tmp_path)


TURNED = "t = Transpose<perm=[1,0,2]>(x)  "
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a softmax over the batch": (
        {"body": TURNED + "s = Softmax<axis=1>(t)  y = Transpose<perm=[1,0,2]>(s)", **LINES}, "one is the batch's",
    ),
    "a mean over the batch": (
        {"body": TURNED + "m = ReduceMean<axes=[1]>(t)  y = Transpose<perm=[1,0,2]>(m)", **LINES}, "one is the batch's",
    ),
    "a norm over the batch": (
        {"body": TURNED + "s = LayerNormalization<axis=1>(t, w)  y = Transpose<perm=[1,0,2]>(s)",
         "weights": {"w": (8,)},
         **LINES}, "one is the batch's",
    ),
    "a product along the batch": (
        {"body": TURNED + "u = Transpose<perm=[0,2,1]>(t)  v = Relu(u)  m = MatMul(u, v)  y = Identity(m)",
         **LINES}, "a product along the batch",
    ),
    "a constant for each example": (
        {"body": TURNED + "a = Add(t, w)  y = Transpose<perm=[1,0,2]>(a)", "weights": {"w": (5, 2, 8)}, **LINES},
        "shape [5, 2, 8] that meets the batch",
    ),
    "half of the batch": (
        {"body": "r = Reshape(x, rows)  y = Reshape(r, back)", **LINES,
         "weights": {"rows": np.array([3, -1]), "back": np.array([-1, 5, 8])}},
        "puts [batch, 5, 8] into [3, -1], which does not keep the batch apart",
    ),
    "a part of what is folded": (
        {"body": "r = Reshape(x, rows)  s = Slice(r, zero, two, zero)  y = Reshape(s, back)", **LINES,
         "weights": {"rows": np.array([-1, 8]), "zero": np.array([0]), "two": np.array([2]),
                     "back": np.array([-1, 5, 8])}}, "a slice of the batch",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_the_batch_is_refused_by_name(name: str, tmp_path: Path) -> None:
    case, message = REFUSED[name]
    with pytest.raises(ModelRefused) as caught:
        read_case(case, tmp_path)
    assert message in caught.value.message
