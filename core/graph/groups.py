"""Channel groups: which channels of which layers must go together, and which may not go at all.

Found by one idea instead of a rule per pattern (DESIGN section 3): every activation carries integer channel ids; each
operator's rule passes them on (shape operators by running ATen on the ids), unites those that meet in an element-wise
operator or a normalisation, ties those inside a group of a grouped convolution, or freezes them. A class of united ids
is a *unit*: the smallest thing that can be removed. Units whose layers are the same make up a *channel group*.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from torch import Tensor, nn

from core.graph.ids import Booleans, Freeze, Integers, Propagation, components
from core.graph.network import Network
from core.graph.operators import form_of
from core.report import Frozen

PRODUCERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that make channels. BatchNorm has one parameter slice per channel too, but only carries what it is given."""


@dataclass(frozen=True)
class LayerChannels:
    """Of each unit of a group, in order: its channels in `layer` (none where the layer has no part in a unit)."""

    layer: str
    channels: list[tuple[int, ...]]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are cut unit by unit.

    `width` is the number of units; unit u is removed from all of `producers` (output channels), `carriers` (BatchNorms)
    and `consumers` (input channels) at once. `always_kept` more units of the same layers are frozen and not among them.
    Where `cuttable` is False the units listed are the frozen ones.
    """

    name: str
    width: int
    producers: tuple[LayerChannels, ...]
    carriers: tuple[LayerChannels, ...]
    consumers: tuple[LayerChannels, ...]
    cuttable: bool
    always_kept: int = 0


@dataclass(frozen=True)
class Analysis:
    """What a cut needs: ids of every activation, layer and constant, the class of each id, and each class's place."""

    propagation: Propagation
    classes: Integers
    group_of: Integers = field(repr=False)
    unit_of: Integers = field(repr=False)


@dataclass(frozen=True)
class ChannelGroups:
    """`groups` in execution order of their first producers; `frozen` says what may not be cut, and why."""

    groups: list[ChannelGroup]
    frozen: list[Frozen]
    analysis: Analysis = field(repr=False)

    def by_name(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.groups}


def channel_groups(network: Network) -> ChannelGroups:
    """Finds the channel groups of `network`. Time and memory grow about linearly with its size."""
    propagation = propagate(network)
    classes, frozen = propagation.resolve()
    layers = network.layers()
    makers = [name for name, layer in layers.items() if isinstance(layer, PRODUCERS)]
    group_of, unit_of, widths = _group(propagation, classes, frozen, makers)

    def channels(name: str, ids: Tensor) -> dict[int, list[tuple[int, ...]]]:
        return _by_unit(classes[ids.numpy()], group_of, unit_of, widths)

    producers: list[list[LayerChannels]] = [[] for _ in widths]
    carriers: list[list[LayerChannels]] = [[] for _ in widths]
    consumers: list[list[LayerChannels]] = [[] for _ in widths]
    for name in layers:
        own = propagation.layers[name]
        made = producers if name in makers else carriers
        for group, found in channels(name, own.output).items():
            made[group].append(LayerChannels(name, found))
        if own.input is not None:
            for group, found in channels(name, own.input).items():
                consumers[group].append(LayerChannels(name, found))

    cuttable = np.zeros(len(widths), dtype=np.bool_)
    kept = np.zeros(len(widths), dtype=np.int64)
    roots = np.flatnonzero((classes == np.arange(len(classes))) & (group_of >= 0))
    cuttable[group_of[roots[unit_of[roots] >= 0]]] = True
    cuttable &= ~_only_frozen(group_of, roots, frozen, len(widths))
    np.add.at(kept, group_of[roots[frozen[roots]]], 1)
    groups = [
        ChannelGroup(
            name=producers[index][0].layer,
            width=width,
            producers=tuple(producers[index]),
            carriers=tuple(carriers[index]),
            consumers=tuple(consumers[index]),
            cuttable=bool(cuttable[index]),
            always_kept=int(kept[index]) if cuttable[index] else 0,
        )
        for index, width in enumerate(widths)
    ]
    reasons = _frozen_report(propagation, classes, makers)
    return ChannelGroups(groups, reasons, Analysis(propagation, classes, group_of, unit_of))


