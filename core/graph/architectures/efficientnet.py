"""EfficientNet-B0 (Tan & Le 2019, table 1), with torchvision's names.

Differs from the paper: no stochastic depth in training.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.graph.architectures.initialisation import he


def _convolution(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(channels)]


class SqueezeExcitation(nn.Module):
    """Each channel times a gate that is computed from the means of all (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,C,H,W
        return torch.sigmoid(self.fc2(F.silu(self.fc1(self.avgpool(x))))) * x


class MBConv(nn.Module):
    """1 x 1 up, depthwise, squeeze and excitation, 1 x 1 down; a shortcut where shapes agree."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, factor: int) -> None:
        super().__init__()
        hidden = in_channels * factor
        layers: list[nn.Module] = []
        if factor != 1:
            layers.append(nn.Sequential(*_convolution(in_channels, hidden, 1), nn.SiLU()))
        layers.append(nn.Sequential(*_convolution(hidden, hidden, kernel, stride, groups=hidden), nn.SiLU()))
        layers.append(SqueezeExcitation(hidden, max(1, in_channels // 4)))
        layers.append(nn.Sequential(*_convolution(hidden, channels, 1)))
        self.block = nn.Sequential(*layers)
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,channels,H/stride,W/stride
        out: Tensor = self.block(x)
        return out + x if self.shortcut else out


class EfficientNetB0(nn.Module):
    """Width and depth 1.0."""

    PLAN = (
        (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )  # fmt: skip
    """Per stage: expansion, kernel, stride, channels, blocks."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Sequential(*_convolution(in_channels, 32, 3, 2), nn.SiLU())]
        width = 32
        for factor, kernel, stride, channels, blocks in self.PLAN:
            stage = []
            for index in range(blocks):
                stage.append(MBConv(width, channels, kernel, stride if index == 0 else 1, factor))
                width = channels
            stages.append(nn.Sequential(*stage))
        stages.append(nn.Sequential(*_convolution(width, 1280, 1), nn.SiLU()))
        self.features = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        last = nn.Linear(1280, num_classes)
        self.classifier = nn.Sequential(nn.Dropout(0.2), last)
        he(self)
        bound = 1 / math.sqrt(num_classes)
        nn.init.uniform_(last.weight, -bound, bound)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = torch.flatten(self.avgpool(self.features(x)), 1)
        out: Tensor = self.classifier(x)
        return out
