"""Removing channels: from a network and what to remove to a smaller network and a plan that can be replayed.

A plan entry is {"op": "cut", "layers": {layer: [removed output channels]}}, channels counted in the network that the
entry is applied to. It is JSON, readable, and enough: what else goes (BatchNorm, inputs of later layers, paddings,
reshapes) follows from the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from core.errors import CutRefused, Fault
from core.graph.groups import ChannelGroups, channel_groups
from core.graph.ids import Booleans, compressed
from core.graph.network import Network, propagate_shapes
from core.graph.operators import form_of
from core.graph.operators.form import Survivors

Removal = Mapping[str, list[int]]
"""Group name -> sorted indices of the units to remove."""

Slices = dict[str, list[Tensor | None]]
"""Name in the state dict -> per dimension, the indices that stay (None = all)."""


def cut(network: Network, removal: Removal) -> tuple[Network, dict[str, Any]]:
    """A new network without the units in `removal`, and the plan entry. `network` is left as it is.

    Raises `CutRefused` with every fault: unknown group, index out of range or twice, frozen group, a layer left empty,
    nothing to remove.
    """
    groups = channel_groups(network)
    removed = removed_ids(groups, removal)
    layers: dict[str, list[int]] = {}
    for name in network.layers():
        layer = network.module.get_submodule(name)
        output = groups.analysis.propagation.layers[name].output.numpy()
        if not isinstance(layer, _BATCH_NORMS) and removed[output].any():
            layers[name] = np.flatnonzero(removed[output]).tolist()
    return _without(network, groups, removed), {"op": "cut", "layers": layers}


def replay(network: Network, plan: list[dict[str, Any]]) -> Network:
    """`network` after every cut of `plan`, weights cut along. Raises `CutRefused` where an entry does not fit it."""
    for index, entry in enumerate(plan):
        if entry.get("op") != "cut":
            fault = Fault(f"/{index}/op", f"unknown operation {entry.get('op')!r}", "cut")
            raise CutRefused(f"plan entry {index} cannot be replayed", faults=[fault])
        network, done = cut(network, removal_of(network, entry))
        if done["layers"] != {name: sorted(channels) for name, channels in entry["layers"].items()}:
            raise CutRefused(
                f"plan entry {index} does not fit this network: other channels go with those it names",
                faults=[Fault(f"/{index}/layers", "not a union of whole units", str(done["layers"]))],
            )
    return network


def removal_of(network: Network, entry: Mapping[str, Any]) -> dict[str, list[int]]:
    """A plan entry as units of `network`'s groups. Raises `CutRefused` for a layer or channel that is not there."""
    removal: dict[str, set[int]] = {}
    faults = []
    wanted = {str(name): {int(channel) for channel in channels} for name, channels in entry["layers"].items()}
    known: dict[str, set[int]] = {}
    for group in channel_groups(network).groups:
        for producer in group.producers:
            for unit, channels in enumerate(producer.channels):
                known.setdefault(producer.layer, set()).update(channels)
                if wanted.get(producer.layer, set()).intersection(channels):
                    removal.setdefault(group.name, set()).add(unit)
    for name in wanted:
        for channel in sorted(wanted[name] - known.get(name, set())):
            faults.append(Fault(f"/layers/{name}", f"channel {channel} of {name!r} is not there or is frozen"))
    if faults:
        raise CutRefused("the plan entry does not fit this network", faults=faults)
    return {name: sorted(units) for name, units in removal.items()}


