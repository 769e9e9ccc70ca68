"""BatchNorm folded into the layers around it, exactly, in eval semantics.

With s = γ / √(σ² + ε) and t = β - s μ, both (C,):

    behind a layer        BN(W x + b) = (s W) x + (s b + t)      W scaled along its output channels
    in front of layers    W BN(x) + b = (W s) x + (b + W t)      along its input channels; exact without padding

Computed in float64, stored in the layer's own type. The plan entry is {"op": "merge", "kind": "batch_norm",
"into": {name of the BatchNorm: [layers]}}, in the order of folding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from core.errors import CutRefused, Fault
from core.graph.batch_norm import (
    insert,
    is_batch_norm,
    maker_at,
    nodes_of,
    refuse_other_kinds,
    renewed,
    uses_of,
)
from core.graph.network import Network
from core.graph.shapes import propagate_shapes


@dataclass(frozen=True)
class Fold:
    """A BatchNorm and the layers that it goes into: the one in front of it, or those behind."""

    layers: tuple[str, ...]
    in_front: bool


def fold(network: Network, names: Collection[str] | None = None) -> tuple[Network, dict[str, Any]]:
    """A new network, in eval mode, without the BatchNorms `names` (None: all that can be folded), and the plan entry.

    What it computes in eval mode is the same. `network` is left as it is.

    Raises `CutRefused` where there is nothing to fold, or one of `names` cannot be, with the reasons.
    """
    smaller = network.clone()
    into: dict[str, list[str]] = {}
    while True:  # one goes into a layer that another was behind of
        found, left = foldable(smaller)
        name = next((name for name in found if names is None or name in names), None)
        if name is None:
            break
        into[name] = list(found[name].layers)
        _fold(smaller, name, found[name])
        propagate_shapes(smaller.module, smaller.input_shapes)
    missing = [name for name in (names if names is not None else []) if name not in into]
    if missing or not into:
        reasons = {name: left.get(name, "there is no such BatchNorm") for name in missing or left}
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise CutRefused(
            f"BatchNorm cannot be folded: {told or 'the network has none'}",
            faults=[Fault(f"/into/{name}", reason) for name, reason in reasons.items()],
        )
    return renewed(smaller).eval(), {"op": "merge", "kind": "batch_norm", "into": into}


def unfoldable(network: Network) -> dict[str, str]:
    """The BatchNorms that stay when all others are folded, each with the reason."""
    found, left = foldable(network)
    return foldable(fold(network)[0])[1] if found else left


def unfold(network: Network, entry: Mapping[str, Any], batches: Iterable[Tensor]) -> tuple[Network, dict[str, Any]]:
    """`insert`, of BatchNorms named as in `fold`'s plan entry, behind the layers that they went into.

    One that went into several layers, or into one that another went into as well, does not come back by itself: a
    layer gets one, by the name of the last. Raises as `insert` does.
    """
    refuse_other_kinds(entry)
    return insert(network, batches, {layer: name for name, layers in entry["into"].items() for layer in layers[:1]})


def replay_merge(network: Network, entry: Mapping[str, Any]) -> Network:
    """`network` after folding as the plan entry says. Raises `CutRefused` where other layers would take part."""
    refuse_other_kinds(entry)
    smaller, done = fold(network, list(entry["into"]))
    if done["into"] != {name: list(layers) for name, layers in entry["into"].items()}:
        raise CutRefused(
            "the plan entry does not fit this network: BatchNorms go into other layers than it names",
            faults=[Fault("/into", "other layers", str(done["into"]))],
        )
    return smaller


def foldable(network: Network) -> tuple[dict[str, Fold], dict[str, str]]:
    """(the BatchNorms that can be folded as things are, each with where; why each of the others cannot)."""
    found: dict[str, Fold] = {}
    left: dict[str, str] = {}
    uses = uses_of(network)
    for node in network.module.graph.nodes:
        if not is_batch_norm(network, node):
            continue
        name = str(node.target)
        if uses[name] > 1:
            left[name] = "it is used more than once"
            continue
        before, behind = _in_front(network, node, uses), _behind(network, node, uses)
        if not isinstance(before, str):
            found[name] = before
        elif not isinstance(behind, str):
            found[name] = behind
        else:
            left[name] = f"{before}; {behind}"
    return found, left


def _in_front(network: Network, node: fx.Node, uses: Counter[str]) -> Fold | str:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    layer = maker_at(network, source)
    if layer is None:
        return "no convolution or linear layer is directly in front"
    if uses[str(source.target)] > 1:
        return f"the layer in front, {source.target}, is used more than once"
    if len(source.users) > 1 or source in network.output_nodes():
        return f"what the layer in front, {source.target}, makes is read elsewhere as well"
    if isinstance(layer, nn.Linear) and len(source.meta["shape"]) != 2:
        return f"the channels of {source.target} are in another dimension"
    return Fold((str(source.target),), in_front=True)


def _behind(network: Network, node: fx.Node, uses: Counter[str]) -> Fold | str:
    if node in network.output_nodes() or not node.users:
        return "its result is an output of the network"
    norm = network.module.get_submodule(str(node.target))
    shifts = bool((_scale_and_shift(norm)[1] != 0).any())
    for user in node.users:
        layer = maker_at(network, user)
        if layer is None or isinstance(layer, _ConvTransposeNd):
            return "its result is not read by convolutions and linear layers alone"
        if uses[str(user.target)] > 1:
            return f"a layer behind it, {user.target}, is used more than once"
        if isinstance(layer, nn.Linear) and len(node.meta["shape"]) != 2:
            return f"a layer behind it, {user.target}, runs along another dimension"
        if isinstance(layer, _ConvNd) and shifts and any(layer.padding):
            return f"a layer behind it, {user.target}, pads with zeros, which are not shifted"
    return Fold(tuple(str(user.target) for user in node.users), in_front=False)


def _fold(network: Network, name: str, chosen: Fold) -> None:
    (node,) = nodes_of(network, name)
    scale, shift = _scale_and_shift(network.module.get_submodule(name))
    for target in chosen.layers:
        layer = network.module.get_submodule(target)
        weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
        wide = weight.detach().to(torch.float64)
        offset = torch.zeros((), dtype=torch.float64) if bias is None else bias.detach().to(torch.float64)
        if chosen.in_front:
            wide, offset = _scaled_outputs(layer, wide, scale), offset * scale + shift
        else:
            offset = offset + _through(layer, wide, shift)
            wide = _scaled_inputs(layer, wide, scale)
        layer.weight = nn.Parameter(wide.to(weight.dtype), weight.requires_grad)
        layer.bias = nn.Parameter(offset.to(weight.dtype), weight.requires_grad)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)
    network.module.graph.erase_node(node)
    network.module.delete_submodule(name)


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """s and t of BN(y) = s y + t in eval mode, float64 (C,)."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    variance, mean = norm.running_var.to(torch.float64), norm.running_mean.to(torch.float64)
    scale = norm.weight.detach().to(torch.float64) / (variance + norm.eps).sqrt()
    return scale, norm.bias.detach().to(torch.float64) - scale * mean


def _scaled_outputs(layer: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """A transposed convolution's weight is (in, out / groups, ...), all others' (out, ...)."""
    if isinstance(layer, _ConvTransposeNd):
        grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])  # groups, in / groups, out / groups, ...
        view = scale.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        return (grouped * view).reshape(weight.shape)
    return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))


def _scaled_inputs(layer: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """`weight` (out, in / groups, ...), `scale` (in,)."""
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    view = scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
    return (weight.reshape(groups, -1, *weight.shape[1:]) * view).reshape(weight.shape)


def _through(layer: nn.Module, weight: Tensor, shift: Tensor) -> Tensor:
    """What a constant `shift` (in,) of every input adds to every output, (out,)."""
    return _scaled_inputs(layer, weight, shift).flatten(1).sum(1)
