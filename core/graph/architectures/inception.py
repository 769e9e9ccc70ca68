"""Networks of multi-branch blocks that end in a concatenation: a small Inception, and GoogLeNet.

`SmallInception` is that of Zhang et al. 2017 (appendix A, figure 3), for images of about 28 x 28. They count 1,649,402
parameters; here BatchNorm has a scale, which makes it 1,651,114. `GoogLeNet` is Szegedy et al. 2014 with BatchNorm, as
torchvision has it and names its weights.

Differs from torchvision: the auxiliary heads, which only its training uses, are not there (their weights may be in the
file and are left out), nor is `transform_input`: images are normalised before they come in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.graph.architectures.initialisation import he, truncated_normal


class ConvModule(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class SmallInceptionModule(nn.Module):
    """A 1 x 1 and a 3 x 3 branch."""

    def __init__(self, in_channels: int, ones: int, threes: int) -> None:
        super().__init__()
        self.branch1 = ConvModule(in_channels, ones, 1)
        self.branch2 = ConvModule(in_channels, threes, 3)

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,ones + threes,H,W
        return torch.cat([self.branch1(x), self.branch2(x)], 1)


class SmallDownsample(nn.Module):
    """A 3 x 3 convolution of stride 2 beside a pooling of the input."""

    def __init__(self, in_channels: int, threes: int) -> None:
        super().__init__()
        self.branch1 = ConvModule(in_channels, threes, 3, stride=2)
        self.branch2 = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,threes + C,H/2,W/2
        return torch.cat([self.branch1(x), self.branch2(x)], 1)


class SmallInception(nn.Module):
    """Eight inception modules and two that halve the image, as the figure's columns have them."""

    PLAN = ((32, 32), (32, 48), 80, (112, 48), (96, 64), (80, 80), (48, 96), 96, (176, 160), (176, 160))
    """Pairs: an inception module's 1 x 1 and 3 x 3 channels. Single numbers: a downsampling's 3 x 3 channels."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = ConvModule(in_channels, 96, 3)
        blocks: list[nn.Module] = []
        width = 96
        for item in self.PLAN:
            if isinstance(item, tuple):
                blocks.append(SmallInceptionModule(width, *item))
                width = sum(item)
            else:
                blocks.append(SmallDownsample(width, item))
                width += item
        self.blocks = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = self.avgpool(self.blocks(self.conv1(x)))
        out: Tensor = self.fc(torch.flatten(x, 1))
        return out


# --- GoogLeNet --------------------------------------------------------------------------------------------------------


class BasicConv2d(nn.Module):
    """Convolution, BatchNorm (epsilon 0.001), ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four branches: 1 x 1; 1 x 1 and 3 x 3, twice (where the second is 5 x 5 in the paper); a pooling and 1 x 1."""

    def __init__(self, in_channels: int, ones: int, red3: int, threes: int, red5: int, fives: int, pooled: int) -> None:
        super().__init__()
        self.branch1 = BasicConv2d(in_channels, ones, 1)
        self.branch2 = nn.Sequential(BasicConv2d(in_channels, red3, 1), BasicConv2d(red3, threes, 3))
        self.branch3 = nn.Sequential(BasicConv2d(in_channels, red5, 1), BasicConv2d(red5, fives, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), BasicConv2d(in_channels, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,ones + threes + fives + pooled,H,W
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """Nine inception modules in three stages."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = BasicConv2d(in_channels, 64, 7, stride=2)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = BasicConv2d(64, 64, 1)
        self.conv3 = BasicConv2d(64, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception3a = Inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = Inception(256, 128, 128, 192, 32, 96, 64)
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception4a = Inception(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = Inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = Inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = Inception(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = Inception(528, 256, 160, 320, 32, 128, 128)
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.inception5a = Inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = Inception(832, 384, 192, 384, 48, 128, 128)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1024, num_classes)
        truncated_normal(self, 0.01)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(x)))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4c(self.inception4b(self.inception4a(x)))
        x = self.maxpool4(self.inception4e(self.inception4d(x)))
        x = self.avgpool(self.inception5b(self.inception5a(x)))
        out: Tensor = self.fc(self.dropout(torch.flatten(x, 1)))
        return out
