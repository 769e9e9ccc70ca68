"""A network run without each of several sets of blocks, where what lies in front of them is computed once.

A variant is the network with the values of some nodes replaced by those of others: of a block's `add` by its shortcut.
What depends on none of the replaced nodes is as it is in the network. So a batch goes through the network node by node,
and wherever all is known that a variant has in common with it, the rest of that variant is run, from what is held at
that moment. Of n blocks in a row, that is about half of n runs. Nothing is held longer than something needs it.

Every number is that of the smaller network, bit for bit: the same operators are run on the same values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from core.graph.blocks import Block
from core.graph.ids import source
from core.graph.network import Network

aten = torch.ops.aten

Sharing = Literal["all", "before", "nothing"]
"""What variants share. all: whatever is the same in them. before: what comes before their first replaced value in
execution order; the rest of what is the same (a second branch, say) is computed again. nothing: the inputs."""

Variant = Mapping[str, str]
"""By name of a node whose value is replaced, the node whose value takes its place."""

VIEWS = frozenset({aten.permute.default, aten.expand.default, aten.slice.Tensor, aten.unsqueeze.default,
                   aten.squeeze.dims, aten.unflatten.int})  # fmt: skip
"""What gives another view of the same memory."""
VIEWS_OR_COPIES = frozenset({aten.reshape.default, aten.flatten.using_ints, aten.to.dtype})

Run = Callable[[Mapping[fx.Node, Tensor]], Tensor]
Outputs = Tensor | tuple[Tensor, ...]


def without(network: Network, blocks: Sequence[Block]) -> Variant:
    """`network` without these residual blocks."""
    nodes = {node.name: node for node in network.module.graph.nodes}
    return {block.exit: source(nodes[block.exit], 1 - (block.path or 0)).name for block in blocks}


class SharedRuns:
    """All of `variants`, by name, of one graph.

    Attributes:
        bytes_per_image: that are held at once at most, the images themselves counted, weights not. A reshaping counts
            as a copy, which it may be.
    """

    def __init__(self, module: fx.GraphModule, variants: Mapping[str, Variant], sharing: Sharing = "all") -> None:
        self._module = module
        graph = _Graph(module)
        rests = [_rest(graph, name, variant, sharing) for name, variant in variants.items()]
        self._timeline = _timeline(graph, sorted(rests, key=lambda rest: rest.place))
        self._inputs = graph.inputs
        self._outputs = graph.outputs
        self._graph = graph
        self._runs: dict[fx.Node, Run] = {}

    @property
    def bytes_per_image(self) -> int:
        return _most_bytes(self._graph, self._timeline)

    def often(self) -> Counter[str]:
        """How often each node is run, by its name."""
        found: Counter[str] = Counter()
        for action, _ in self._timeline:
            own = (
                [node for node, _ in action.steps if node not in action.instead]
                if isinstance(action, _Rest)
                else [action]
            )
            found.update(node.name for node in own)
        return found

    def __call__(self, *inputs: Tensor) -> Iterator[tuple[str, Outputs]]:
        """Name and outputs of each variant for a batch, in the order in which they come about."""
        held: dict[fx.Node, Tensor] = {**self._constants(), **dict(zip(self._inputs, inputs, strict=True))}
        for action, done in self._timeline:
            if isinstance(action, _Rest):
                yield action.name, self._rest(action, held)
            else:
                held[action] = self._run(action)(held)
            for node in done:
                del held[node]

    def _rest(self, rest: _Rest, shared: Mapping[fx.Node, Tensor]) -> Outputs:
        held = dict(shared)
        for node, done in rest.steps:
            held[node] = held[rest.instead[node]] if node in rest.instead else self._run(node)(held)
            for each in done:
                del held[each]
        outputs: Outputs = fx.map_arg(self._outputs, held.__getitem__)
        return outputs

    def _constants(self) -> dict[fx.Node, Tensor]:
        """Bare parameters and buffers, as they are now."""
        found = {}
        for node in self._graph.constants:
            path, _, name = str(node.target).rpartition(".")
            found[node] = getattr(self._module.get_submodule(path), name)
        return found

    def _run(self, node: fx.Node) -> Run:
        if node not in self._runs:
            is_layer = node.op == "call_module"
            function: Any = self._module.get_submodule(str(node.target)) if is_layer else node.target

            def run(held: Mapping[fx.Node, Tensor]) -> Tensor:
                args, kwargs = fx.map_arg((node.args, node.kwargs), held.__getitem__)
                value: Tensor = function(*args, **kwargs)
                return value

            self._runs[node] = run
        return self._runs[node]


# --- what is run when -------------------------------------------------------------------------------------------------


class _Graph:
    """Nodes that are run in execution order, `number` their places; `inputs` are held by whoever calls."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.inputs = module.graph.find_nodes(op="placeholder")
        self.constants = frozenset(module.graph.find_nodes(op="get_attr"))
        (output,) = module.graph.find_nodes(op="output")
        self.outputs: Any = output.args[0]
        self.ends = tuple(output.all_input_nodes)
        self.order = [node for node in module.graph.nodes if node.op in ("call_module", "call_function")]
        self.number = {node: index for index, node in enumerate(self.order)}
        self.named = {node.name: node for node in module.graph.nodes}

    def read(self, node: fx.Node) -> list[fx.Node]:
        """What `node` reads that is computed."""
        return [item for item in node.all_input_nodes if item in self.number]


