"""BatchNorm is folded exactly, where that can be, and unfolded again; where it cannot be, the reason is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.errors import CutRefused
from core.graph.architectures import build
from core.graph.batch_norm_folding import fold, unfold, unfoldable
from core.graph.exactness import relative_error
from core.graph.export import check_parity, write_onnx
from core.graph.lowering import trace
from core.graph.plans import replay
from tests.core.graph.norm_networks import batches, norms, settled, wide

IN_FRONT: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (3, 8)),
    "conv": (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)), (3, 8, 8)),
    "conv3d": (nn.Sequential(nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4)), (3, 4, 4, 4)),
    "grouped": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 8, 8)),
    "depthwise": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8)), (4, 8, 8)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, bias=False), nn.BatchNorm2d(6)), (4, 5, 5)),
    "transposed1d": (nn.Sequential(nn.ConvTranspose1d(4, 6, 3, 2), nn.BatchNorm1d(6)), (4, 5)),
    "transposed grouped": (nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 5, 5)),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False), nn.BatchNorm1d(5)), (3, 4)),
    "two behind one": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), (3, 8, 8)),
}
BEHIND: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, bias=False)), (3, 8, 8)),
    "dilated": (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, 2, dilation=2)), (3, 8, 8)),
    "grouped": (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)), (4, 8, 8)),
    "linear": (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 5)), (3, 4)),
    "pre-activation": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), (3, 8, 8)),
}


@pytest.mark.parametrize("name", [*IN_FRONT, *(f"{name} behind" for name in BEHIND)])
def test_folding_is_exact(name: str) -> None:
    module, shape = BEHIND[name.removesuffix(" behind")] if name.endswith(" behind") else IN_FRONT[name]
    network = wide(settled(module, shape))
    inputs = network.example_input(4, dtype=torch.float64)
    folded, entry = fold(network)
    with torch.no_grad():
        expected = network(inputs)
        assert relative_error(expected, folded(inputs)) < 1e-12
    assert norms(folded) == []
    assert list(entry["into"]) == norms(network)
    with torch.no_grad():
        assert relative_error(expected, replay(network, json.loads(json.dumps([entry])))(inputs)) < 1e-12


class ReadElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return torch.relu(self.norm(x)) + x


class SeveralReaders(nn.Module):
    """A BatchNorm that two convolutions read, and nothing else."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=padding), nn.Conv2d(3, 4, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.relu(x))
        return self.one(x) + self.two(x)


class Twice(nn.Module):
    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.is_norm = nn.BatchNorm2d(3), norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return torch.relu(self.norm(self.other(x))) if self.is_norm else torch.relu(self.conv(x))


LEFT: dict[str, tuple[nn.Module, str]] = {
    "read elsewhere": (ReadElsewhere(), "is read elsewhere as well"),
    "padded": (SeveralReaders(1), "pads with zeros, which are not shifted"),
    "the norm twice": (Twice(norm=True), "it is used more than once"),
    "the layer twice": (Twice(norm=False), "the layer in front, conv, is used more than once"),
    "an output": (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), "its result is an output of the network"),
    "activated": (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)), "not read by convolutions"),
    "transposed": (
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 2, 2)),
        "not read by convolutions",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_folded_is_left_with_its_reason(name: str) -> None:
    module, reason = LEFT[name]
    network = settled(module, (3, 6, 6))
    assert [reason in found for found in unfoldable(network).values()] == [True]
    with pytest.raises(CutRefused, match=reason):
        fold(network)
    with pytest.raises(CutRefused, match=reason):
        fold(network, norms(network))


def test_two_readers_without_padding_take_it_both() -> None:
    network = wide(settled(SeveralReaders(0), (3, 6, 6)))
    folded, entry = fold(network)
    assert entry["into"] == {"norm": ["one", "two"]}
    inputs = network.example_input(4, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(network(inputs), folded(inputs)) < 1e-12


def test_a_padded_reader_takes_one_that_only_scales() -> None:
    module = SeveralReaders(1)
    network = settled(module, (3, 6, 6))
    with torch.no_grad():
        module.norm.bias.zero_()
        module.norm.running_mean.zero_()
    folded, _ = fold(wide(network))
    inputs = network.example_input(4, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(wide(network)(inputs), folded(inputs)) < 1e-12


def test_folding_nothing_or_a_stranger_is_refused() -> None:
    with pytest.raises(CutRefused, match="the network has none"):
        fold(trace(nn.Sequential(nn.Conv2d(3, 2, 3)).eval(), (3, 6, 6)))
    with pytest.raises(CutRefused, match="there is no such BatchNorm"):
        fold(build("small_cnn"), ["bn1", "bn9"])
    entry = {"op": "merge", "kind": "batch_norm", "into": {"bn1": ["conv2"]}}
    with pytest.raises(CutRefused, match="other layers than it names"):
        replay(build("small_cnn"), [entry])


@pytest.mark.parametrize("name", ["resnet20", "preresnet20", "vgg16_fc", "rgb_autoencoder", "small_inception"])
def test_architectures_fold_and_unfold(name: str, tmp_path: Path) -> None:
    network = build(name).train()
    with torch.no_grad():
        for seed in range(3):
            network(network.example_input(8, seed))
    network.eval()
    inputs = network.example_input(4, seed=7)
    folded, entry = fold(network)
    with torch.no_grad():
        assert relative_error(network(inputs), folded(inputs)) < 1e-4
    kept = unfoldable(network)
    assert norms(folded) == list(kept)
    assert bool(kept) == (name == "preresnet20"), "behind an add, in front of a ReLU: it stays"
    unfolded, _ = unfold(folded, entry, batches(network))
    assert set(norms(unfolded)) == set(norms(network)), "by the names that they had"
    with torch.no_grad():
        assert relative_error(folded(inputs), unfolded(inputs)) < 1e-4
    for each in (folded, unfolded):
        write_onnx(each, tmp_path / "model.onnx")
        assert check_parity(each, tmp_path / "model.onnx", inputs).passed