def channel_map(network: Network, plan: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Per producing layer of the original `network`: the output channels that are left after `plan`, ascending."""
    left = {}
    for name, layer in network.layers().items():
        if not isinstance(layer, _BATCH_NORMS):
            left[name] = np.arange(layer.get_parameter("weight").shape[0])
    for entry in plan:
        for name, channels in entry.get("layers", {}).items():
            left[name] = np.delete(left[name], channels)
    return {name: channels.tolist() for name, channels in left.items()}


def slices(network: Network, removal: Removal) -> Slices:
    """What stays of each parameter and buffer, for whatever is shaped like it (momentum, second moments, masks).

    Tensors that lose nothing are not in it. Apply with `sliced`. Raises `CutRefused` as `cut` does.
    """
    groups = channel_groups(network)
    return _slices(network, groups, removed_ids(groups, removal))


def sliced(tensor: Tensor, kept: list[Tensor | None]) -> Tensor:
    """A contiguous copy of `tensor` with the indices `kept` along each dimension."""
    for dim, indices in enumerate(kept):
        if indices is not None:
            tensor = tensor.index_select(dim, indices.to(tensor.device))
    return tensor.contiguous()


def removed_ids(groups: ChannelGroups, removal: Removal) -> Booleans:
    """Of every id, whether `removal` removes it. Raises `CutRefused` with every fault."""
    analysis = groups.analysis
    known = groups.by_name()
    numbers = {group.name: index for index, group in enumerate(groups.groups)}
    gone = np.zeros(len(analysis.classes), dtype=np.bool_)
    faults = []
    for name, units in removal.items():
        group = known.get(name)
        if group is None:
            faults.append(Fault(f"/{name}", f"there is no channel group {name!r}", f"one of {', '.join(known)}"))
            continue
        wrong = sorted({unit for unit in units if not 0 <= unit < group.width})
        if not group.cuttable:
            reasons = {item.reason for item in groups.frozen if any(p.layer in item.layers for p in group.producers)}
            faults.append(Fault(f"/{name}", f"the group {name!r} is frozen: {'; '.join(sorted(reasons))}"))
        elif wrong:
            faults.append(Fault(f"/{name}", f"units {wrong} are not in the group", f"0 to {group.width - 1}"))
        elif len(set(units)) != len(units):
            faults.append(Fault(f"/{name}", "a unit is named twice", "each unit once"))
        else:
            chosen = np.isin(analysis.unit_of, units) & (analysis.group_of == numbers[name])
            gone |= chosen[analysis.classes]
            empty = [
                p.layer for p in group.producers if gone[analysis.propagation.layers[p.layer].output.numpy()].all()
            ]
            if empty:
                message = f"nothing would be left of {', '.join(empty)}"
                faults.append(Fault(f"/{name}", message, "at least one channel of each layer stays"))
    if not faults and not gone.any():
        faults.append(Fault("", "there is nothing to remove", "at least one unit"))
    if not faults:
        empty = [node.name for node, ids in analysis.propagation.ids.items() if _all_gone(gone, ids)]
        if empty:  # a slice of a group's channels that loses all of them
            message = f"nothing would be left of {', '.join(empty)}"
            faults.append(Fault("", message, "at least one channel of each activation stays"))
    if faults:
        raise CutRefused("; ".join(fault.message for fault in faults), faults=faults)
    return gone


def _all_gone(gone: Booleans, ids: Tensor) -> bool:
    (small,) = compressed(ids)
    return bool(gone[small.numpy()].all())


# --- the cut itself --------------------------------------------------------------------------------------------------

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class _LayerCut:
    """Which of a layer's output and input channels stay."""

    output: Booleans
    input: Booleans | None

    def slices(self, layer: nn.Module) -> dict[str, list[Booleans | None]]:
        """Per tensor of the layer, which indices stay along each dimension."""
        if isinstance(layer, _BATCH_NORMS):
            return {name: [self.output] for name in ("weight", "bias", "running_mean", "running_var")}
        # the second dimension of a grouped convolution's weight counts inside a group; whole groups go
        grouped = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups > 1
        return {"weight": [self.output, None if grouped else self.input], "bias": [self.output]}

    def resize(self, layer: nn.Module) -> None:
        """The attributes that say sizes."""
        output = int(self.output.sum())
        if isinstance(layer, _BATCH_NORMS):
            layer.num_features = output
            return
        assert self.input is not None
        inputs = int(self.input.sum())
        if isinstance(layer, nn.Linear):
            layer.in_features, layer.out_features = inputs, output
            return
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if layer.groups > 1:
            layer.groups = layer.groups * inputs // layer.in_channels
        layer.in_channels, layer.out_channels = inputs, output


def _layer_cuts(network: Network, groups: ChannelGroups, removed: Booleans) -> dict[str, _LayerCut]:
    cuts = {}
    for name in network.layers():
        own = groups.analysis.propagation.layers[name]
        keeps = None if own.input is None else ~removed[own.input.numpy()]
        cuts[name] = _LayerCut(~removed[own.output.numpy()], keeps)
    return cuts


def _slices(network: Network, groups: ChannelGroups, removed: Booleans) -> Slices:
    found: Slices = {}
    for name, layer_cut in _layer_cuts(network, groups, removed).items():
        layer = network.module.get_submodule(name)
        for tensor, dims in layer_cut.slices(layer).items():
            if getattr(layer, tensor) is not None:
                _note(found, f"{name}.{tensor}", dims)
    for name, ids in groups.analysis.propagation.constants.items():
        (small,) = compressed(ids)
        gone = torch.from_numpy(removed)[small]
        others = [tuple(other for other in range(gone.dim()) if other != dim) for dim in range(gone.dim())]
        _note(found, name, [~gone.all(dim=dims).numpy() if dims else ~gone.numpy() for dims in others])
    return found


def _note(found: Slices, name: str, dims: list[Booleans | None]) -> None:
    kept = [None if keeps is None or keeps.all() else torch.from_numpy(np.flatnonzero(keeps)) for keeps in dims]
    if any(indices is not None for indices in kept):
        found[name] = kept


def _without(network: Network, groups: ChannelGroups, removed: Booleans) -> Network:
    smaller = network.clone()
    for name, kept in _slices(network, groups, removed).items():
        path, _, attribute = name.rpartition(".")
        owner = smaller.module.get_submodule(path)
        old = getattr(owner, attribute)
        new = sliced(old.detach(), kept)
        setattr(owner, attribute, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    for name, layer_cut in _layer_cuts(network, groups, removed).items():
        layer_cut.resize(smaller.module.get_submodule(name))
    survivors = Survivors(removed, groups.analysis.propagation.ids)
    for old_node, new_node in zip(network.module.graph.nodes, smaller.module.graph.nodes, strict=True):
        form = form_of(network.module, old_node) if old_node.op == "call_function" else None
        if form is not None and form.resize is not None:
            form.resize(survivors, old_node, new_node)
    smaller.module.recompile()
    propagate_shapes(smaller.module, smaller.input_shapes)
    _check_sizes(network, smaller, survivors)
    return smaller


def _check_sizes(network: Network, smaller: Network, survivors: Survivors) -> None:
    """Every activation has the shape that its ids say: a defect of a rule shows here, not in the field."""
    pairs: list[tuple[fx.Node, fx.Node]] = list(
        zip(network.module.graph.nodes, smaller.module.graph.nodes, strict=True)
    )
    for old, new in pairs:
        if old.op != "output":
            expected = tuple(int(survivors.keeps(old, dim).sum()) for dim in range(len(old.meta["shape"])))
            if new.meta["shape"] != expected:
                raise CutRefused(f"node {old.name!r} has shape {new.meta['shape']} after the cut, not {expected}")
