"""ResNets for small images: three stages of 16, 32 and 64 channels (He et al. 2015, section 4.2; He et al. 2016b).

Differs from the paper: where shapes change the shortcut is a 1 x 1 convolution with BatchNorm (option B), as in Velici
2022 (section 3.1), not a zero-padded identity (option A); that is 0.003 M parameters more in ResNet-20.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.graph.architectures.initialisation import he


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm and a shortcut (He et al. 2015, figure 2), option B where shapes change."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            convolution = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,channels,H/stride,W/stride
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self.downsample(x))


class CifarResNet(nn.Module):
    """6n + 2 layers of basic blocks, widths 16-32-64."""

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 with n of at least 1, not {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        he(self)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = torch.flatten(self.avgpool(x), 1)
        out: Tensor = self.fc(x)
        return out


class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU in front of each of two 3 x 3 convolutions (He et al. 2016b, figure 1b).

    Where shapes change, the shortcut is a 1 x 1 convolution of what the first ReLU makes (their released code).
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,channels,H/stride,W/stride
        out = torch.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv2(torch.relu(self.bn2(self.conv1(out))))
        return torch.add(out, shortcut)


class PreActivationBottleneck(nn.Module):
    """As `PreActivationBlock`, of 1 x 1, 3 x 3 and 1 x 1 convolutions, the last four times as wide."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, self.expansion * channels, 1, bias=False)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != self.expansion * channels:
            self.downsample = nn.Conv2d(in_channels, self.expansion * channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # N,C,H,W -> N,4 channels,H/stride,W/stride
        out = torch.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv2(torch.relu(self.bn2(self.conv1(out))))
        out = self.conv3(torch.relu(self.bn3(out)))
        return torch.add(out, shortcut)


class PreActivationResNet(nn.Module):
    """6n + 2 layers of basic blocks, or 9n + 2 of bottlenecks; BatchNorm and ReLU once more behind the last stage."""

    def __init__(
        self,
        depth: int,
        block: type[PreActivationBlock | PreActivationBottleneck],
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        layers = 6 if block is PreActivationBlock else 9
        if depth < layers + 2 or (depth - 2) % layers:
            raise ValueError(f"depth must be {layers}n + 2 with n of at least 1, not {depth}")
        blocks = (depth - 2) // layers
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        stages = []
        width = 16
        for channels, stride in ((16, 1), (32, 2), (64, 2)):
            made = [block(width, channels, stride)]
            width = block.expansion * channels
            made += [block(width, channels, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*made))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = torch.flatten(self.avgpool(torch.relu(self.bn(x))), 1)
        out: Tensor = self.fc(x)
        return out
