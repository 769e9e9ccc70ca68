"""ResNet-18, -34 and -50 for ImageNet (He et al. 2015, table 1). Weights are named as torchvision names them.

Differs from the paper: a bottleneck that halves the image does so in its 3 x 3 convolution, as torchvision's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.graph.architectures.cifar_resnet import BasicBlock
from core.graph.architectures.initialisation import he


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with BatchNorm, the last four times as wide, and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, self.expansion * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.expansion * channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != self.expansion * channels:
            convolution = nn.Conv2d(in_channels, self.expansion * channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(self.expansion * channels))

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,4 channels,H/stride,W/stride
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(out)))))
        return torch.relu(out + self.downsample(x))


class ResNet(nn.Module):
    """`blocks` per stage, widths 64-128-256-512 times the block's expansion."""

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        stages = []
        width = 64
        for count, channels in zip(blocks, (64, 128, 256, 512), strict=True):
            made = [block(width, channels, 1 if channels == 64 else 2)]
            width = block.expansion * channels
            made += [block(width, channels, 1) for _ in range(count - 1)]
            stages.append(nn.Sequential(*made))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out
