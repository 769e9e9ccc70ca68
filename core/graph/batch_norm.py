"""BatchNorm put in and measured afresh. `core/graph/batch_norm_folding.py` takes it out again.

Exporters fold BatchNorm into the convolution in front, and fine-tuning without it is harder than it need be. `insert`
puts one behind every layer that has none, with the statistics that the layer's outputs have on real images:

    BN(y) = γ (y - μ) / √(σ² + ε) + β,   γ = √(σ² + ε),   β = μ   so that BN(y) = y      y (N, C, ...), γ, β, μ, σ² (C,)

The plan entry is {"op": "insert", "kind": "batch_norm", "layers": {layer: name of the BatchNorm}}. Statistics are
weights, not structure: a replayed insertion has mean 0 and variance 1, and computes the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.errors import CutRefused, Fault
from core.graph.counts import INSERTED_BEHIND, channels_of
from core.graph.network import Network
from core.graph.operators import MAKERS

CLASSES: Mapping[int, type[_BatchNorm]] = {
    2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d,
}  # fmt: skip

MOST_TOLD = 10
"""Layers that a refusal gives the reasons of."""


# --- putting in -------------------------------------------------------------------------------------------------------


def insert(
    network: Network, batches: Iterable[Tensor], only: Mapping[str, str] | None = None
) -> tuple[Network, dict[str, Any]]:
    """A new network, in eval mode, with an identity BatchNorm behind every layer of `insertable`, and the plan entry.

    `batches`: real inputs, each (B, ...), from which the statistics are measured, all with equal weight per number.
    `only`: which layers instead, those that make outputs among them, and what their BatchNorms are to be called.
    `network` is left as it is.

    Raises `CutRefused` where no layer can have one, or one of `only` cannot, with the reasons.
    """
    places = _places(network, only)
    return insert_with(network, places, measured(network, places, batches))


def insert_with(
    network: Network, places: Mapping[str, str], statistics: Mapping[str, tuple[Tensor, Tensor]]
) -> tuple[Network, dict[str, Any]]:
    """As `insert`, behind the layers that `places` names, from means and variances that are known (see `measured`)."""
    places = _places(network, places)
    larger = network.clone()
    for layer, name in places.items():
        _insert(larger, layer, name, *statistics[layer])
    return renewed(larger).eval(), {"op": "insert", "kind": "batch_norm", "layers": places}


def insertable(network: Network, *, outputs: bool = False) -> tuple[list[str], dict[str, str]]:
    """(the convolutions, transposed ones and linear layers that can get a BatchNorm, why each of the others cannot).

    `outputs`: those that make an output of the network, too; a classifier's scores are not normalised without need.
    """
    found, left = [], {}
    uses = uses_of(network)
    last = set() if outputs else _makers_of_outputs(network)
    for node in network.module.graph.nodes:
        if node.op != "call_module" or not isinstance(network.module.get_submodule(node.target), MAKERS):
            continue
        layer = network.module.get_submodule(node.target)
        if uses[node.target] > 1:
            left[node.target] = "it is used more than once, each time with statistics of its own"
        elif any(is_batch_norm(network, user) for user in node.users):
            left[node.target] = "a BatchNorm is behind it"
        elif isinstance(layer, nn.Linear) and len(node.meta["shape"]) != 2:
            left[node.target] = "its channels are in the last of several dimensions, where BatchNorm does not look"
        elif node in last:
            left[node.target] = "it makes an output of the network"
        else:
            found.append(node.target)
    return found, left


def measured(network: Network, layers: Collection[str], batches: Iterable[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Per layer: mean and (unbiased) variance of each output channel over all numbers in `batches`, float64 (C,).

    The network runs in eval mode, and is left in the mode that it was in. Raises `ValueError` where there is no batch.
    """
    found: dict[str, _Moments] = {name: _Moments() for name in layers}

    def hook(moments: _Moments) -> Any:
        return lambda module, inputs, output: moments.add(output)

    handles = [network.module.get_submodule(name).register_forward_hook(hook(found[name])) for name in layers]
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                network.logits(batch)
    finally:
        for handle in handles:
            handle.remove()
        network.train(training)
    if any(moments.count == 0 for moments in found.values()):
        raise ValueError("there is no batch to measure on")
    return {name: (moments.mean, moments.variance) for name, moments in found.items()}


