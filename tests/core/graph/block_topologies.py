"""Small networks for blocks: what is one, what only looks like one, and what cannot be taken out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unit(channels: int, out: int | None = None, stride: int = 1, groups: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    out = channels if out is None else out
    convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU())


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, 4, 1)
        self.fc2 = nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(self.pool(x)))))


class GroupedBottleneck(nn.Module):
    """A bottleneck of ResNeXt, and with its gate of RegNetY."""

    def __init__(self, channels: int, out: int, stride: int, gate: bool) -> None:
        super().__init__()
        self.a = unit(channels, 8, kernel=1)
        self.b = unit(8, 8, stride, groups=2)
        self.se: nn.Module = Gate(8) if gate else nn.Identity()
        self.c = nn.Sequential(nn.Conv2d(8, out, 1, bias=False), nn.BatchNorm2d(out))
        self.proj: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.proj = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.proj(x) + self.c(self.se(self.b(self.a(x)))))


class Stages(nn.Module):
    """A stem, blocks, a head."""

    def __init__(self, *blocks: nn.Module, channels: int = 12) -> None:
        super().__init__()
        self.stem = unit(3, 6)
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


class Basic(nn.Module):
    """x + two units; with `shrink` and more channels the shortcut is pooled and padded with zero channels."""

    def __init__(self, channels: int, out: int | None = None, stride: int = 1) -> None:
        super().__init__()
        out = channels if out is None else out
        self.conv1 = unit(channels, out, stride)
        self.conv2 = unit(out)
        self.shrink = nn.AvgPool2d(1, stride) if stride > 1 else nn.Identity()
        self.more = out - channels

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shrink(x)
        if self.more:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.more))
        return self.conv2(self.conv1(x)) + shortcut


class LongSkip(nn.Module):
    """A skip connection around a body of blocks, as in EDSR and SRResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Basic(channels), Basic(channels), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Scaled(nn.Module):
    """A layer scale that is a bare parameter, as in ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.conv(x)


class ParallelSum(nn.Module):
    """Two branches of one layer each, added: neither is a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = unit(channels)
        self.two = unit(channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x)


class ChannelAttention(nn.Module):
    """CBAM's: one pair of layers used on two poolings, the results added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.average, self.max = nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(8)
        self.fc1, self.fc2 = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = (self.fc2(torch.relu(self.fc1(pool(x)))) for pool in (self.average, self.max))
        return x * torch.sigmoid(one + two)


class NoLayers(nn.Module):
    """Sums of what has no layers, and with constants."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) + torch.sigmoid(x) + self.bias + 1.0


class UsedElsewhere(nn.Module):
    """What the residual path makes is read past the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = unit(channels), unit(channels)
        self.head = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.conv1(x)
        return self.head(torch.cat([x + self.conv2(inside), inside], 1))


class OverlappingPaths(nn.Module):
    """The longer path reads what the shorter one made."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.short, self.long = unit(channels), unit(channels)
        self.last = unit(channels)

    def forward(self, x: Tensor) -> Tensor:
        short = self.short(x)
        return short + self.last(self.long(x) * short)


class SpreadShortcut(nn.Module):
    """A pooled shortcut that is spread over the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = unit(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) + self.conv(x)


class Branches(nn.Module):
    """Inception: four branches, one with two operands of the concatenation, one that only pools."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch1 = unit(channels, 3, kernel=1)
        self.branch2 = nn.Sequential(unit(channels, 4, kernel=1), unit(4, 5))
        self.branch3 = unit(channels, 4, kernel=1)
        self.branch3a, self.branch3b = unit(4, 2), unit(4, 2, kernel=1)
        self.pool = nn.MaxPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        third = self.branch3(x)
        parts = [self.branch1(x), self.branch3a(third), self.branch2(x), self.branch3b(third), self.pool(x)]
        return torch.cat(parts, 1)


class Fire(nn.Module):
    """SqueezeNet: the fork is inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = unit(channels, 4, kernel=1)
        self.expand1x1, self.expand3x3 = unit(4, 6, kernel=1), unit(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1)


class DepthwiseBehind(nn.Module):
    """A depthwise layer and a norm carry the branches' channels on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fire = Fire(channels)
        self.depthwise = unit(12, groups=12)
        self.pointwise = unit(12, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(self.fire(x)))


class TiedBranches(nn.Module):
    """Two branches whose channels are added to those of another layer behind the concatenation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fire = Fire(channels)
        self.beside = unit(channels, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.fire(x) + self.beside(x)


class IdentityBranch(nn.Module):
    """Two branches with layers, and the input itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = unit(channels, 3), unit(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), x, self.two(x)], 1)


class DenseLayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = unit(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(x)], 1)


class SkipOver(nn.Module):
    """A U-Net's skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = unit(channels, 8, 2), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.up(self.down(x))], 1)


class SharedTwice(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = unit(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


def stages(*blocks: nn.Module, channels: int) -> Callable[[], nn.Module]:
    """A network of blocks on 6 channels that ends in `channels`."""
    return lambda: Stages(*blocks, channels=channels)
