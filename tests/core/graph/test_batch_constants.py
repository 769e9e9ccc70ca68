"""Constants as long as an open batch: read exactly, cut with the channels beside them, written for every batch."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import OperatorUnknown
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.export import check_parity, run_onnx, write_onnx
from core.graph.groups import channel_groups
from core.graph.importers import read_onnx
from tests.core.graph.onnx_texts import model, saved
from tests.core.graph.topologies import random_removal


def option_a(self: Any, x: Tensor) -> Tensor:
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))


def option_a_by_zeros(self: Any, x: Tensor) -> Tensor:
    x = x[:, :, ::2, ::2]
    return torch.cat([x, torch.zeros(x.size(0), 8, x.size(2), x.size(3))], 1)


def option_a_by_zeros_on_both_sides(self: Any, x: Tensor) -> Tensor:
    x = x[:, :, ::2, ::2]
    zeros = torch.zeros_like(x)[:, :4]
    return torch.cat([zeros, x, zeros], 1)


def several_beside_ones(self: Any, x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x)[:, :2], x, torch.ones_like(x)[:, :4], x[:, :1], torch.zeros_like(x)[:, :1]], 1)


def class_token(self: Any, x: Tensor) -> Tensor:
    x = x.flatten(2).transpose(1, 2)
    return torch.cat([self.token.expand(x.shape[0], -1, -1), x, self.token.repeat(x.shape[0], 1, 1)], 1)


def coordinates(self: Any, x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    line = torch.arange(w).float().view(1, 1, 1, w).expand(b, 1, h, w)
    return torch.cat([x, line.expand(b, 8, h, w)], 1)


MAKERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "option A": option_a,
    "option A by zeros": option_a_by_zeros,
    "option A by zeros on both sides": option_a_by_zeros_on_both_sides,
    "zeros like": lambda self, x: torch.cat([x, torch.zeros_like(x)], 1),
    "new zeros": lambda self, x: torch.cat([x, x.new_zeros(x.shape[0], 8, x.shape[2], x.shape[3])], 1),
    "ones like, in front": lambda self, x: torch.cat([torch.ones_like(x), x], 1),
    "several beside ones": several_beside_ones,
    "ones added": lambda self, x: torch.cat([x + torch.ones_like(x), x], 1),
    "full": lambda self, x: torch.cat([x, x * torch.full((x.shape[0], 8, 1, 1), 0.5)], 1),
    "class token": class_token,
    "coordinates": coordinates,
}


class Heads(nn.Module):
    """One output for each maker, each with layers of its own."""

    token: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.before = nn.ModuleList(nn.Conv2d(3, 8, 3, padding=1) for _ in MAKERS)
        self.after = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 6)) if name == "class token" else nn.Conv2d(16, 6, 3)
            for name in MAKERS
        )
        self.head = nn.ModuleList(nn.Linear(6, 4) for _ in MAKERS)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        results = []
        for maker, before, after, head in zip(MAKERS.values(), self.before, self.after, self.head, strict=True):
            made = torch.relu(after(maker(self, torch.relu(before(x)))))
            results.append(head(made.mean((2, 3)) if made.dim() == 4 else made.mean(1)))
        return tuple(results)


def exported(module: nn.Module, path: Path, *, dynamo: bool, batch: int | None) -> Path:
    """As torch's newer or older exporter writes it: with an open batch, or (batch) a fixed one."""
    images = torch.randn(batch or 2, 3, 8, 8)
    names = {"input_names": ["image"], "output_names": [f"y{index}" for index in range(len(MAKERS))]}
    options: dict[str, Any] = {"dynamo": dynamo, **names}
    if batch is None and dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch", min=1, max=512)},)
    elif batch is None:
        options["dynamic_axes"] = {name: {0: "batch"} for name in (*names["input_names"], *names["output_names"])}
    if dynamo:
        options |= {"verbose": False, "external_data": False}
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (images,), path, **options)
    return path


@pytest.mark.parametrize(("dynamo", "batch"), [(True, None), (False, None), (False, 1), (False, 3)])
def test_what_torch_exports(dynamo: bool, batch: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Heads()
    path = exported(module, tmp_path / "model.onnx", dynamo=dynamo, batch=batch)
    network = read_onnx(path)
    groups = channel_groups(network).groups
    free = {part.layer for group in groups if group.cuttable for part in group.producers}
    assert {f"before.{index}" for index in range(len(MAKERS))} <= free, "each of them can be cut"
    removal = random_removal(network, 0.4, 0)
    smaller, _ = cut(network, removal)
    assert check_cut(network, removal, smaller, network.example_input(3)).passed
    for name, item in (("whole.onnx", network), ("cut.onnx", smaller)):
        write_onnx(item, tmp_path / name)
        told = onnx.load(tmp_path / name).graph
        declared = told.input[0].type.tensor_type.shape.dim[0]
        assert (declared.dim_param or declared.dim_value) == (batch or "batch")
        again = read_onnx(tmp_path / name)
        for count in (1, 2, 5):
            images = torch.randn(count, 3, 8, 8)
            assert check_parity(item, tmp_path / name, images).passed
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(again(images), item(images), strict=True))
    images = torch.randn(7, 3, 8, 8)
    with torch.no_grad():
        theirs = module(images)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(network(images), theirs, strict=True))
    if batch is None:
        found = run_onnx(path, None, images)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(network(images), found, strict=True))


TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "moved about": (
        """c = ConstantOfShape<value = float[1] {0.5}>(s)  d = Slice(c, zero, two, one)
        e = Transpose<perm=[1,0,2,3]>(d)
        f = Transpose<perm=[1,0,2,3]>(e)  g, h = Split<axis=1, num_outputs=2>(f)  i = Concat<axis=1>(g, h, a, c)
        y = Conv(i, v)""",
        {"v": (5, 18, 1, 1)},
    ),
    "reshaped": (
        """c = Expand(half, s)  r = Concat<axis=0>(n, minus, six)  d = Reshape(c, r)  t = Shape(d)  e = Relu(d)
        g = Reshape(e, s)  h = Mul(g, half)  i = Sub(a, h)  y = Conv(i, v)""",
        {"v": (5, 8, 1, 1)},
    ),
    "several numbers": (
        """q = Concat<axis=0>(n, one, one, one)  c = Tile(row, q)  d = Unsqueeze(c, one)  e = Squeeze(d, one)
        f = Mul(a, e)  g = Concat<axis=1>(e, f)  h = Concat<axis=1>(e, e, g)  y = Conv(h, v)""",
        {"row": (1, 8, 6, 6), "v": (5, 32, 1, 1)},
    ),
    "chosen by a mask": (
        """q = Concat<axis=0>(n, one, six, six)  k = ConstantOfShape<value = int64[1] {1}>(q)  l = Equal(k, ones)
        c = Expand(half, s)  f = Where(l, a, c)  y = Conv(f, v)""",
        {"ones": np.eye(6, dtype=np.int64).reshape(1, 1, 6, 6), "v": (5, 8, 1, 1)},
    ),
    "computed with by layers": (
        "c = Expand(row, s)  d = Conv(c, u)  e = Relu(d)  f = Add(a, e)  y = Conv(f, v)",
        {"row": (1, 8, 6, 6), "u": (8, 8, 1, 1), "v": (5, 8, 1, 1)},
    ),
}
NUMBERS = {
    **{name: np.array([value]) for name, value in {"zero": 0, "one": 1, "two": 2, "six": 6, "minus": -1}.items()},
    "half": np.array(0.5, np.float32),
}
HEAD = "a = Conv<pads=[1,1,1,1]>(x, w)  s = Shape(a)  n = Slice(s, zero, one)  "


@pytest.mark.parametrize("name", TEXTS)
def test_what_becomes_of_such_constants(name: str, tmp_path: Path) -> None:
    body, weights = TEXTS[name]
    made = model(HEAD + body, opset=18, weights={"w": (8, 4, 3, 3), **NUMBERS, **weights})
    path = saved(made, tmp_path)
    network = read_onnx(path)
    removal = random_removal(network, 0.4, 0)
    smaller, _ = cut(network, removal)
    assert check_cut(network, removal, smaller, network.example_input(3)).passed
    write_onnx(network, tmp_path / "whole.onnx", opset=9)
    write_onnx(smaller, tmp_path / "cut.onnx")
    for count in (1, 4):
        images = torch.randn(count, 4, 6, 6)
        assert check_parity(network, path, images).passed
        assert check_parity(network, tmp_path / "whole.onnx", images).passed
        assert check_parity(smaller, tmp_path / "cut.onnx", images).passed
        assert torch.allclose(read_onnx(tmp_path / "whole.onnx")(images), network(images), atol=1e-5)


def test_zeros_as_long_as_open_height_and_width(tmp_path: Path) -> None:
    body = HEAD + "c = ConstantOfShape(s)  d = Concat<axis=1>(a, c)  e = Mul(d, half)  y = Conv(e, v)"
    weights = {"w": (8, 4, 3, 3), "v": (5, 16, 1, 1), **NUMBERS}
    made = model(body, weights=weights, inputs="float[batch,4,height,width] x", outputs="float[batch,5,height,width] y")
    path = saved(made, tmp_path)
    network = read_onnx(path)
    smaller, _ = cut(network, random_removal(network, 0.4, 0))
    write_onnx(smaller, tmp_path / "cut.onnx")
    for shape in ((1, 4, 7, 12), (3, 4, 32, 9)):
        assert check_parity(network, path, torch.randn(shape)).passed
        assert check_parity(smaller, tmp_path / "cut.onnx", torch.randn(shape)).passed


WRONG: dict[str, tuple[str, str, str]] = {
    "as many channels as images": (
        "q = Concat<axis=0>(one, n, one, one)  c = ConstantOfShape(q)  b = Concat<axis=2>(a, c)  y = Conv(b, v)",
        "reads 'c', a constant of the sizes [1, batch, 1, 1]", "the batch in front",
    ),
    "joined along the batch": (
        "c = ConstantOfShape(s)  b = Concat<axis=0>(a, c)  y = Conv(b, v)", "joins its inputs along the batch",
        "an axis of 1 or more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_right_of_them_is_told_with_what_would_be(name: str, tmp_path: Path) -> None:
    body, message, expected = WRONG[name]
    made = model(HEAD + body, weights={"w": (8, 4, 3, 3), "v": (5, 8, 1, 1), **NUMBERS})
    with pytest.raises(OperatorUnknown, match=r"operator Concat at node 'n[0-9]+' ") as caught:
        read_onnx(saved(made, tmp_path))
    (fault,) = caught.value.faults
    assert message in caught.value.message
    assert message in fault.message
    assert expected in (fault.expected or "")
    assert fault.pointer.startswith("/graph/node/n")
