"""`.pt2` files that leave height and width open: what a size is computed from goes out with the network, exactly."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from core.errors import ModelRefused
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.export import run_onnx, write_onnx
from core.graph.network import Network
from core.graph.pt2_reading import read_pt2
from core.graph.pt2_sizes import Undecided, open_size, quotient
from tests.core.graph.exported import differences, saved
from tests.core.graph.topologies import random_removal

SIZES = (33, 46), (20, 31), (37, 27)
"""None of them a multiple of another, nor of 4: what is a factor of 2 at even sizes is none here."""


class Net(nn.Module):
    """A stem, something at half of its size, and `function` of both."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down = nn.Conv2d(8, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 3, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        wide = self.stem(x)
        return self.function(self, x, wide, self.down(wide).relu())


def padded(small: Tensor, wide: Tensor) -> Tensor:
    dy, dx = wide.shape[2] - small.shape[2], wide.shape[3] - small.shape[3]
    return F.pad(small, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))


def resized(x: Tensor, to: Tensor, mode: str = "nearest", **options: Any) -> Tensor:
    return F.interpolate(x, size=to.shape[-2:], mode=mode, **options)


OPEN: dict[str, Callable[..., Any]] = {
    "a segmenter": lambda net, x, wide, low: resized(net.head(low), x, "bilinear", align_corners=False),
    "a segmenter with corners": lambda net, x, wide, low: resized(net.head(low), x, "bilinear", align_corners=True),
    "a pyramid": lambda net, x, wide, low: net.head(net.gate(wide) + resized(low, wide)),
    "twice the size of another": lambda net, x, wide, low: net.head(
        F.interpolate(low, size=(2 * wide.shape[2], 2 * wide.shape[3]))
    ),
    "padded to the skip": lambda net, x, wide, low: net.head(wide + padded(net.up(net.down(wide)), wide)),
    "padded behind": lambda net, x, wide, low: net.head(
        wide + F.pad(net.up(low), (0, wide.shape[3] - 2 * low.shape[3], 0, wide.shape[2] - 2 * low.shape[2]))
    ),
    "expanded": lambda net, x, wide, low: net.head(
        wide * net.gate(wide.mean((2, 3), keepdim=True)).sigmoid().expand_as(wide)
    ),
    "pooled, then expanded to sizes": lambda net, x, wide, low: net.head(
        wide + F.adaptive_avg_pool2d(low, 1).expand(-1, -1, wide.size(2), wide.size(3))
    ),
    "image pooling": lambda net, x, wide, low: net.head(
        low + resized(net.gate(F.adaptive_avg_pool2d(low, 1)).relu(), low, "bilinear")
    ),
    "places and back": lambda net, x, wide, low: net.head(
        low.flatten(2).transpose(1, 2).softmax(-1).transpose(1, 2).reshape(low.shape)
    ),
    "groups of channels": lambda net, x, wide, low: net.head(
        low.view(low.size(0), 2, 4, low.size(2), low.size(3)).transpose(1, 2).reshape(low.shape)
    ),
    "split by open sizes": lambda net, x, wide, low: [
        part.mean(2) for part in torch.cat([net.head(wide).flatten(2), net.head(low).flatten(2)], 2).split(
            [wide.size(2) * wide.size(3), low.size(2) * low.size(3)], 2
        )
    ],
    "all but the last": lambda net, x, wide, low: net.head(wide[:, :, 1:, : wide.size(3) - 2]),
}  # fmt: skip


def opened(function: Callable[..., Any], folder: Path) -> tuple[nn.Module, Network]:
    torch.manual_seed(0)
    module = Net(function)
    with torch.no_grad():
        module.stem(torch.randn(4, 3, 16, 16))
    module.eval()
    sizes = ({0: Dim("n", min=1, max=64), 2: Dim("h", min=8, max=512), 3: Dim("w", min=8, max=512)},)
    return module, read_pt2(saved(module, folder / "net.pt2", torch.randn(2, 3, 32, 48), dynamic=sizes))


