"""Small networks, each with one difficulty, and what is needed to try them."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.graph.groups import channel_groups
from core.graph.lowering import trace
from core.graph.network import Network

SHAPE = (3, 8, 8)


class Depthwise(nn.Module):
    """conv, depthwise, pointwise: the depthwise layer's channels are its input's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.pointwise = nn.Conv2d(12, 8, 1)
        self.fc = nn.Linear(8, 5)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.depthwise(torch.relu(self.stem(x)))))
        return self.fc(torch.flatten(self.pool(self.pointwise(x)), 1))


class DepthMultiplier(nn.Module):
    """A depthwise convolution that makes two channels from each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.depthwise(torch.relu(self.stem(x)))))


class Grouped(nn.Module):
    """Groups of a grouped convolution go as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(24)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.grouped(torch.relu(self.stem(x))))))


class Dense(nn.Module):
    """Concatenation after concatenation: one BatchNorm spans several groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(10)
        self.conv2 = nn.Conv2d(10, 4, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(14)
        self.head = nn.Linear(14, 5)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(torch.relu(x))], 1)
        x = torch.cat([x, self.conv2(torch.relu(self.norm2(x)))], 1)
        return self.head(torch.flatten(self.pool(torch.relu(self.norm3(x))), 1))


class ZeroPaddedShortcut(nn.Module):
    """A residual block whose shortcut gets zero channels in front and behind (He et al. 2015, option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.shrink = nn.MaxPool2d(1, 2)
        self.head = nn.Linear(16, 5)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        shortcut = F.pad(self.shrink(x), (0, 0, 0, 0, 4, 4))
        x = torch.relu(self.conv2(torch.relu(self.norm1(self.conv1(x)))) + shortcut)
        return self.head(torch.flatten(self.pool(x), 1))


class FlattenIntoLinear(nn.Module):
    """One channel is sixteen inputs of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(10 * 16, 20)
        self.fc2 = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.pool(torch.relu(self.conv(x))), 1)
        return self.fc2(torch.relu(self.fc1(x)))


class SqueezeExcite(nn.Module):
    """A gate per channel, multiplied on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(12, 4, 1)
        self.expand = nn.Conv2d(4, 12, 1)
        self.sigmoid = nn.Sigmoid()
        self.head = nn.Conv2d(12, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = self.sigmoid(self.expand(torch.relu(self.reduce(self.pool(x)))))
        return self.head(x * gate)


class SpatialAttention(nn.Module):
    """A gate per place, multiplied on all channels: its one channel stays, the others are free."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 1, 1)
        self.sigmoid = nn.Sigmoid()
        self.head = nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x * self.sigmoid(self.gate(x)))


class Shared(nn.Module):
    """One convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.shared(torch.relu(self.shared(torch.relu(self.stem(x)))))))


class ResidualFromInput(nn.Module):
    """The input is added on (padded to more channels): three channels of the convolution stay, the others are free."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 11, 3, padding=1)
        self.head = nn.Conv2d(11, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x) + F.pad(x, (0, 0, 0, 0, 0, 8))))


class ChannelSoftmax(nn.Module):
    """A softmax along the channels in the middle of a network: they are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.softmax = nn.Softmax(1)
        self.middle = nn.Conv2d(8, 6, 3)
        self.head = nn.Conv2d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(self.softmax(self.conv(x)))))


class Split(nn.Module):
    """The channels are split in two parts that go different ways (as in ShuffleNetV2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.cat([x[:, :3], torch.relu(self.conv(x[:, 3:]))], 1))


class LateShortcut(nn.Module):
    """Zero channels around a branch that comes second: channels 2 to 5 of the first meet it, the others nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(8, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x) + F.pad(self.branch(x), (0, 0, 0, 0, 2, 2))))


class Uneven(nn.Module):
    """Three of six channels are read twice by the same layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(9, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.cat([x, x[:, 3:]], 1))


class EndsInSoftmax(nn.Module):
    """A classifier with its Softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)
        self.softmax = nn.Softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.softmax(self.fc(torch.flatten(self.pool(torch.relu(self.conv(x))), 1)))


TOPOLOGIES: dict[str, Callable[[], nn.Module]] = {
    item.__name__: item
    for item in (
        Depthwise, DepthMultiplier, Grouped, Dense, ZeroPaddedShortcut, FlattenIntoLinear, SqueezeExcite,
        SpatialAttention, Shared, ResidualFromInput, ChannelSoftmax, Split, LateShortcut, Uneven, EndsInSoftmax,
    )
}  # fmt: skip


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The module in eval mode, its BatchNorm statistics those of a few random batches, none of its scales alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.uniform_(layer.bias, -0.5, 0.5)
        module.train()
        with torch.no_grad():
            for _ in range(3):
                module(torch.randn(8, *SHAPE))
    return module.eval()


def topology(name: str) -> Network:
    return trace(seeded(TOPOLOGIES[name]), SHAPE)


def random_removal(network: Network, share: float, seed: int = 0) -> dict[str, list[int]]:
    """`share` of the units of every group that can be cut, at random."""
    generator = random.Random(seed)
    removal = {}
    for group in channel_groups(network).groups:
        count = int(group.width * share)
        if group.cuttable and count:
            removal[group.name] = sorted(generator.sample(range(group.width), count))
    return removal
