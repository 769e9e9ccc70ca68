"""Saliencies of blocks by what they do to activations (Velici 2022, section 3.3.2). One pass scores all of them.

    y = σ(x + H(x))        what the next block gets of a block H, whose shortcut gives x
    ỹ = σ(x)               what it gets without the block

- activation change: mean (y − ỹ)² over all numbers of all images.
- activation change plus one: mean (f(y) − f(ỹ))², f what lies between there and the output of the next block.
- activation mean: mean |H(x)|.

Differs from the thesis
- σ is the activation behind the `add`, where nothing else reads the `add`; else there is none (pre-activation networks,
  MobileNetV2). f is whatever the network has there: layers that are in no block, too.
- Behind the last block there is no next one: f is then the rest of the network up to its first output, in front of a
  final Softmax, which hides differences where it is saturated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from core.graph.blocks import Block, find_blocks, innermost_residual
from core.graph.ids import source
from core.graph.network import Network
from core.graph.softmax import final_softmax
from core.saliency.block_values import NodeByNode, finite, images_of, node_of, output_of, residual_path, shortcut

if TYPE_CHECKING:
    from core.saliency.block_scores import Scoring


def activation_change(scoring: Scoring) -> dict[str, float]:
    """How far the next block's input is from what it would be without the block."""
    network = scoring.network
    return _changes(scoring, lambda block: output_of(network, block))


def activation_change_plus_one(scoring: Scoring) -> dict[str, float]:
    """How far the next block's output is from what it would be without the block."""
    network = scoring.network
    blocks = innermost_residual(find_blocks(network))
    return _changes(scoring, lambda block: _one_later(network, blocks, block))


def activation_mean(scoring: Scoring) -> dict[str, float]:
    """Mean absolute output of the residual path."""
    network = scoring.network.eval()
    means: dict[fx.Node, _Mean] = {}
    found: dict[str, _Mean] = {}
    for candidate in scoring.candidates:
        (block,) = candidate.blocks
        means[residual_path(network, block)] = found[candidate.name] = _Mean()

    def look(node: fx.Node, value: Tensor) -> Tensor:
        if node in means:
            means[node].add(value.abs())
        return value

    _run(scoring, NodeByNode(network.module, look))
    return finite({name: mean.value() for name, mean in found.items()})


class _Mean:
    """Of all numbers that were added."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, values: Tensor) -> None:
        total = values.sum(dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._count += values.numel()

    def value(self) -> float:
        return 0.0 if self._sum is None else float(self._sum) / self._count


@dataclass
class _Change:
    """What a block's absence changes at the node `end`. `held`: values that `altered` needs, until it was asked."""

    start: fx.Node
    shortcut: fx.Node
    between: Sequence[fx.Node]
    end: fx.Node
    mean: _Mean = field(default_factory=_Mean)
    held: dict[fx.Node, Tensor] = field(default_factory=dict)

    def read(self) -> set[fx.Node]:
        """The nodes whose values `altered` needs."""
        ours = {self.start, *self.between}
        return {self.shortcut, *(item for node in self.between for item in node.all_input_nodes if item not in ours)}

    def altered(self, module: fx.GraphModule) -> Tensor:
        """What `end` gives without the block."""
        values = {**self.held, self.start: self.held[self.shortcut]}
        self.held.clear()
        for node in self.between:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            call = module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
            values[node] = call(*args, **kwargs)  # type: ignore[operator]
        return values[self.end]


def _changes(scoring: Scoring, end_of: Callable[[Block], fx.Node]) -> dict[str, float]:
    """Mean squared error that the absence of each candidate makes at `end_of` its block."""
    network = scoring.network.eval()
    changes: dict[str, _Change] = {}
    wanted: dict[fx.Node, list[_Change]] = {}
    ending: dict[fx.Node, list[_Change]] = {}
    for candidate in scoring.candidates:
        (block,) = candidate.blocks
        start, end = node_of(network, block.exit), end_of(block)
        change = _Change(start, shortcut(network, block), _between(network, start, end), end)
        changes[candidate.name] = change
        ending.setdefault(end, []).append(change)
        for node in change.read():
            wanted.setdefault(node, []).append(change)

    def look(node: fx.Node, value: Tensor) -> Tensor:
        for change in wanted.get(node, ()):
            change.held[node] = value
        for change in ending.get(node, ()):
            change.mean.add((value - change.altered(network.module)).square())
        return value

    _run(scoring, NodeByNode(network.module, look))
    return finite({name: change.mean.value() for name, change in changes.items()})


def _run(scoring: Scoring, run: NodeByNode) -> None:
    with torch.inference_mode():
        for images in images_of(scoring):
            run.run(images)


def _one_later(network: Network, blocks: Sequence[Block], block: Block) -> fx.Node:
    """The output of the first block behind `block` that is reached from it; else the first output of the network that
    is, in front of a final Softmax."""
    start = output_of(network, block)
    reached = _reached(start)
    later = [output_of(network, other) for other in blocks if other.position > block.position]
    outputs = [node if (last := final_softmax(node)) is None else source(last) for node in network.output_nodes()]
    return next((node for node in [*later, *outputs] if node in reached), start)


def _between(network: Network, start: fx.Node, end: fx.Node) -> list[fx.Node]:
    """The nodes on the ways from `start` to `end`, `end` with them, in execution order; none where both are one."""
    if start is end:
        return []
    behind, seen = _reached(start), {end}
    waiting = [end]
    while waiting:
        for item in waiting.pop().all_input_nodes:
            if item in behind and item not in seen:
                seen.add(item)
                waiting.append(item)
    return [node for node in network.module.graph.nodes if node in seen]


def _reached(start: fx.Node) -> set[fx.Node]:
    """The nodes that depend on `start`."""
    seen: set[fx.Node] = set()
    waiting: Iterable[fx.Node] = list(start.users)
    while waiting:
        new = set(waiting) - seen
        seen |= new
        waiting = [user for node in new for user in node.users]
    return seen