class _Moments:
    """Mean and sum of squared distances from it, merged batch by batch (Chan et al. 1979), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._distances = torch.zeros(())

    def add(self, output: Tensor) -> None:  # (N, C, ...)
        rows = output.detach().to(torch.float64).movedim(1, 0).flatten(1)  # (C, N ...)
        count, mean = rows.shape[1], rows.mean(1)
        distances = (rows - mean[:, None]).square().sum(1)
        if self.count == 0:
            self.count, self.mean, self._distances = count, mean, distances
            return
        total, delta = self.count + count, mean - self.mean
        self._distances = self._distances + distances + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        return self._distances / max(1, self.count - 1)


def _places(network: Network, only: Mapping[str, str] | None) -> dict[str, str]:
    found, left = insertable(network, outputs=only is not None)
    if only is None:
        if not found:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:MOST_TOLD])
            if len(left) > MOST_TOLD:
                reasons += f"; and {len(left) - MOST_TOLD} more layers"
            raise CutRefused(f"no layer can get a BatchNorm: {reasons or 'there is none'}")
        return {name: _unique(network, f"{name}_bn") for name in found}
    faults = [
        Fault(f"/layers/{name}", f"{name!r} cannot get a BatchNorm: {left.get(name, 'there is no such layer')}")
        for name in only
        if name not in found
    ]
    taken = {name for name, _ in network.module.named_modules()}
    faults += [Fault(f"/layers/{key}", f"the name {name!r} is taken") for key, name in only.items() if name in taken]
    if faults or not only:
        raise CutRefused("; ".join(fault.message for fault in faults) or "no layer is named", faults=faults)
    return dict(only)


def _unique(network: Network, name: str) -> str:
    taken = {known for known, _ in network.module.named_modules()}
    wanted, number = name, 2
    while wanted in taken:
        wanted, number = f"{name}_{number}", number + 1
    return wanted


def _insert(network: Network, layer: str, name: str, mean: Tensor, variance: Tensor) -> None:
    (node,) = nodes_of(network, layer)
    weight = network.module.get_submodule(layer).get_parameter("weight")
    channels = channels_of(network.module.get_submodule(layer))
    norm = CLASSES[len(node.meta["shape"])](channels, device=weight.device, dtype=weight.dtype)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((norm.running_var.to(torch.float64) + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean)
    norm.train(network.training)
    setattr(norm, INSERTED_BEHIND, layer)
    network.module.add_submodule(name, norm)
    with network.module.graph.inserting_after(node):
        made = network.module.graph.call_module(name, (node,))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def replay_insert(network: Network, entry: Mapping[str, Any]) -> Network:
    """`network` with the BatchNorms of the plan entry, mean 0 and variance 1. Raises `CutRefused` where it does not
    fit."""
    refuse_other_kinds(entry)
    places = _places(network, {str(layer): str(name) for layer, name in entry["layers"].items()})
    larger = network.clone()
    for layer, name in places.items():
        channels = channels_of(network.module.get_submodule(layer))
        _insert(larger, layer, name, torch.zeros(channels), torch.ones(channels))
    return renewed(larger)


# --- measuring afresh -------------------------------------------------------------------------------------------------


def recalibrate(network: Network, batches: Iterable[Tensor]) -> int:
    """Replaces running means and variances by their plain averages over `batches`, each (B, ...) of model input: after
    a cut the old ones belong to another network.

    Only BatchNorm layers are in training mode meanwhile; weights stay as they are. Returns how many layers were
    measured: 0, and nothing is run, where the network has none that keep statistics.
    """
    layers = [
        module for module in network.module.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not layers:
        return 0
    network.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's way to say: cumulative average
        layer.train()
    with torch.no_grad():
        for batch in batches:
            network.logits(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()
    return len(layers)


# --- looking at the graph ---------------------------------------------------------------------------------------------


def uses_of(network: Network) -> Counter[str]:
    return Counter(str(node.target) for node in network.module.graph.nodes if node.op == "call_module")


def nodes_of(network: Network, name: str) -> list[fx.Node]:
    return network.module.graph.find_nodes(op="call_module", target=name)


def maker_at(network: Network, node: fx.Node) -> nn.Module | None:
    if node.op != "call_module":
        return None
    layer = network.module.get_submodule(str(node.target))
    return layer if isinstance(layer, MAKERS) else None


def is_batch_norm(network: Network, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(network.module.get_submodule(str(node.target)), _BatchNorm)


def _makers_of_outputs(network: Network) -> set[fx.Node]:
    """The layers from which a way leads to an output past no other layer that makes channels."""
    found: set[fx.Node] = set()
    waiting, seen = list(network.output_nodes()), set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if maker_at(network, node) is not None:
            found.add(node)
        else:
            waiting += node.all_input_nodes
    return found


def refuse_other_kinds(entry: Mapping[str, Any]) -> None:
    if entry.get("kind") != "batch_norm":
        fault = Fault("/kind", f"unknown kind {entry.get('kind')!r}", "batch_norm")
        raise CutRefused(f"the plan entry is of an unknown kind {entry.get('kind')!r}", faults=[fault])


def renewed(network: Network) -> Network:
    """The same after surgery: code, shapes, and the network in front of a final softmax."""
    network.module.graph.lint()
    network.module.recompile()
    return Network(
        network.module, network.inputs, network.outputs, network.origin, network.input_shapes, network.grouped
    )