def propagate(network: Network) -> Propagation:
    """Runs every node's channel rule, in execution order."""
    p = Propagation(network.module)
    for node in network.module.graph.nodes:
        if node.op == "output":
            for value in network.output_nodes():
                p.freeze(p.ids[value], value, "the channels of a model output stay", operator="output")
        elif node.op == "placeholder":
            p.ids[node] = p.spread(p.fresh(node.meta["shape"][1]), node)
            p.freeze(p.ids[node], node, "the channels of a model input stay", operator="input")
        elif node.op == "get_attr":
            p.ids[node] = p.constants[str(node.target)] = p.fresh(*node.meta["shape"])
        else:
            form = form_of(network.module, node)
            if form is None:
                reach = [p.ids[item] for item in node.all_input_nodes]
                p.ids[node] = p.frozen_result(reach, node, "the operator is not on the list in core/graph/operators")
            else:
                p.ids[node] = form.rule(p, node)
    return p


def _group(
    p: Propagation, classes: Integers, frozen: Booleans, makers: list[str]
) -> tuple[Integers, Integers, list[int]]:
    """Per class (indexed by its root id): its group, -1 for none, and its unit in the group, -1 for a kept one."""
    left, right, starts = [], [], []
    for name in makers:
        roots = classes[p.layers[name].output.numpy()]
        starts.append(roots[0])
        left.append(roots[1:])
        right.append(np.broadcast_to(roots[:1], roots[1:].shape))
    linked = components(len(classes), left, right)
    group_of = np.full(len(classes), -1)
    unit_of = np.full(len(classes), -1)
    numbers: dict[int, int] = {}
    for start in starts:
        numbers.setdefault(int(linked[start]), len(numbers))
    made = [classes[p.layers[name].output.numpy()] for name in makers]
    own: Integers = np.unique(np.concatenate(made)) if made else np.empty(0, dtype=np.int64)
    members: list[list[int]] = [[] for _ in numbers]
    for root in own:
        members[numbers[int(linked[root])]].append(int(root))
    widths = []
    for group, found in enumerate(members):
        roots = np.array(found)
        free = roots[~frozen[roots]]
        units = free if len(free) else roots
        group_of[roots] = group
        unit_of[units] = np.arange(len(units))
        widths.append(len(units))
    return group_of, unit_of, widths


def _only_frozen(group_of: Integers, roots: Integers, frozen: Booleans, count: int) -> Booleans:
    free = np.zeros(count, dtype=np.bool_)
    free[group_of[roots[~frozen[roots]]]] = True
    return np.asarray(~free)


def _by_unit(
    roots: Integers, group_of: Integers, unit_of: Integers, widths: list[int]
) -> dict[int, list[tuple[int, ...]]]:
    """Of a layer's channels, given by their classes: group -> per unit, the channels' indices."""
    found: dict[int, list[tuple[int, ...]]] = {}
    groups, units = group_of[roots], unit_of[roots]
    for group in np.unique(groups[units >= 0]):
        places = np.flatnonzero((groups == group) & (units >= 0))
        order = places[np.argsort(units[places], kind="stable")]
        bounds = np.searchsorted(units[order], np.arange(widths[group] + 1))
        indices = order.tolist()
        found[int(group)] = [tuple(indices[a:b]) for a, b in pairwise(bounds)]
    return found


def _frozen_report(p: Propagation, classes: Integers, makers: list[str]) -> list[Frozen]:
    """One entry per node that froze something, with the layers whose channels it holds."""
    owners: dict[int, list[str]] = {}
    for name in makers:
        for root in np.unique(classes[p.layers[name].output.numpy()]):
            owners.setdefault(int(root), []).append(name)
    position = {name: index for index, name in enumerate(makers)}
    found: dict[tuple[str, str, str], set[str]] = {}
    for freeze in p.freezes:
        key = (freeze.operator, freeze.node, freeze.reason)
        found.setdefault(key, set()).update(_layers(freeze, classes, owners))
    return [
        Frozen(operator=operator, node=node, layers=sorted(layers, key=position.__getitem__), reason=reason)
        for (operator, node, reason), layers in found.items()
        if layers
    ]


def _layers(freeze: Freeze, classes: Integers, owners: dict[int, list[str]]) -> Iterable[str]:
    for root in np.unique(classes[freeze.ids]):
        yield from owners.get(int(root), [])