def listed(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize("name", OPEN)
def test_open_sizes_stay_open(name: str, tmp_path: Path) -> None:
    module, network = opened(OPEN[name], tmp_path)
    assert network.inputs[0].shape == ("batch", 3, "height", "width")
    removal = random_removal(network, 0.4)
    assert removal
    smaller, _ = cut(network, removal)
    write_onnx(network, tmp_path / "whole.onnx")
    write_onnx(smaller, tmp_path / "cut.onnx")
    assert check_cut(network, removal, smaller, network.example_input()).passed
    for height, width in SIZES:
        x = torch.randn(2, 3, height, width)
        assert max(differences(module, network, x)) <= 1e-10
        assert check_cut(network, removal, smaller, x).passed
        with torch.no_grad():
            for net, path in ((network, "whole.onnx"), (smaller, "cut.onnx")):
                for found, expected in zip(run_onnx(tmp_path / path, None, x), listed(net(x)), strict=True):
                    assert torch.allclose(found, expected, atol=1e-5), path


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "padded to a multiple": (
        lambda net, x, wide, low: net.head(F.pad(wide, (0, wide.size(3) % 2))),
        r"pad.default at node 'pad.*' has padding to the sizes .*, which no one value has",
    ),
    "a size of its own": (
        lambda net, x, wide, low: F.interpolate(net.head(low), size=(x.size(2) + 1, x.size(3) + 1)),
        r"upsample_nearest2d.vec at node 'upsample.*' has the sizes .*, which are no other value's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_value_has_is_refused_by_name(name: str, tmp_path: Path) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(ModelRefused, match=reason):
        opened(function, tmp_path)


def test_sizes_are_equal_where_they_are_for_every_image() -> None:
    h, w = open_size("h", (32, 32, 64), 2), open_size("w", (32, 32, 96), 2)
    assert (h - 1) // 2 + 1 == (h + 1) // 2 != h // 2, "equal at even sizes"
    assert ((h - 1) // 2 + 1 - 1) // 2 + 1 == (h + 3) // 4
    assert (h // 2 * 2 == h, 2 * h // 2 == h) == (False, True)
    assert ((h * w) / w, quotient(h * w, 2), quotient(2 * h * w, 2 * w)) == (h, None, h)
    assert (((h + 1) // 2 - 1) * (w // 4 + 2)) / (w // 4 + 2) == (h + 1) // 2 - 1
    assert ((2 * h + 1) // 4, h % 2) == (h // 2, h - 2 * (h // 2))
    assert [h >= 1, h // 2 <= h, h < 2, h - (h + 1) // 2 >= 0, max(h, 1) == h] == [True, True, False, True, True]
    for asked in (lambda: h >= 3, lambda: max(h, w), lambda: h / w, lambda: h * 0.7, lambda: bool(h - 2)):
        with pytest.raises(Undecided):
            asked()


def test_sizes_are_what_python_computes() -> None:
    """Random arithmetic: as Python computes it at every size, and one form means one function."""
    numbers = random.Random(0)

    def tree(depth: int) -> str:
        if not depth:
            return numbers.choice(["h", "w", str(numbers.randint(1, 5))])
        operator = numbers.choice(["+", "-", "*", "//", "%"])
        other = str(numbers.randint(1, 5)) if operator in ("//", "%") else tree(depth - 1)
        return f"({tree(depth - 1)} {operator} {other})"

    known: dict[Any, list[int]] = {}
    for _ in range(500):
        text = tree(numbers.randint(1, 4))
        size = eval(text, {"h": open_size("h", (5, 5, 7)), "w": open_size("w", (6, 6, 9))})
        found = [eval(text, {"h": h, "w": w}) for h in range(1, 30) for w in (1, 2, 6, 9, 11)]
        assert known.setdefault(size, found) == found, text
        assert getattr(size, "values", (size, size, size))[::2] == tuple(
            eval(text, {"h": h, "w": w}) for h, w in ((5, 6), (7, 9))
        )
        least = size.least() if hasattr(size, "least") else size
        assert least is None or least <= min(found), text
