"""Norms and weights that `run_decompositions()` takes apart, and what is folded into a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import OperatorUnknown
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.export import check_parity, write_onnx
from core.graph.onnx_checks import MAX_FAULTS
from core.graph.pt2_reading import read_pt2
from tests.core.graph.exported import Around, differences, read_back, saved
from tests.core.graph.topologies import random_removal


class Norms(nn.Module):
    """Every norm behind a convolution of its own, and one over channels that stand last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.groups, self.one = nn.GroupNorm(4, 8), nn.GroupNorm(1, 8)
        self.scaled, self.plain = nn.InstanceNorm2d(8, affine=True), nn.InstanceNorm2d(8)
        self.second = nn.Conv2d(8, 6, 1)
        self.layer = nn.LayerNorm(6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.scaled(self.one(self.groups(self.first(x))).relu()) * 2)
        return self.head(self.layer(self.second(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class Weights(nn.Module):
    """Weights that are computed from parameters: in three ways, of two kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        by = nn.utils.parametrizations
        self.first = by.weight_norm(nn.Conv2d(3, 8, 3))
        self.second = by.spectral_norm(nn.Conv2d(8, 6, 1))
        self.third = by.weight_norm(nn.ConvTranspose2d(6, 4, 2), dim=1)
        self.head = by.weight_norm(nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(x).relu()).relu()).mean((2, 3)))


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()


@pytest.mark.parametrize("dynamic", ["batch", None], ids=["any batch", "a batch of 3"])
@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
@pytest.mark.parametrize("kind", [Norms, Weights])
def test_it_comes_in_whole(kind: Any, decomposed: bool, dynamic: Any, tmp_path: Path) -> None:
    module = randomised(kind())
    network = read_back(module, tmp_path, torch.randn(3, 3, 8, 8), decomposed=decomposed, dynamic=dynamic)
    assert differences(module, network, torch.randn(2, 3, 8, 8)) < [
        1e-10 if kind is Norms else 1e-5
    ]  # folded in float32
    kinds = {name: type(layer).__name__.removeprefix("Parametrized") for name, layer in module.named_children()}
    kinds.pop("plain", None)  # it has no weights
    assert {name: type(layer).__name__ for name, layer in network.layers().items()} == kinds
    removal = random_removal(network, 0.4)
    assert removal
    smaller, _ = cut(network, removal)
    x = network.example_input(3, seed=1)
    assert check_cut(network, removal, smaller, x).passed
    write_onnx(smaller, tmp_path / "cut.onnx")
    assert check_parity(smaller, tmp_path / "cut.onnx", x).passed


def test_a_weight_norm_of_the_old_kind(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning):
        module = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    x = torch.randn(2, 3, 6, 6)
    network = read_back(module, tmp_path, x)
    assert list(network.layers()) == ["0", "2"]
    with torch.no_grad():
        assert torch.allclose(network(x), module(x), atol=1e-6)


def test_patches_side_by_side(tmp_path: Path) -> None:
    module = Around([lambda x: F.unfold(x, 2, stride=2)], (4, 8, 8)).eval()
    network = read_back(module, tmp_path, torch.randn(2, 4, 8, 8))
    assert max(differences(module, network, torch.randn(3, 4, 8, 8))) <= 1e-10
    write_onnx(network, tmp_path / "model.onnx")
    assert check_parity(network, tmp_path / "model.onnx", torch.randn(2, 4, 8, 8)).passed


@pytest.mark.parametrize(
    "options", [{"kernel_size": 3}, {"kernel_size": 3, "stride": 3}, {"kernel_size": 2, "dilation": 2}]
)
def test_other_patches_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    module = Around([lambda x: F.unfold(x, **options)], (4, 8, 8)).eval()
    with pytest.raises(OperatorUnknown, match=r"aten.im2col.default at node 'im2col' has windows of .* side by side"):
        read_back(module, tmp_path, torch.randn(2, 4, 8, 8))


def test_a_norm_of_several_examples_is_no_instance_norm(tmp_path: Path) -> None:
    """(1, N C, ...) with a scale that is not the same for every example."""
    scale = torch.arange(12.0)

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return F.instance_norm(x.reshape(1, 12, 6, 6), weight=scale).reshape(3, 4, 6, 6)

    with pytest.raises(OperatorUnknown, match=r"a 'weight' that is not the same for every example"):
        read_back(Joined(), tmp_path, torch.randn(3, 3, 6, 6), decomposed=True, dynamic=None)


@pytest.mark.parametrize("decomposed", [False, True])
def test_layers_that_are_called_twice_are_one(decomposed: bool, tmp_path: Path) -> None:
    """Decomposed, each call has a transposed view of the weight of its own."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.square = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
            self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.square(self.square(self.conv(x)).relu()).mean((2, 3))
            return self.head(self.hidden(self.hidden(x).relu()))

    module, images = randomised(Twice()), torch.randn(2, 3, 6, 6)
    network = read_back(module, tmp_path, images, decomposed=decomposed)
    counted = [sum(item.numel() for item in owner.parameters()) for owner in (module, network)]
    assert counted[0] == counted[1]
    assert max(differences(module, network, images)) < 1e-12


def test_faults_are_capped(tmp_path: Path) -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            for _ in range(MAX_FAULTS + 20):
                x = torch.special.i0(x)
            return x

    path = saved(Many(), tmp_path / "model.pt2", torch.randn(2, 3, 4, 4))
    with pytest.raises(OperatorUnknown, match=f"nor are {MAX_FAULTS + 19} more nodes") as caught:
        read_pt2(path)
    assert len(caught.value.faults) == MAX_FAULTS
