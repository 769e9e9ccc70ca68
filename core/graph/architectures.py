"""Networks by name: the allow-list for a safetensors upload, which holds weights only.

Each constructor takes `num_classes` and `in_channels`; both can be read off the shapes of the weights (`read_off`). The
names of the weights are those of the modules here (`layer1.0.conv1.weight`); a file must hold exactly these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from core.errors import Fault, ModelRefused
from core.graph.lowering import trace
from core.graph.network import Network


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm and a shortcut (He et al. 2015, figure 2), option B where shapes change."""

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
    """ResNet for small images: 6n + 2 layers, widths 16-32-64 (He et al. 2015, section 4.2)."""

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
        _initialise(self)

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


class VGG16(nn.Module):
    """VGG-16 for small images: 13 convolutions with BatchNorm, five poolings, one linear layer.

    (Simonyan & Zisserman 2015, configuration D.) Images of at least 32 x 32; larger ones are averaged at the end.
    """

    PLAN = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for item in self.PLAN:
            if isinstance(item, int):
                layers += [nn.Conv2d(width, item, 3, padding=1, bias=False), nn.BatchNorm2d(item), nn.ReLU()]
                width = item
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(512, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = torch.flatten(self.avgpool(self.features(x)), 1)
        out: Tensor = self.classifier(x)
        return out


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
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:  # N,in_channels,H,W -> N,num_classes
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        x = self.pool(torch.relu(self.bn2(self.conv2(x))))
        x = torch.relu(self.bn3(self.conv3(x)))
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out


def _initialise(module: nn.Module) -> None:
    """He initialisation of the convolutions (He et al. 2015b), as in the paper's ResNets."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {
    "resnet20": partial(CifarResNet, 20),
    "resnet32": partial(CifarResNet, 32),
    "resnet44": partial(CifarResNet, 44),
    "resnet56": partial(CifarResNet, 56),
    "resnet110": partial(CifarResNet, 110),
    "vgg16": VGG16,
    "small_cnn": SmallCNN,
}

_FIRST_AND_LAST = {
    "vgg16": ("features.0.weight", "classifier.weight"),
}
"""The weights whose shapes say `in_channels` and `num_classes`, where they are not conv1 and fc."""


def build(
    name: str, *, num_classes: int = 10, in_channels: int = 3, image_size: tuple[int, int] = (32, 32), seed: int = 0
) -> Network:
    """The architecture as a Network with seeded random weights, in training mode. `image_size` is height, width.

    Raises `ModelRefused` for a name that is not in `ARCHITECTURES` or a size that does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _constructor(name)(num_classes=num_classes, in_channels=in_channels)
    return trace(module, (in_channels, *image_size), format="safetensors")


def from_weights(name: str, weights: Mapping[str, Tensor], image_size: tuple[int, int]) -> Network:
    """The architecture with `weights`, in eval mode; its classes and input channels are read off their shapes.

    `num_batches_tracked` counters may be absent: they do not change what the network computes.

    Raises `ModelRefused` with one fault per weight that is missing, unexpected, or of another shape.
    """
    constructor = _constructor(name)
    first, last = _FIRST_AND_LAST.get(name, ("conv1.weight", "fc.weight"))
    faults = [
        Fault(f"/{key}", f"the weight {key!r} is missing or has another rank", f"a tensor of rank {rank}")
        for key, rank in ((first, 4), (last, 2))
        if key not in weights or weights[key].dim() != rank or 0 in weights[key].shape
    ]
    if faults:
        raise ModelRefused(f"the weights are not those of {name}", faults=faults)
    with torch.device("meta"):
        module = constructor(num_classes=weights[last].shape[0], in_channels=weights[first].shape[1])
    wanted = module.state_dict()
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    for key in wanted.keys() - weights.keys() - counters:
        faults.append(
            Fault(f"/{key}", f"the weight {key!r} is missing", f"a tensor of shape {list(wanted[key].shape)}")
        )
    for key, value in weights.items():
        if key not in wanted:
            faults.append(Fault(f"/{key}", f"{key!r} is not a weight of {name}", "only the architecture's own weights"))
        elif value.shape != wanted[key].shape:
            shapes = list(value.shape), list(wanted[key].shape)
            faults.append(Fault(f"/{key}", f"the weight {key!r} has shape {shapes[0]}", f"shape {shapes[1]}"))
        elif key not in counters and value.dtype != torch.float32:
            faults.append(
                Fault(f"/{key}", f"the weight {key!r} is {str(value.dtype).removeprefix('torch.')}", "float32")
            )
        elif not bool(torch.isfinite(value).all()):
            faults.append(Fault(f"/{key}", f"the weight {key!r} holds NaN or infinity", "finite numbers"))
    if faults:
        raise ModelRefused(
            f"the weights are not those of {name}: {len(faults)} fault(s)",
            faults=sorted(faults, key=lambda f: f.pointer),
        )
    module = module.to_empty(device="cpu")
    state = {key: weights[key] if key in weights else torch.zeros((), dtype=torch.int64) for key in wanted}
    module.load_state_dict(state)
    in_channels = int(weights[first].shape[1])
    return trace(module.eval(), (in_channels, *image_size), format="safetensors")


def _constructor(name: str) -> Callable[..., nn.Module]:
    if name not in ARCHITECTURES:
        fault = Fault("/architecture", f"unknown architecture {name!r}", f"one of {', '.join(ARCHITECTURES)}")
        raise ModelRefused(f"unknown architecture {name!r}", faults=[fault])
    return ARCHITECTURES[name]
