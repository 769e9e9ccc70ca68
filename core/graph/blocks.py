"""Blocks, branches and plain layers: what can be taken out of a network as a whole. Found by dominators, never by name.

A *residual block* is the region between a fork and the `add` where its two paths meet: the fork is the immediate
dominator of the `add`, the paths share no node, and all that the residual path makes goes into the `add`. The shortcut
is the path with fewer layers: none of its own (the fork itself, or what only pools, pads or slices it), or one, a
projection. Two paths with as many layers are parallel branches that are added, no block; nor is an `add` whose
residual path has no layer (the two halves of a rotary embedding, say), and a gate is no block: it is multiplied on.
Blocks may lie in each other: a long skip connection over a whole body is a block around its blocks.

A *multi-branch block* is the region between a fork and the `cat` along the channels where its branches meet, at least
two of them with layers of their own; operands that share nodes are one branch. So DenseNet's concatenations are not
blocks: one of the two things that meet there is the input itself, and what a dense layer adds are channels, which go by
cuts.

A *plain layer* is a convolution or linear layer, with the normalisation and the activation behind it, whose input and
output have the same shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx

from core.graph.block_names import below, block_names, common_path
from core.graph.dominators import NOWHERE, Flow, flow
from core.graph.ids import argument, operator_name
from core.graph.network import Network
from core.graph.operators import MAKERS, form_of

aten = torch.ops.aten

Kind = Literal["residual", "branches", "layer"]
Shortcut = Literal["identity", "projection", "resampled"]
"""The fork itself; a path with weights; or one without (a pooling, zero channels, a slice)."""

ACTIVATIONS = frozenset(
    {
        aten.relu.default, aten.leaky_relu.default, aten.sigmoid.default, aten.tanh.default, aten.hardswish.default,
        aten.hardsigmoid.default, aten.clamp.default, aten.elu.default, aten.selu.default, aten.celu.default,
        aten.softplus.default, aten.gelu.default, aten.silu.default, aten.mish.default,
    }
)  # fmt: skip
"""What belongs to the layer in front of it."""


@dataclass(frozen=True)
class Branch:
    """One branch of a multi-branch block. `operands` are its places in the `cat`, `nodes` the names of its nodes."""

    name: str
    operands: tuple[int, ...]
    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    params: int
    macs: int


@dataclass(frozen=True)
class Block:
    """A block, or a plain layer.

    `entry` and `exit` name nodes: the fork and the `add` or `cat`, or what a plain layer reads and its last node.
    `path` is the operand of the `add` that comes from the residual path. `layers` are all inside, in execution order;
    `own` those that a bypass takes away (of a residual block: not the projection; of a multi-branch block: those of all
    branches, which go one by one), `params` and `macs` what these hold: parameters that nothing else uses, bare ones
    with them. `position` counts those of the same kind in execution order. `alike` names the first block with the same
    operators, input and output shape, `inside` the innermost block that this one lies in. Shapes are those of one
    example.
    """

    name: str
    kind: Kind
    position: int
    entry: str
    exit: str
    layers: tuple[str, ...]
    own: tuple[str, ...]
    params: int
    macs: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    alike: str
    inside: str | None = None
    shortcut: Shortcut | None = None
    path: int | None = None
    branches: tuple[Branch, ...] = ()


@dataclass
class _Region:
    """A block in the making: numbers of nodes. `paths` are its branches; or the residual path and the shortcut."""

    kind: Kind
    entry: int
    exit: int
    paths: list[list[int]]
    shortcut: Shortcut | None = None
    path: int | None = None
    operands: tuple[tuple[int, ...], ...] = ()

    def taken(self) -> list[int]:
        """The nodes that go: of a residual block only the residual path."""
        return self.paths[0] if self.kind != "branches" else sorted(item for path in self.paths for item in path)


def find_blocks(network: Network) -> list[Block]:
    """All blocks, multi-branch blocks and plain layers of `network`, each kind in execution order. The time it takes
    grows about linearly with the network."""
    found = flow(network.module.graph)
    reading = _Reading(network, found)
    regions: list[_Region] = []
    for index, node in enumerate(found.nodes):
        region = None
        if node.target is aten.add.Tensor:
            region = _residual(reading, index)
        elif node.target is aten.cat.default:
            region = _branches(reading, index)
        elif reading.is_maker(index):
            region = _layer(reading, index)
        if region is not None:
            regions.append(region)
    kinds: tuple[Kind, ...] = ("residual", "branches", "layer")
    ordered = [region for kind in kinds for region in regions if region.kind == kind]
    return _described(reading, ordered)


def innermost_residual(blocks: Iterable[Block]) -> list[Block]:
    """The residual blocks that hold no other block."""
    blocks = list(blocks)
    around = {block.inside for block in blocks if block.kind == "residual"}
    return [block for block in blocks if block.kind == "residual" and block.name not in around]


class _Reading:
    """What is asked of a network's nodes again and again."""

    def __init__(self, network: Network, found: Flow) -> None:
        self.module = network.module
        self.flow = found
        self.users: dict[str, set[fx.Node]] = {}
        for node in network.module.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                self.users.setdefault(str(node.target), set()).add(node)

    def node(self, index: int) -> fx.Node:
        return self.flow.nodes[index]

    def shape(self, index: int) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.node(index).meta["shape"]
        return shape[1:]

    def is_maker(self, index: int) -> bool:
        node = self.node(index)
        return node.op == "call_module" and isinstance(self.module.get_submodule(str(node.target)), MAKERS)

    def makers(self, path: Iterable[int]) -> int:
        return sum(self.is_maker(index) for index in path)

    def layers(self, path: Iterable[int]) -> tuple[str, ...]:
        """The parametrised layers among the nodes, in execution order, each once."""
        names = (str(self.node(index).target) for index in sorted(path) if self.node(index).op == "call_module")
        found = (name for name in names if next(self.module.get_submodule(name).parameters(), None) is not None)
        return tuple(dict.fromkeys(found))

    def path(self, end: int, fork: int) -> list[int]:
        """The nodes on the ways from `fork` to `end`: `end` with them, the fork not. The fork dominates `end`."""
        seen = set()
        waiting = [end]
        while waiting:
            index = waiting.pop()
            if index != fork and index not in seen:
                seen.add(index)
                waiting.extend(self.flow.sources[index])
        return sorted(seen)

    def cost(self, path: Sequence[int]) -> tuple[int, int]:
        """Parameters that only these nodes use, and the MACs of these nodes."""
        gone = {self.node(index) for index in path}
        waiting = [item for node in gone for item in node.all_input_nodes]
        while waiting:  # constants, and what is computed from constants alone
            item = waiting.pop()
            if item not in self.flow.number and item not in gone and gone.issuperset(item.users):
                gone.add(item)
                waiting.extend(item.all_input_nodes)
        params = macs = 0
        for target in {str(node.target) for node in gone if node.op in ("call_module", "get_attr")}:
            if gone.issuperset(self.users[target]):
                params += _params(self.module, target)
        for node in gone:
            form = form_of(self.module, node) if node.op == "call_module" else None
            if form is not None and form.macs is not None:
                macs += form.macs(self.module.get_submodule(str(node.target)), node.meta["shape"])
        return params, macs

    def structure(self, path: Iterable[int]) -> tuple[str, ...]:
        return tuple(operator_name(self.module, self.node(index)) for index in path)


