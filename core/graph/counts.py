"""Parameters, multiply-accumulates and filters of a network, per layer. One multiply-accumulate = 1 MAC."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from core.graph.network import Network

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convolution_macs(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, output: tuple[int, ...]) -> int:
    """`output` is (1, C, ...): every output number takes one MAC per weight of its filter. The bias is not counted."""
    return math.prod(output) * (layer.in_channels // layer.groups) * math.prod(layer.kernel_size)


def linear_macs(layer: nn.Linear, output: tuple[int, ...]) -> int:
    """`output` is (1, ..., out_features)."""
    return math.prod(output) * layer.in_features


MACS: dict[type[nn.Module], Callable[[Any, tuple[int, ...]], int]] = {
    nn.Conv1d: convolution_macs,
    nn.Conv2d: convolution_macs,
    nn.Conv3d: convolution_macs,
    nn.Linear: linear_macs,
}

COUNTED = ["convolutions (1d, 2d, 3d; grouped and depthwise as such)", "linear layers"]
NOT_COUNTED = ["biases", "BatchNorm", "activations", "pooling and means", "element-wise operations", "softmax", "shapes"]


@dataclass(frozen=True)
class LayerCount:
    """One parametrised layer. `kind` is its class name, `channels` its output channels, `macs` at a batch of one."""

    kind: str
    channels: int
    params: int
    macs: int


@dataclass(frozen=True)
class Counts:
    """Of a network at a batch of one. `params` are numbers that training may change; `filters` are output channels of
    convolutions, all of them together."""

    params: int
    macs: int
    filters: int
    layers: dict[str, LayerCount]


def channels_of(layer: nn.Module) -> int:
    """Output channels of a parametrised layer (the first dimension of its weight)."""
    weight = layer.get_parameter("weight")
    return int(weight.shape[0])


def count(network: Network) -> Counts:
    """Counts `network`. A layer that is used twice has its parameters counted once, its MACs at each use."""
    layers: dict[str, LayerCount] = {}
    macs = dict.fromkeys(network.layers(), 0)
    for node in network.module.graph.nodes:
        if node.op == "call_module" and node.target in macs:
            layer = network.module.get_submodule(node.target)
            macs[node.target] += MACS[type(layer)](layer, node.meta["shape"]) if type(layer) in MACS else 0
    for name, layer in network.layers().items():
        params = sum(parameter.numel() for parameter in layer.parameters())
        layers[name] = LayerCount(type(layer).__name__, channels_of(layer), params, macs[name])
    return Counts(
        params=sum(parameter.numel() for parameter in network.parameters()),
        macs=sum(macs.values()),
        filters=sum(
            layers[name].channels for name, layer in network.layers().items() if isinstance(layer, CONVOLUTIONS)
        ),
        layers=layers,
    )
