"""DenseNet-121 (Huang et al. 2017, table 1), with torchvision's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.graph.architectures.initialisation import he

GROWTH, BOTTLENECK, STEM = 32, 4, 64


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1 x 1; BatchNorm, ReLU, 3 x 3: `GROWTH` channels more, behind the input's."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, BOTTLENECK * GROWTH, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK * GROWTH)
        self.conv2 = nn.Conv2d(BOTTLENECK * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,C + 32,H,W
        out = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(out)))], 1)


class Transition(nn.Module):
    """Half of the channels, half of the image's side."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, in_channels // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,C/2,H/2,W/2
        out: Tensor = self.pool(self.conv(torch.relu(self.norm(x))))
        return out


class DenseNet(nn.Module):
    """`blocks` dense layers per stage."""

    def __init__(
        self, blocks: tuple[int, ...] = (6, 12, 24, 16), num_classes: int = 1000, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(in_channels, STEM, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(STEM))
        self.features.add_module("relu0", nn.ReLU())
        self.features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        width = STEM
        for stage, count in enumerate(blocks, start=1):
            block = nn.Sequential()
            for number in range(1, count + 1):
                block.add_module(f"denselayer{number}", DenseLayer(width))
                width += GROWTH
            self.features.add_module(f"denseblock{stage}", block)
            if stage < len(blocks):
                self.features.add_module(f"transition{stage}", Transition(width))
                width //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(width))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = self.avgpool(torch.relu(self.features(x)))
        out: Tensor = self.classifier(torch.flatten(x, 1))
        return out