def _params(module: fx.GraphModule, target: str) -> int:
    owner, _, name = target.rpartition(".")
    value = getattr(module.get_submodule(owner), name)
    if isinstance(value, torch.nn.Module):
        return sum(parameter.numel() for parameter in value.parameters())
    return value.numel() if isinstance(value, torch.nn.Parameter) else 0


# --- one region at a time ---------------------------------------------------------------------------------------------


def _residual(reading: _Reading, end: int) -> _Region | None:
    found = reading.flow
    operands = [found.number.get(item, NOWHERE) for item in reading.node(end).args if isinstance(item, fx.Node)]
    fork = found.dominator[end]
    if len(operands) != 2 or NOWHERE in operands or fork == NOWHERE or operands[0] == operands[1]:
        return None
    if not any(index != fork and found.always_reaches(index, end) for index in operands):
        return None
    paths = [reading.path(index, fork) for index in operands]
    layers = [reading.makers(path) for path in paths]
    if layers[0] == layers[1] or min(layers) > 1 or not set(paths[0]).isdisjoint(paths[1]):
        return None
    path = 0 if layers[0] > layers[1] else 1
    if not _closed(reading, paths[path], fork, end):
        return None
    residual, shortcut = paths[path], paths[1 - path]
    kind: Shortcut = "identity" if not shortcut else "projection" if reading.layers(shortcut) else "resampled"
    return _Region("residual", fork, end, [residual, shortcut], kind, path)


def _closed(reading: _Reading, path: Iterable[int], fork: int, end: int) -> bool:
    """Whether all that the path makes goes to `end`: enough that where it leaves the fork it cannot get past `end`."""
    found = reading.flow
    return all(found.always_reaches(index, end) for index in path if fork in found.sources[index])


