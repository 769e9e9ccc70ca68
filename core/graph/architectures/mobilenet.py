"""MobileNetV2 (Sandler et al. 2018, table 2), with torchvision's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.graph.architectures.initialisation import he


def _convolution(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU6."""
    layer = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU6())


class InvertedResidual(nn.Module):
    """1 x 1 up by `factor`, depthwise 3 x 3, 1 x 1 down without an activation; a shortcut where shapes agree."""

    def __init__(self, in_channels: int, channels: int, stride: int, factor: int) -> None:
        super().__init__()
        hidden = in_channels * factor
        layers: list[nn.Module] = [] if factor == 1 else [_convolution(in_channels, hidden, 1)]
        layers.append(_convolution(hidden, hidden, 3, stride, groups=hidden))
        layers += [nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,channels,H/stride,W/stride
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """Width 1.0."""

    PLAN = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip
    """Per stage: expansion, channels, blocks, stride."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(in_channels, 32, 3, 2)]
        width = 32
        for factor, channels, blocks, stride in self.PLAN:
            for index in range(blocks):
                layers.append(InvertedResidual(width, channels, stride if index == 0 else 1, factor))
                width = channels
        layers.append(_convolution(width, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
        he(self, linear=0.01)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = torch.flatten(self.avgpool(self.features(x)), 1)
        out: Tensor = self.classifier(x)
        return out
