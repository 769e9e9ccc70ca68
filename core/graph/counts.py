"""Parameters, multiply-accumulates and filters of a network, per layer. One multiply-accumulate = 1 MAC."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from core.graph.blocks import find_blocks, innermost_residual
from core.graph.network import Network
from core.graph.operators import form_of
from core.graph.operators.convolution import CONVOLUTIONS

COUNTED = ["convolutions (1d, 2d, 3d, transposed; grouped and depthwise as such)", "linear layers"]
NOT_COUNTED = [
    "biases",
    "normalisations",
    "activations",
    "pooling and means",
    "element-wise operations",
    "products of activations",
    "softmax",
    "shapes",
]


INSERTED_BEHIND = "inserted_behind"
"""The attribute of a BatchNorm that `core/graph/batch_norm.py` inserted: the name of its layer."""


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
    convolutions, all of them together; `blocks` are the residual blocks that hold no other."""

    params: int
    macs: int
    filters: int
    blocks: int
    layers: dict[str, LayerCount]


def channels_of(layer: nn.Module) -> int:
    """Output channels of a parametrised layer: what it makes, or for a normalisation what it carries."""
    for attribute in ("out_channels", "out_features", "num_features", "num_channels", "num_parameters"):
        if hasattr(layer, attribute):
            return int(getattr(layer, attribute))
    return int(layer.get_parameter("weight").shape[0])


def count(network: Network) -> Counts:
    """Counts `network`. A layer that is used twice has its parameters counted once, its MACs at each use.

    A BatchNorm that Billhook inserted is counted as folded into its layer, which is how it goes out: that layer then
    has a bias.
    """
    layers: dict[str, LayerCount] = {}
    macs = dict.fromkeys(network.layers(), 0)
    for node in network.module.graph.nodes:
        if node.op == "call_module" and node.target in macs:
            form = form_of(network.module, node)
            if form is not None and form.macs is not None:
                macs[node.target] += form.macs(network.module.get_submodule(node.target), node.meta["shape"])
    changes = _by_folding(network)
    for name, layer in network.layers().items():
        params = sum(parameter.numel() for parameter in layer.parameters()) + changes.get(name, 0)
        layers[name] = LayerCount(type(layer).__name__, channels_of(layer), params, macs[name])
    return Counts(
        params=sum(parameter.numel() for parameter in network.parameters()) + sum(changes.values()),
        macs=sum(macs.values()),
        filters=sum(
            layers[name].channels for name, layer in network.layers().items() if isinstance(layer, CONVOLUTIONS)
        ),
        blocks=len(innermost_residual(find_blocks(network))),
        layers=layers,
    )


def _by_folding(network: Network) -> dict[str, int]:
    """Layer -> the parameters that it gains or loses where inserted BatchNorms are folded."""
    changes: dict[str, int] = {}
    layers = network.layers()
    for name, norm in layers.items():
        behind = layers.get(getattr(norm, INSERTED_BEHIND, ""))
        if behind is not None:
            changes[name] = -sum(parameter.numel() for parameter in norm.parameters())
            if behind._parameters.get("bias") is None:
                changes[getattr(norm, INSERTED_BEHIND)] = channels_of(behind)
    return changes