def _branches(reading: _Reading, end: int) -> _Region | None:
    found = reading.flow
    node = reading.node(end)
    operands = [found.number.get(item, NOWHERE) for item in argument(node, 0)]
    fork = found.dominator[end]
    if int(argument(node, 1, 0)) % len(node.meta["shape"]) != 1 or fork == NOWHERE:
        return None
    if NOWHERE in operands or len(set(operands)) != len(operands):
        return None
    if not all(index == fork or found.always_reaches(index, end) for index in operands):
        return None
    owner: dict[int, int] = {}  # node -> the operand whose branch it is in
    merged = list(range(len(operands)))
    for place, operand in enumerate(operands):
        waiting = [operand]
        while waiting:
            index = waiting.pop()
            if index == fork:
                continue
            if index in owner:
                _merge(merged, owner[index], place)
            else:
                owner[index] = place
                waiting.extend(found.sources[index])
    places: dict[int, list[int]] = {}
    for place in range(len(operands)):
        places.setdefault(_root(merged, place), []).append(place)
    paths: dict[int, list[int]] = {root: [] for root in places}
    for index in sorted(owner):
        paths[_root(merged, owner[index])].append(index)
    if sum(reading.makers(path) > 0 for path in paths.values()) < 2:
        return None
    if not _closed(reading, owner, fork, end):
        return None
    return _Region("branches", fork, end, list(paths.values()), operands=tuple(map(tuple, places.values())))


def _root(merged: list[int], place: int) -> int:
    while merged[place] != place:
        place = merged[place]
    return place


def _merge(merged: list[int], one: int, other: int) -> None:
    first, second = sorted((_root(merged, one), _root(merged, other)))
    merged[second] = first


def _layer(reading: _Reading, start: int) -> _Region | None:
    """A layer, the normalisation behind it and the activation behind that, as far as nothing else reads in between."""
    (entry,) = reading.flow.sources[start]
    end = start
    path = [start]
    for belongs in (_is_normalisation, is_activation):
        following = list(reading.node(end).users)
        if len(following) == 1 and belongs(reading.module, following[0]):
            end = reading.flow.number[following[0]]
            path.append(end)
    if reading.shape(entry) != reading.shape(end):
        return None
    return _Region("layer", entry, end, [path])


def _is_normalisation(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    layer = module.get_submodule(str(node.target))
    return not isinstance(layer, (*MAKERS, torch.nn.Dropout, torch.nn.PReLU))


def is_activation(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node is one of `ACTIVATIONS`, or a PReLU."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), torch.nn.PReLU)
    return node.target in ACTIVATIONS


# --- names, nesting, likeness -----------------------------------------------------------------------------------------


def _described(reading: _Reading, regions: list[_Region]) -> list[Block]:
    inside = _nesting(regions)
    layers = [reading.layers(item for path in region.paths for item in path) for region in regions]
    names = block_names([region.kind for region in regions], layers)
    first: dict[Any, str] = {}
    counts: Counter[Kind] = Counter()
    blocks = []
    for index, region in enumerate(regions):
        params, macs = reading.cost(region.taken())
        shapes = reading.shape(region.entry), reading.shape(region.exit)
        structure = tuple(map(reading.structure, region.paths))
        block = Block(
            name=names[index],
            kind=region.kind,
            position=counts[region.kind],
            entry=reading.node(region.entry).name,
            exit=reading.node(region.exit).name,
            layers=layers[index],
            own=reading.layers(region.taken()),
            params=params,
            macs=macs,
            input_shape=shapes[0],
            output_shape=shapes[1],
            alike=first.setdefault((region.kind, shapes, region.shortcut, structure), names[index]),
            inside=None if (around := inside[index]) is None else names[around],
            shortcut=region.shortcut,
            path=region.path,
        )
        counts[region.kind] += 1
        blocks.append(_with_branches(reading, region, block) if region.kind == "branches" else block)
    return blocks


def _with_branches(reading: _Reading, region: _Region, block: Block) -> Block:
    layers = [reading.layers(path) for path in region.paths]
    names = [below(common_path(found), block.name) for found in layers]
    seen = Counter(names)
    branches = []
    for index, (path, operands) in enumerate(zip(region.paths, region.operands, strict=True)):
        params, macs = reading.cost(path)
        branches.append(
            Branch(
                name=names[index] if names[index] and seen[names[index]] == 1 else f"branch {index + 1}",
                operands=operands,
                nodes=tuple(reading.node(item).name for item in path),
                layers=layers[index],
                params=params,
                macs=macs,
            )
        )
    return replace(block, branches=tuple(branches))


def _nesting(regions: list[_Region]) -> list[int | None]:
    """Per region the smallest other block that its exit lies in."""
    owner: dict[int, int] = {}
    blocks = [index for index, region in enumerate(regions) if region.kind != "layer"]
    for index in sorted(blocks, key=lambda index: -sum(map(len, regions[index].paths))):
        for path in regions[index].paths:
            owner.update(dict.fromkeys(path, index))
    return [owner.get(region.exit) for region in regions]
