"""Networks by name: the allow-list for a safetensors upload, which holds weights only. One file per family.

Each is made for any number of classes and of input channels; both can be read off the shapes of the weights. The names
of the weights are those of the modules (`layer1.0.conv1.weight`), which are torchvision's where it has the network, so
that its state dicts load as they are; a file must hold exactly these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import Fault, ModelRefused
from core.graph.architectures.autoencoder import RGBAutoEncoder
from core.graph.architectures.cifar_resnet import (
    BasicBlock,
    CifarResNet,
    PreActivationBlock,
    PreActivationBottleneck,
    PreActivationResNet,
)
from core.graph.architectures.convnext import ConvNeXtTiny
from core.graph.architectures.densenet import DenseNet
from core.graph.architectures.efficientnet import EfficientNetB0
from core.graph.architectures.inception import GoogLeNet, SmallInception
from core.graph.architectures.mobilenet import MobileNetV2
from core.graph.architectures.resnet import Bottleneck, ResNet
from core.graph.architectures.small_cnn import SmallCNN
from core.graph.architectures.vgg import VGG16, ImageNetVGG16
from core.graph.lowering import trace
from core.graph.network import Network


@dataclass(frozen=True)
class Architecture:
    """How a network is made, and which weights' shapes say `in_channels` and `num_classes`.

    `last` is None for a network without classes (its output is an image). Weights whose names start with one of
    `unused` may be in a file and are left out: they are of heads that only training has. `renamed` is a pattern of the
    names that older files have and what is written today.
    """

    make: Callable[..., nn.Module]
    first: str = "conv1.weight"
    last: str | None = "fc.weight"
    unused: tuple[str, ...] = ()
    renamed: tuple[str, str] | None = None

    def __call__(self, **options: Any) -> nn.Module:
        return self.make(**options)


ARCHITECTURES: Mapping[str, Architecture] = {
    # small images
    "resnet20": Architecture(partial(CifarResNet, 20)),
    "resnet32": Architecture(partial(CifarResNet, 32)),
    "resnet44": Architecture(partial(CifarResNet, 44)),
    "resnet56": Architecture(partial(CifarResNet, 56)),
    "resnet110": Architecture(partial(CifarResNet, 110)),
    "resnet164": Architecture(partial(PreActivationResNet, 164, PreActivationBottleneck)),
    "preresnet20": Architecture(partial(PreActivationResNet, 20, PreActivationBlock)),
    "preresnet56": Architecture(partial(PreActivationResNet, 56, PreActivationBlock)),
    "preresnet110": Architecture(partial(PreActivationResNet, 110, PreActivationBlock)),
    "vgg16": Architecture(VGG16, "features.0.weight", "classifier.weight"),
    "vgg16_plain": Architecture(partial(VGG16, batch_norm=False), "features.0.weight", "classifier.weight"),
    "vgg16_fc": Architecture(partial(VGG16, hidden=512), "features.0.weight", "classifier.4.weight"),
    "small_inception": Architecture(SmallInception, "conv1.conv.weight"),
    "small_cnn": Architecture(SmallCNN),
    "rgb_autoencoder": Architecture(RGBAutoEncoder, "encoder.conv0.weight", None),
    # ImageNet
    "vgg16_imagenet": Architecture(ImageNetVGG16, "features.0.weight", "classifier.6.weight"),
    "vgg16_bn_imagenet": Architecture(
        partial(ImageNetVGG16, batch_norm=True), "features.0.weight", "classifier.6.weight"
    ),
    "resnet18": Architecture(partial(ResNet, BasicBlock, (2, 2, 2, 2))),
    "resnet34": Architecture(partial(ResNet, BasicBlock, (3, 4, 6, 3))),
    "resnet50": Architecture(partial(ResNet, Bottleneck, (3, 4, 6, 3))),
    "mobilenet_v2": Architecture(MobileNetV2, "features.0.0.weight", "classifier.1.weight"),
    "densenet121": Architecture(
        partial(DenseNet, (6, 12, 24, 16)),
        "features.conv0.weight",
        "classifier.weight",
        renamed=(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),  # torchvision's file of trained weights
    ),
    "efficientnet_b0": Architecture(EfficientNetB0, "features.0.0.weight", "classifier.1.weight"),
    "convnext_tiny": Architecture(ConvNeXtTiny, "features.0.0.weight", "classifier.2.weight"),
    "googlenet": Architecture(GoogLeNet, "conv1.conv.weight", unused=("aux1.", "aux2.")),
}


def build(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    seed: int = 0,
) -> Network:
    """The architecture as a Network with seeded random weights, in training mode. `image_size` is height, width.

    `num_classes` None is 10 where there are classes.

    Raises `ModelRefused` for a name that is not in `ARCHITECTURES`, classes for a network that has none, or a size that
    does not fit.
    """
    architecture = _architecture(name)
    options: dict[str, int] = {"in_channels": in_channels}
    if architecture.last is not None:
        options["num_classes"] = 10 if num_classes is None else num_classes
    elif num_classes is not None:
        fault = Fault("/num_classes", f"{name} has no classes", "nothing")
        raise ModelRefused(f"{name} has no classes; its output is an image", faults=[fault])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = architecture(**options)
    return trace(module, (in_channels, *image_size), format="safetensors")


def from_weights(name: str, weights: Mapping[str, Tensor], image_size: tuple[int, int]) -> Network:
    """The architecture with `weights`, in eval mode; its classes and input channels are read off their shapes.

    `num_batches_tracked` counters may be absent: they do not change what the network computes.

    Raises `ModelRefused` with one fault per weight that is missing, unexpected, or of another shape.
    """
    architecture = _architecture(name)
    weights = {_today(key, architecture): value for key, value in weights.items()}
    weights = {key: value for key, value in weights.items() if not key.startswith(architecture.unused)}
    options = _options(name, architecture, weights)
    with torch.device("meta"):
        module = architecture(**options)
    wanted = module.state_dict()
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    faults = weight_faults(name, wanted, counters, weights)
    if faults:
        raise ModelRefused(
            f"the weights are not those of {name}: {len(faults)} fault(s)",
            faults=sorted(faults, key=lambda f: f.pointer),
        )
    module = module.to_empty(device="cpu")
    state = {key: weights[key] if key in weights else torch.zeros((), dtype=torch.int64) for key in wanted}
    module.load_state_dict(state)
    return trace(module.eval(), (options["in_channels"], *image_size), format="safetensors")


def _today(key: str, architecture: Architecture) -> str:
    return key if architecture.renamed is None else re.sub(*architecture.renamed, key)


def _options(name: str, architecture: Architecture, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """`in_channels` and, where there are classes, `num_classes`: sizes of the first and the last weight."""
    wanted = {"in_channels": (architecture.first, 4, 1)}
    if architecture.last is not None:
        wanted["num_classes"] = (architecture.last, 2, 0)
    faults = [
        Fault(f"/{key}", f"the weight {key!r} is missing or has another rank", f"a tensor of rank {rank}")
        for key, rank, _ in wanted.values()
        if key not in weights or weights[key].dim() != rank or 0 in weights[key].shape
    ]
    if faults:
        raise ModelRefused(f"the weights are not those of {name}", faults=faults)
    return {option: int(weights[key].shape[dim]) for option, (key, _, dim) in wanted.items()}


def weight_faults(
    name: str, wanted: Mapping[str, Tensor], counters: set[str], weights: Mapping[str, Tensor]
) -> list[Fault]:
    """All that keeps `weights` from being those `wanted`, but for `counters`, which may be absent."""
    faults = [
        Fault(f"/{key}", f"the weight {key!r} is missing", f"a tensor of shape {list(wanted[key].shape)}")
        for key in wanted.keys() - weights.keys() - counters
    ]
    for key, value in weights.items():
        if key not in wanted:
            faults.append(Fault(f"/{key}", f"{key!r} is not a weight of {name}", "only the architecture's own weights"))
        elif value.shape != wanted[key].shape:
            shapes = list(value.shape), list(wanted[key].shape)
            faults.append(Fault(f"/{key}", f"the weight {key!r} has shape {shapes[0]}", f"shape {shapes[1]}"))
        elif key not in counters and value.dtype != wanted[key].dtype:
            dtype, right = (str(item.dtype).removeprefix("torch.") for item in (value, wanted[key]))
            faults.append(Fault(f"/{key}", f"the weight {key!r} is {dtype}", right))
        elif not bool(torch.isfinite(value).all()):
            faults.append(Fault(f"/{key}", f"the weight {key!r} holds NaN or infinity", "finite numbers"))
    return faults


def _architecture(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        fault = Fault("/architecture", f"unknown architecture {name!r}", f"one of {', '.join(ARCHITECTURES)}")
        raise ModelRefused(f"unknown architecture {name!r}", faults=[fault])
    return ARCHITECTURES[name]
