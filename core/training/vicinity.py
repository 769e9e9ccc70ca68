"""Local training: only what lies near a wound is trained, `left` units in front of it and `right` behind it.

Velici 2022, section 6.1.6: the damage of a removed block is local, and the network can adjust the weights near it. In
phased local training the vicinity grows until it is the whole network.

A unit is an innermost residual or multi-branch block (`core.graph.blocks`). What lies in no block is a unit of its own,
layer by layer, each with the normalisation behind it: the stem, a transition, the classifier; so in a network without
blocks every layer is one. Units stand in execution order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from core.graph.blocks import find_blocks
from core.graph.network import Network
from core.graph.operators import MAKERS
from core.training_settings import Local

Units = Sequence[Sequence[str]]
"""Of each unit the names of its layers, and of parameters that belong to no layer (a class token)."""


def units_of(network: Network) -> list[list[str]]:
    """The units of `network` in execution order: each parametrised layer and each bare parameter is in one of them."""
    blocks = [block for block in find_blocks(network) if block.kind != "layer"]
    around = {block.inside for block in blocks}
    owner = {layer: f"block {block.name}" for block in blocks if block.name not in around for layer in block.layers}
    layers = network.layers()
    for node in network.module.graph.find_nodes(op="call_module"):
        name = str(node.target)
        if name in layers and name not in owner:
            in_front = None if isinstance(layers[name], MAKERS) else _layer_in_front(node, owner)
            owner[name] = name if in_front is None else owner[in_front]
    units: dict[str, list[str]] = {owner[name]: [] for name in layers}
    for name in layers:
        units[owner[name]].append(name)
    bare = {name for name, _ in network.named_parameters()}
    for node in network.module.graph.nodes:
        if node.op == "get_attr" and str(node.target) in bare and str(node.target) not in owner:
            found = (_layer_in_front(user, owner) for user in node.users)
            in_front = next((name for name in found if name is not None), next(iter(layers)))
            owner[str(node.target)] = owner[in_front]
            units[owner[in_front]].append(str(node.target))
    return list(units.values())


def vicinity(network: Network, wound: Collection[str], left: int, right: int, units: Units | None = None) -> list[str]:
    """Names of the parameters of `network` to train, in its order: of the units that the wound is in, of `left` units
    in front of each of them and of `right` behind it; of all where nothing was wounded.

    Args:
        wound: names of layers that were changed or taken out; those that no unit holds are no wound.
        units: of the network before layers were taken out, where some were; a unit of which nothing is left is not
            counted. What `network` has beyond these units is new, and trained.
    """
    reach = _reach(network, wound, left, right, units_of(network) if units is None else units)
    return [name for name, grown in reach.items() if grown == 0]


def changed_layers(before: Network, after: Network) -> list[str]:
    """The layers of `before` that are not in `after`, or whose parameters have another shape there: what lost channels,
    and what read them."""
    left = {name: [item.shape for item in layer.parameters()] for name, layer in after.layers().items()}
    shapes = {name: [item.shape for item in layer.parameters()] for name, layer in before.layers().items()}
    return [name for name, found in shapes.items() if left.get(name) != found]


@dataclass(frozen=True)
class Vicinity:
    """What a local training trains, epoch by epoch. See `vicinity` for the arguments."""

    network: Network
    wound: Collection[str]
    local: Local
    units: Units | None = None

    def at(self, epoch: int, epochs: int) -> list[str]:
        """Names of the parameters that epoch `epoch` (from 1) of `epochs` trains: never fewer than an earlier one."""
        grown = 0
        if self.local.grow is not None:
            until = self.local.grow * (1 if isinstance(self.local.grow, int) else epochs)
            grown = int(self._furthest * min(1.0, (epoch - 1) / until))
        return [name for name, far in self._reached.items() if far <= grown]

    @cached_property
    def _reached(self) -> Mapping[str, int]:
        units = units_of(self.network) if self.units is None else self.units
        return _reach(self.network, self.wound, self.local.left, self.local.right, units)

    @cached_property
    def _furthest(self) -> int:
        return max(self._reached.values())


def _reach(network: Network, wound: Collection[str], left: int, right: int, units: Units) -> dict[str, int]:
    """By how many units the vicinity must grow on either side to hold each parameter of `network`."""
    unit_of = {item: number for number, unit in enumerate(units) for item in unit}
    place = {name: unit_of.get(name, unit_of.get(name.rpartition(".")[0])) for name, _ in network.named_parameters()}
    there = sorted({number for number in place.values() if number is not None})
    hurt = sorted({unit_of[item] for item in wound if item in unit_of})

    def distance(unit: int) -> int:
        if unit in hurt or not hurt:
            return 0
        found = []
        if behind := [item for item in hurt if item < unit]:
            found.append(bisect_right(there, unit) - bisect_right(there, behind[-1]) - right)
        if in_front := [item for item in hurt if item > unit]:
            found.append(bisect_left(there, in_front[0]) - bisect_left(there, unit) - left)
        return max(0, min(found))

    distances = {unit: distance(unit) for unit in there}
    return {name: 0 if unit is None else distances[unit] for name, unit in place.items()}


def _layer_in_front(node: fx.Node, known: Collection[str]) -> str | None:
    """The nearest of the `known` layers that `node` is computed from."""
    seen, waiting = {node}, list(node.all_input_nodes)
    while waiting:
        item = waiting.pop(0)
        if item.op == "call_module" and str(item.target) in known:
            return str(item.target)
        waiting += [other for other in item.all_input_nodes if other not in seen]
        seen.update(item.all_input_nodes)
    return None
