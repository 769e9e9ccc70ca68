"""A small network for quick tries: the digits of the demo, and the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.graph.architectures.initialisation import he


class SmallCNN(nn.Module):
    """Three convolutions with BatchNorm, two poolings, one linear layer: 4 x 4 images and up."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        x = self.pool(torch.relu(self.bn2(self.conv2(x))))
        x = torch.relu(self.bn3(self.conv3(x)))
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out
