"""VGG-16 (Simonyan & Zisserman 2015, configuration D): 13 convolutions, five poolings, one to three linear layers.

`VGG16` is for small images, with one linear layer (Gschoßmann 2021, section 4.1, after a well-known CIFAR-10 version)
or with two, BatchNorm and dropout (Haider & Taj 2020, section 4.2); `ImageNetVGG16` has the paper's three and
torchvision's names (what Salcedo & Sharma prune).

Differs from the papers: in `VGG16`, layers in front of a BatchNorm have no bias, which it would take out again. Haider
& Taj do not say how many linear layers they keep, nor how wide: they put "a Dropout of 0.5 after 1st FC layer" and
BatchNorm "after each trainable layer"; here that is 512 units, BatchNorm, ReLU, dropout, and the classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.graph.architectures.initialisation import he

PLAN = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


def features(in_channels: int, *, batch_norm: bool, bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = in_channels
    for item in PLAN:
        if isinstance(item, int):
            layers.append(nn.Conv2d(width, item, 3, padding=1, bias=bias))
            layers += [nn.BatchNorm2d(item), nn.ReLU()] if batch_norm else [nn.ReLU()]
            width = item
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class VGG16(nn.Module):
    """For small images. Images of at least 32 x 32; larger ones are averaged at the end."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, *, batch_norm: bool = True, hidden: int | None = None
    ) -> None:
        super().__init__()
        self.features = features(in_channels, batch_norm=batch_norm, bias=not batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier: nn.Module = nn.Linear(512, num_classes)
        if hidden is not None:
            first = nn.Linear(512, hidden, bias=False)
            last = nn.Linear(hidden, num_classes)
            self.classifier = nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.5), last)
        he(self)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = torch.flatten(self.avgpool(self.features(x)), 1)
        out: Tensor = self.classifier(x)
        return out


class ImageNetVGG16(nn.Module):
    """With three linear layers over 7 x 7 averages, `hidden` units wide."""

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, *, batch_norm: bool = False, hidden: int = 4096
    ) -> None:
        super().__init__()
        self.features = features(in_channels, batch_norm=batch_norm, bias=True)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, hidden), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip
        he(self, linear=0.01)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = torch.flatten(self.avgpool(self.features(x)), 1)
        out: Tensor = self.classifier(x)
        return out
