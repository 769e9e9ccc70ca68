"""Channel groups: which channels of which layers must go together, and which may not go at all.

Found by one idea instead of a rule per pattern (DESIGN section 3): every activation carries integer channel ids; each
operator's rule passes them on (shape operators by running ATen on the ids), unites those that meet in an element-wise
operator or a normalisation, ties those inside a group of a grouped convolution, or freezes them. A class of united ids
is a *unit*: the smallest thing that can be removed. Units that are in the same layers, activations and constants, with
the same number of channels in each, make up a *channel group*: whichever of them go, all of these keep as much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, fx

from core.graph.ids import Booleans, Freeze, Integers, Propagation, compressed
from core.graph.network import Network
from core.graph.operators import MAKERS, form_of
from core.report import Frozen


@dataclass(frozen=True)
class LayerChannels:
    """Of each unit of a group, in order: its channels in `layer`, as many of each where it can be cut."""

    layer: str
    channels: list[tuple[int, ...]]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are cut unit by unit.

    `name` is that of the first producer, with "#2", "#3" ... where it is the first of several groups (a layer whose
    channels go different ways); names survive a cut that leaves a unit of every group. `width` is the number of units;
    unit u is removed from all of `producers` (output channels), `carriers` (normalisations) and `consumers` (input
    channels) at once. `always_kept` more units of the same layers are frozen and not among them. Where `cuttable` is
    False the units listed are the frozen ones.
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
    """`groups` in execution order of their first producers; `frozen` says what may not be cut, and why.

    They are of `network` as it was then: whoever changes it finds them anew.
    """

    groups: list[ChannelGroup]
    frozen: list[Frozen]
    analysis: Analysis = field(repr=False)
    network: Network = field(repr=False)

    def by_name(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.groups}


def channel_groups(network: Network) -> ChannelGroups:
    """Finds the channel groups of `network`. Time and memory grow about linearly with its size."""
    propagation = propagate(network)
    classes, frozen = propagation.resolve()
    makers = [name for name in propagation.layers if isinstance(propagation.modules[name], MAKERS)]
    makes = set(makers)
    group_of, unit_of, widths = _group(propagation, classes, frozen, makers)

    def channels(name: str, ids: Tensor) -> dict[int, list[tuple[int, ...]]]:
        return _by_unit(classes[ids.numpy()], group_of, unit_of, widths)

    producers: list[list[LayerChannels]] = [[] for _ in widths]
    carriers: list[list[LayerChannels]] = [[] for _ in widths]
    consumers: list[list[LayerChannels]] = [[] for _ in widths]
    for name, own in propagation.layers.items():
        made = producers if name in makes else carriers
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
    seen: Counter[str] = Counter()
    names = []
    for made_by in producers:
        first = made_by[0].layer
        seen[first] += 1
        names.append(first if seen[first] == 1 else f"{first}#{seen[first]}")  # no layer's name holds a "#"
    groups = [
        ChannelGroup(
            name=names[index],
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
    return ChannelGroups(groups, reasons, Analysis(propagation, classes, group_of, unit_of), network)


def propagate(network: Network, detached: Collection[fx.Node] = ()) -> Propagation:
    """Runs every node's channel rule, in execution order. What leaves a node in `detached` gets new channel ids: what
    they may be used for does not depend on where they come from."""
    p = Propagation(network.module, network.grouped)
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
        if node in detached:
            p.ids[node] = p.spread(p.fresh(node.meta["shape"][1]), node)
    return p


def _group(
    p: Propagation, classes: Integers, frozen: Booleans, makers: list[str]
) -> tuple[Integers, Integers, list[int]]:
    """Per class (indexed by its root id): its group, -1 for none, and its unit in the group, -1 for a kept one.

    Frozen classes count as kept beside one group of free classes with which they share a layer; where there is none,
    they are a group of their own.
    """
    if not makers:
        return np.full(len(classes), -1), np.full(len(classes), -1), []
    places = _places(p, classes)
    made = [np.unique(classes[p.layers[name].output.numpy()]) for name in makers]
    owned, layers = np.concatenate(made), np.repeat(np.arange(len(made)), [len(roots) for roots in made])
    order = np.lexsort((layers, owned))
    owned, layers = owned[order], layers[order]
    roots, starts = np.unique(owned, return_index=True)
    bounds = [*starts.tolist(), len(owned)]  # of a root's part of `layers`, the first of which is its first producer
    first, place = layers[starts], places[roots]

    free = np.flatnonzero(~frozen[roots])
    free = free[np.lexsort((roots[free], place[free], first[free]))]
    edges = np.flatnonzero((np.diff(first[free]) != 0) | (np.diff(place[free]) != 0)) + 1
    cells: dict[tuple[int, int], list[int]] = {}
    beside: dict[int, tuple[int, int]] = {}  # layer -> the first of the cells with channels of it
    for units in np.split(free, edges) if free.size else []:
        cell = int(first[units[0]]), int(place[units[0]])
        cells[cell] = roots[units].tolist()
        for layer in layers[bounds[units[0]] : bounds[units[0] + 1]].tolist():
            beside.setdefault(layer, cell)
    kept: dict[tuple[int, int], list[int]] = {}
    for index in np.flatnonzero(frozen[roots]).tolist():
        mine = layers[bounds[index] : bounds[index + 1]].tolist()
        found = next((beside[layer] for layer in mine if layer in beside), None)
        if found is not None:
            kept.setdefault(found, []).append(int(roots[index]))
        else:
            cells.setdefault((mine[0], 1), []).append(int(roots[index]))  # no place of free classes: those are < 0

    group_of = np.full(len(classes), -1)
    unit_of = np.full(len(classes), -1)
    widths = []
    for group, cell in enumerate(sorted(cells)):
        members = cells[cell]
        group_of[members] = group_of[kept.get(cell, [])] = group
        unit_of[members] = np.arange(len(members))
        widths.append(len(members))
    return group_of, unit_of, widths


def _places(p: Propagation, classes: Integers) -> Integers:
    """Per class a number that two classes share just where they are in the same activations, layers and constants,
    equally often in each.

    Each tensor of ids in turn gives new numbers to what it holds, one per old number and how often: an exact
    refinement, which no coincidence can spoil. What is in an earlier tensor has the smaller number, whichever channels
    it is of: the order outlasts cuts, and so do the names of groups.
    """
    places = np.zeros(len(classes), dtype=np.int64)
    least = 0
    layers = (ids for own in p.layers.values() for ids in (own.output, own.input) if ids is not None)
    tensors: dict[bytes, Integers] = {}  # most hold what one before holds, once all that goes together is one class
    for small in (*(small for _, small in p.views), *(compressed(ids)[0] for ids in layers)):
        held = classes[small.numpy()]
        tensors.setdefault(held.tobytes(), held)
    for held in reversed(tensors.values()):
        roots, times = np.unique(held, return_counts=True)
        _, found = np.unique(places[roots] * (times.max() + 1) + times, return_inverse=True)
        least -= len(roots)
        places[roots] = least + found
    return places


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
    whole = units >= 0
    for group in np.flatnonzero(np.bincount(groups[whole])).tolist():
        places = np.flatnonzero(whole & (groups == group))
        order = places[np.argsort(units[places], kind="stable")]
        times = np.bincount(units[places], minlength=widths[group])
        if (times == times[0]).all():
            found[group] = list(map(tuple, order.reshape(widths[group], -1).tolist()))
        else:  # frozen units
            found[group] = [tuple(part.tolist()) for part in np.split(order, times.cumsum()[:-1])]
    return found


def _frozen_report(p: Propagation, classes: Integers, makers: list[str]) -> list[Frozen]:
    """One entry per node that froze something, with the layers whose channels it holds."""
    is_frozen = np.zeros(len(classes), dtype=np.bool_)
    for freeze in p.freezes:
        is_frozen[classes[freeze.ids]] = True
    owners: dict[int, list[str]] = {}
    for name in makers:
        roots = classes[p.layers[name].output.numpy()]
        for root in np.unique(roots[is_frozen[roots]]):
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
