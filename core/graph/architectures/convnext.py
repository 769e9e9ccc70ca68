"""ConvNeXt-Tiny (Liu et al. 2022), with torchvision's names.

Differs from the paper: no stochastic depth in training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.graph.architectures.initialisation import truncated_normal
from core.graph.lowering_calls import ChannelLayerNorm


class Permute(nn.Module):
    """The dimensions in another order."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.permute(x, self.dims)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7, LayerNorm, two linear layers with GELU between them, a scale per channel, the shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,C,H,W
        out: Tensor = self.layer_scale * self.block(x)
        return out + x


class ConvNeXtTiny(nn.Module):
    """Stages of 3, 3, 9 and 3 blocks, widths 96 to 768; LayerNorm and a 2 x 2 convolution of stride 2 between them."""

    PLAN = ((96, 3), (192, 3), (384, 9), (768, 3))

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        width = self.PLAN[0][0]
        stem = nn.Sequential(nn.Conv2d(in_channels, width, 4, 4), ChannelLayerNorm(width, eps=1e-6))
        stages: list[nn.Module] = [stem]
        for channels, blocks in self.PLAN:
            if channels != width:
                stages.append(nn.Sequential(ChannelLayerNorm(width, eps=1e-6), nn.Conv2d(width, channels, 2, 2)))
                width = channels
            stages.append(nn.Sequential(*(ConvNeXtBlock(channels) for _ in range(blocks))))
        self.features = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        norm = ChannelLayerNorm(width, eps=1e-6)
        self.classifier = nn.Sequential(norm, nn.Flatten(1), nn.Linear(width, num_classes))
        truncated_normal(self, 0.02)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        out: Tensor = self.classifier(self.avgpool(self.features(x)))
        return out
