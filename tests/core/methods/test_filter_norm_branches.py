"""filter_norm on networks whose layers are in several channel groups: zero-padded shortcuts, splits, shuffles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.graph.counts import count
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.importers import read_onnx
from core.graph.lowering import trace
from core.graph.network import Network
from core.methods.filter_norm import filter_norm
from core.rounds import filter_groups
from core.target_settings import Target
from core.targets import Goal
from core.training_settings import FineTune
from core.widths import least_width, unit_multiple
from tests.core.fakes import Events, ScriptedTrainer, empty_state, small_dataset
from tests.core.graph.onnx_texts import model, saved


class Block(nn.Module):
    """A residual block whose shortcut is, where it grows, subsampled and padded with zero channels (option A)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.subsample = nn.MaxPool2d(1, stride)
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(residual + F.pad(self.subsample(x), (0, 0, 0, 0, self.pad, self.pad)))


class OptionA(nn.Module):
    """ResNet-8 for CIFAR as in He et al. 2015: 16, 32, 64 channels, shortcuts without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.stages = nn.Sequential(Block(16, 16), Block(16, 32), Block(32, 64))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.stages(torch.relu(self.bn1(self.conv1(x))))), 1))


def option_a(folder: Path) -> Network:
    torch.manual_seed(0)
    network = trace(OptionA(), (1, 8, 8), format="safetensors")
    with torch.no_grad():
        network.train()(network.example_input(batch=32))
    return network.eval()


def split(folder: Path) -> Network:
    """Half of the channels go through a convolution, half pass it by."""
    body = """
        a = Conv<pads=[1,1,1,1]>(x, stem)  l, r = Split<axis=1>(a, half)  m = Conv<pads=[1,1,1,1]>(l, branch)
        c = Concat<axis=1>(r, m)  d = Conv(c, last)  e = GlobalAveragePool(d)  f = Flatten(e)  y = Gemm(f, head)
    """
    weights: dict[str, Any] = {"stem": (32, 1, 3, 3), "half": np.array([16, 16]), "branch": (24, 16, 3, 3),
                               "last": (32, 40, 3, 3), "head": (32, 4)}  # fmt: skip
    return read_onnx(saved(model(body, inputs="float[n,1,8,8] x", outputs="float[n,4] y", weights=weights), folder))


def shuffled(folder: Path) -> Network:
    """Two halves interleaved, split again, one of them through a depthwise convolution (ShuffleNetV2)."""
    body = """
        a = Conv<pads=[1,1,1,1]>(x, stem)  b = Reshape(a, apart)  c = Transpose<perm=[0,2,1,3,4]>(b)
        d = Reshape(c, whole)  l, r = Split<axis=1>(d, half)  m = Conv<group=32, pads=[1,1,1,1]>(l, depthwise)
        e = Concat<axis=1>(r, m)  f = Conv(e, last)  g = GlobalAveragePool(f)  h = Flatten(g)  y = Gemm(h, head)
    """
    weights: dict[str, Any] = {"stem": (64, 1, 3, 3), "apart": np.array([0, 2, 32, 8, 8]),
                               "whole": np.array([0, 64, 8, 8]), "half": np.array([32, 32]),
                               "depthwise": (32, 1, 3, 3), "last": (32, 64, 3, 3), "head": (32, 4)}  # fmt: skip
    return read_onnx(saved(model(body, inputs="float[n,1,8,8] x", outputs="float[n,4] y", weights=weights), folder))


NETWORKS = (option_a, split, shuffled)


@pytest.mark.parametrize("make", NETWORKS)
def test_every_group_may_go_down_to_its_least_width_at_once(make: Callable[[Path], Network], tmp_path: Path) -> None:
    network = make(tmp_path)
    for channel_multiple in (1, 8):
        removal = {}
        for group in filter_groups(network):
            left = least_width(group.width, unit_multiple(group, channel_multiple), group.always_kept)
            assert left < group.width
            removal[group.name] = list(range(group.width - left))
        smaller, _ = cut(network, removal)
        assert check_cut(network, removal, smaller, network.example_input()).passed
        assert whole(smaller, channel_multiple)


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("make", NETWORKS)
def test_targets_are_reached_in_multiples(make: Callable[[Path], Network], scope: Any, tmp_path: Path) -> None:
    network = make(tmp_path)
    with torch.no_grad():  # the first half of every layer is the weakest by far, and in a split all that one part has
        for layer in network.layers().values():
            if isinstance(layer, nn.Conv2d):
                layer.weight[: layer.out_channels // 2] *= 0.01
    events = Events()
    outcome = filter_norm(
        network, small_dataset(images=16), signal="weights", ratio_per_round=0.3, every_epochs=1, scope=scope,
        normalize="none", target=Goal(Target(params=0.5), count(network)), fine_tune=FineTune(epochs=0),
        channel_multiple=8, trainer=ScriptedTrainer(), emit=events, state=empty_state(tmp_path / "state", events),
    )  # fmt: skip
    assert count(outcome.network).params <= 0.5 * count(network).params
    assert whole(outcome.network, 8)
    assert all(check.passed for check in outcome.checks)
    names = [group.name for group in filter_groups(network)]
    assert all(list(select["widths"]) == names for select in events.named("/select")), "names stay from round to round"


def test_the_stages_of_option_a_are_cut_apart(tmp_path: Path) -> None:
    network = option_a(tmp_path)
    groups = {group.name: [producer.layer for producer in group.producers] for group in filter_groups(network)}
    assert groups["conv1"] == ["conv1", "stages.0.conv2", "stages.1.conv2", "stages.2.conv2"]
    assert groups["stages.1.conv2"] == ["stages.1.conv2", "stages.2.conv2"]
    assert groups["stages.2.conv2"] == ["stages.2.conv2"]


def whole(network: Network, channel_multiple: int) -> bool:
    return all(
        layer.channels % channel_multiple == 0 for layer in count(network).layers.values() if layer.kind == "Conv2d"
    )
