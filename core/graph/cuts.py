"""Removing channels: from a network and what to remove to a smaller network and a plan that can be replayed.

A plan entry is {"op": "cut", "layers": {layer: [removed output channels]}}, channels counted in the network that the
entry is applied to; "inside" lists the grouped convolutions that lose channels inside their groups, where there are
any. It is JSON, readable, and enough: what else goes (BatchNorm, inputs of later layers, paddings, reshapes) follows
from the graph. `core/graph/plans.py` replays whole plans.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from core.errors import CutRefused, Fault
from core.graph.groups import ChannelGroups, channel_groups
from core.graph.ids import Booleans, Propagation, compressed
from core.graph.network import Network
from core.graph.operators import FORMS, MAKERS
from core.graph.operators.form import LayerCut, Survivors
from core.graph.shapes import propagate_shapes

Removal = Mapping[str, list[int]]
"""Group name -> sorted indices of the units to remove."""

Slices = dict[str, list[Tensor | None]]
"""Name in the state dict -> per dimension, the indices that stay (None = all)."""

CHUNK_BYTES = 1 << 20


def cut(network: Network, removal: Removal, groups: ChannelGroups | None = None) -> tuple[Network, dict[str, Any]]:
    """A new network without the units in `removal`, and the plan entry. `network` is left as it is.

    `groups` are its channel groups, where they are known already.

    Raises `CutRefused` with every fault: unknown group, index out of range or twice, frozen group, a layer left empty,
    nothing to remove.
    """
    groups = channel_groups(network) if groups is None else groups
    removed = removed_ids(groups, removal)
    layers: dict[str, list[int]] = {}
    for name, own in groups.analysis.propagation.layers.items():
        gone = removed[own.output.numpy()]
        if gone.any() and isinstance(groups.analysis.propagation.modules[name], MAKERS):
            layers[name] = np.flatnonzero(gone).tolist()
    entry: dict[str, Any] = {"op": "cut", "layers": layers}
    inside = sorted(name for name, way in network.grouped.items() if way == "inside")
    return _without(network, groups, removed), {**entry, "inside": inside} if inside else entry


def replay_cut(network: Network, entry: Mapping[str, Any]) -> Network:
    """`network` after the plan entry, weights cut along. Raises `CutRefused` where it does not fit it."""
    inside = entry.get("inside", [])
    network = copy.copy(network)
    network.grouped = {name: "inside" if name in inside else "whole" for name in network.grouped}
    smaller, done = cut(network, removal_of(network, entry))
    if done["layers"] != {name: sorted(channels) for name, channels in entry["layers"].items()}:
        raise CutRefused(
            "the plan entry does not fit this network: other channels go with those it names",
            faults=[Fault("/layers", "not a union of whole units", str(done["layers"]))],
        )
    return smaller


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


def slices(network: Network, removal: Removal) -> Slices:
    """What stays of each parameter and buffer, for whatever is shaped like it (momentum, second moments, masks).

    Tensors that lose nothing are not in it. Apply with `sliced`. Raises `CutRefused` as `cut` does.
    """
    groups = channel_groups(network)
    return _slices(network.module, groups.analysis.propagation, removed_ids(groups, removal))


def sliced(tensor: Tensor, kept: list[Tensor | None]) -> Tensor:
    """A contiguous copy of `tensor` with the indices `kept` along each dimension."""
    cut_along = [dim for dim, indices in enumerate(kept) if indices is not None]
    if cut_along == [0, 1] and _is_wide(tensor):
        return _gathered(tensor, *(indices for indices in kept[:2] if indices is not None))
    for dim, indices in enumerate(kept):
        if indices is not None:
            tensor = tensor.index_select(dim, indices.to(tensor.device))
    return tensor.contiguous()


def _is_wide(tensor: Tensor) -> bool:
    ordinary = tensor.is_cpu and tensor.is_contiguous() and tensor.dtype in (torch.float32, torch.float64)
    return ordinary and tensor.numel() * tensor.element_size() > CHUNK_BYTES


def _gathered(tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`sliced` along the first two dimensions, so many rows at a time that what is copied twice stays in the
    processor's cache: a fifth of the time for the first layer behind VGG's convolutions (411 MB)."""
    whole, across = tensor.detach().numpy(), columns.numpy()
    part = np.empty((len(rows), len(columns), *whole.shape[2:]), whole.dtype)
    step = max(1, CHUNK_BYTES // whole[0].nbytes)
    for begin in range(0, len(rows), step):
        some = whole[rows[begin : begin + step].numpy()]
        np.take(some, across, axis=1, out=part[begin : begin + step], mode="clip")  # "raise" would copy once more
    return torch.from_numpy(part)


def removed_ids(groups: ChannelGroups, removal: Removal) -> Booleans:
    """Of every id, whether `removal` removes it. Raises `CutRefused` with every fault."""
    analysis = groups.analysis
    known = groups.by_name()
    members = np.flatnonzero(analysis.group_of >= 0)
    members = members[np.argsort(analysis.group_of[members], kind="stable")]
    bounds = np.searchsorted(analysis.group_of[members], np.arange(len(groups.groups) + 1))
    roots_of = {group.name: members[bounds[index] : bounds[index + 1]] for index, group in enumerate(groups.groups)}
    gone = np.zeros(len(analysis.classes), dtype=np.bool_)  # of classes, by their roots
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
            roots = roots_of[name]
            gone[roots[np.isin(analysis.unit_of[roots], units)]] = True
            made = {p.layer: analysis.propagation.layers[p.layer].output.numpy() for p in group.producers}
            empty = [layer for layer, ids in made.items() if gone[analysis.classes[ids]].all()]
            if empty:
                message = f"nothing would be left of {', '.join(empty)}"
                faults.append(Fault(f"/{name}", message, "at least one channel of each layer stays"))
    if not faults and not gone.any():
        faults.append(Fault("", "there is nothing to remove", "at least one unit"))
    removed = gone[analysis.classes]
    if not faults:
        empty = _empty(removed, analysis.propagation)
        if empty:  # a slice of a group's channels that loses all of them
            message = f"nothing would be left of {', '.join(empty)}"
            faults.append(Fault("", message, "at least one channel of each activation stays"))
    if faults:
        raise CutRefused("; ".join(fault.message for fault in faults), faults=faults)
    return removed


def _empty(removed: Booleans, propagation: Propagation) -> list[str]:
    """The activations of which nothing is left."""
    return [name for names, small in propagation.views if removed[small.numpy()].all() for name in names]


# --- the cut itself --------------------------------------------------------------------------------------------------


def _slices(module: fx.GraphModule, propagation: Propagation, removed: Booleans) -> Slices:
    found: Slices = {}
    used = {str(node.target) for node in module.graph.nodes if node.op in ("call_module", "get_attr")}
    layers = dict(module.named_modules())
    for name, own in propagation.layers.items():
        if name in used:
            layer = layers[name]
            for tensor, dims in LayerCut(own, removed).slices().items():
                if getattr(layer, tensor, None) is not None:
                    _note(found, f"{name}.{tensor}", dims)
    for name, ids in propagation.constants.items():
        if name in used:
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
    propagation = groups.analysis.propagation
    parts = _sliced_tensors(network.module, propagation, removed)  # not copied whole first: that would take longest
    layers = propagation.modules
    smaller = network.clone({id(_tensor(layers, name)): part for name, part in parts.items()})
    nodes = dict(zip(network.module.graph.nodes, smaller.module.graph.nodes, strict=True))
    _resize(smaller, nodes, propagation, removed)
    return smaller


def take_out(smaller: Network, nodes: Mapping[fx.Node, fx.Node], propagation: Propagation, removed: Booleans) -> None:
    """Removes the ids `removed` of `propagation` from `smaller`, in place: a copy of the network that was propagated,
    or of a part of it. `nodes` maps the nodes that were propagated to those of the copy, where they are in it.

    Raises `CutRefused` where a node does not get the shape that its ids say.
    """
    for name, part in _sliced_tensors(smaller.module, propagation, removed).items():
        path, _, attribute = name.rpartition(".")
        setattr(smaller.module.get_submodule(path), attribute, part)
    _resize(smaller, nodes, propagation, removed)


def _tensor(layers: Mapping[str, nn.Module], name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(layers[path], attribute)
    return tensor


def _sliced_tensors(module: fx.GraphModule, propagation: Propagation, removed: Booleans) -> dict[str, Tensor]:
    """What is left of each parameter and buffer that loses something."""
    found: dict[str, Tensor] = {}
    layers = dict(module.named_modules())
    for name, kept in _slices(module, propagation, removed).items():
        old = _tensor(layers, name)
        part = sliced(old.detach(), kept)
        found[name] = nn.Parameter(part, old.requires_grad) if isinstance(old, nn.Parameter) else part
    return found


def _resize(smaller: Network, nodes: Mapping[fx.Node, fx.Node], propagation: Propagation, removed: Booleans) -> None:
    """Sizes in the arguments of nodes and in the attributes of layers; then the shapes, which are checked."""
    survivors = Survivors(removed, propagation.ids)
    layers = dict(smaller.module.named_modules())
    resized = set()
    moved = False
    for old_node, new_node in nodes.items():
        key = type(layers[str(new_node.target)]) if new_node.op == "call_module" else new_node.target
        form = FORMS.get(key)
        if form is None:
            continue
        if form.resize is not None:
            form.resize(survivors, old_node, new_node)
            moved = True
        own = propagation.layers.get(str(old_node.target))
        if form.resize_layer is not None and own is not None and old_node.target not in resized:
            resized.add(old_node.target)
            form.resize_layer(layers[str(new_node.target)], LayerCut(own, removed))
    if moved:
        smaller.module.recompile()
    propagate_shapes(smaller.module, smaller.input_shapes, prove_batch=False)  # as free as it was
    _check_sizes(nodes, survivors)


def _check_sizes(nodes: Mapping[fx.Node, fx.Node], survivors: Survivors) -> None:
    """Every activation has the shape that its ids say: a defect of a rule shows here, not in the field."""
    for old, new in nodes.items():
        if old.op != "output":
            expected = survivors.shape(old)
            if new.meta["shape"] != expected:
                raise CutRefused(f"node {old.name!r} has shape {new.meta['shape']} after the cut, not {expected}")
