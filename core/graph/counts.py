"""Parameters, multiply-accumulates and filters of a network, per layer. One multiply-accumulate = 1 MAC."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from core.graph.network import Network
from core.graph.operators import form_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


COUNTED = ["convolutions (1d, 2d, 3d; grouped and depthwise as such)", "linear layers"]
NOT_COUNTED = [
    "biases",
    "BatchNorm",
    "activations",
    "pooling and means",
    "element-wise operations",
    "softmax",
    "shapes",
]


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
            form = form_of(network.module, node)
            if form is not None and form.macs is not None:
                macs[node.target] += form.macs(network.module.get_submodule(node.target), node.meta["shape"])
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