@dataclass(frozen=True)
class _Rest:
    """What is run of one variant alone, when so many (`place`) of the network's nodes have been passed. `steps`: nodes,
    and what is not needed any more after each. `reads`: values that it shares."""

    name: str
    place: int
    steps: tuple[tuple[fx.Node, tuple[fx.Node, ...]], ...]
    instead: Mapping[fx.Node, fx.Node]
    reads: frozenset[fx.Node]


def _rest(graph: _Graph, name: str, variant: Variant, sharing: Sharing) -> _Rest:
    instead = {graph.named[node]: graph.named[other] for node, other in variant.items()}
    changed: set[fx.Node] = set()
    for node in graph.order:
        if node in instead or not changed.isdisjoint(node.all_input_nodes):
            changed.add(node)

    def sources(node: fx.Node) -> list[fx.Node]:
        read = [instead[node]] if node in instead else node.all_input_nodes
        return [item for item in read if item in graph.number]

    def closure(is_own: Callable[[fx.Node], bool]) -> tuple[set[fx.Node], set[fx.Node]]:
        """What the outputs need: of that what is the variant's own, and what of the rest it reads."""
        own: set[fx.Node] = set()
        reads: set[fx.Node] = set()
        waiting = [node for node in graph.ends if node in graph.number]
        while waiting:
            node = waiting.pop()
            if not is_own(node):
                reads.add(node)
            elif node not in own:
                own.add(node)
                waiting.extend(sources(node))
        return own, reads

    if sharing == "all":
        own, reads = closure(changed.__contains__)
        place = 1 + max((graph.number[node] for node in reads), default=-1)
    else:
        first = min(instead, key=graph.number.__getitem__)
        place = 0 if sharing == "nothing" else 1 + graph.number.get(instead[first], -1)
        own, reads = closure(lambda node: node in changed or graph.number[node] >= place)
    nodes = sorted(own, key=graph.number.__getitem__)
    done = _done([sources(node) for node in nodes], nodes, keep=graph.ends)
    return _Rest(name, place, tuple(zip(nodes, done, strict=True)), instead, frozenset(reads))


def _done(
    reads: Sequence[Iterable[fx.Node]], freed: Iterable[fx.Node], keep: Iterable[fx.Node]
) -> list[tuple[fx.Node, ...]]:
    """Of each step that reads so and so, which of `freed` are read there for the last time; `keep` are read later."""
    last: dict[fx.Node, int] = {}
    for step, read in enumerate(reads):
        last.update(dict.fromkeys(read, step))
    freed = set(freed).difference(keep)
    done: list[list[fx.Node]] = [[] for _ in reads]
    for node, step in last.items():
        if node in freed:
            done[step].append(node)
    return [tuple(nodes) for nodes in done]


Timeline = Sequence[tuple["fx.Node | _Rest", tuple[fx.Node, ...]]]


def _timeline(graph: _Graph, rests: Sequence[_Rest]) -> Timeline:
    """Nodes that are run for all, and rests, in order; and what is not needed any more after each."""
    needed: set[fx.Node] = set()
    waiting = [node for rest in rests for node in rest.reads]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(graph.read(node))
    actions: list[fx.Node | _Rest] = []
    left = list(reversed(rests))
    for index in range(len(graph.order) + 1):
        while left and left[-1].place <= index:
            actions.append(left.pop())
        if index < len(graph.order) and graph.order[index] in needed:
            actions.append(graph.order[index])
    reads = [action.reads if isinstance(action, _Rest) else graph.read(action) for action in actions]
    return list(zip(actions, _done(reads, needed, keep=()), strict=True))


# --- how much is held -------------------------------------------------------------------------------------------------

Memory = tuple[fx.Node, ...]
"""Nodes whose memory a value holds: its own, and that of what it is a view of."""


class _Tally:
    """Bytes of what is held, each memory once however many values are in it."""

    def __init__(self, sizes: Mapping[fx.Node, int]) -> None:
        self._sizes = sizes
        self._users: Counter[fx.Node] = Counter()
        self.total = self.most = 0

    def hold(self, memory: Memory) -> None:
        for each in memory:
            self.total += self._sizes[each] if not self._users[each] else 0
            self._users[each] += 1
        self.most = max(self.most, self.total)

    def release(self, memory: Memory) -> None:
        for each in memory:
            self._users[each] -= 1
            self.total -= self._sizes[each] if not self._users[each] else 0


def _most_bytes(graph: _Graph, timeline: Timeline) -> int:
    sizes = {
        node: math.prod(node.meta["shape"]) * node.meta["dtype"].itemsize for node in (*graph.inputs, *graph.order)
    }
    tally = _Tally(sizes)
    shared: dict[fx.Node, Memory] = {node: (node,) for node in graph.inputs}
    for node in graph.inputs:
        tally.hold((node,))
    for action, done in timeline:
        if isinstance(action, _Rest):
            held = dict(shared)
            for node, over in action.steps:
                held[node] = held[action.instead[node]] if node in action.instead else _memory(node, held)
                tally.hold(held[node])
                for each in over:
                    tally.release(held.pop(each))
            for node in held.keys() - shared.keys():
                tally.release(held[node])
        else:
            shared[action] = _memory(action, shared)
            tally.hold(shared[action])
        for node in done:
            tally.release(shared.pop(node))
    return tally.most


def _memory(node: fx.Node, held: Mapping[fx.Node, Memory]) -> Memory:
    if node.target not in VIEWS and node.target not in VIEWS_OR_COPIES:
        return (node,)
    behind = held.get(source(node), ())  # a constant's is not counted
    return behind if node.target in VIEWS else tuple(dict.fromkeys((node, *behind)))
