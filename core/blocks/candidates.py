"""Which blocks may go, and the groups that they are in.

A block is known by its layers: names of blocks may change as others go (`core.graph.block_names`), those of layers do
not. What is said of a block is said under the name that it had in the network that the step was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from core.graph.blocks import Block, find_blocks, innermost_residual
from core.graph.bypass import obstacles
from core.graph.network import Network


@dataclass(frozen=True)
class Candidate:
    """What may go at once: a block, or neighbours of one group, in execution order, as they are in the present network.
    `names`: theirs in the network that the step was given."""

    blocks: tuple[Block, ...]
    names: tuple[str, ...]
    group: str

    @property
    def name(self) -> str:
        return "+".join(self.names)


class Candidates:
    """Of the network that a step is given, and of what is left of it later.

    Attributes:
        groups: of each group (blocks whose outputs have the same shape: a stage) its blocks, in execution order.
        all: group of each block, in execution order.
        frozen: blocks that cannot go, with the reason.
    """

    def __init__(self, given: Network, neighbours: int = 1) -> None:
        blocks = innermost_residual(find_blocks(given))
        reasons = obstacles(given, blocks)
        self.frozen = {block.name: reason for block in blocks if (reason := reasons[block.name, None]) is not None}
        shapes = list(dict.fromkeys(block.output_shape for block in blocks))
        self._group = {block.own: f"group {shapes.index(block.output_shape) + 1}" for block in blocks}
        self._name = {block.own: block.name for block in blocks}
        self.all = {block.name: self._group[block.own] for block in blocks}
        self._neighbours = neighbours
        self.groups: dict[str, list[str]] = {}
        for block in blocks:
            self.groups.setdefault(self._group[block.own], []).append(block.name)

    def blocks(self, network: Network) -> list[Block]:
        """The blocks of `network` that may go, in execution order."""
        blocks = [block for block in innermost_residual(find_blocks(network)) if block.own in self._name]
        reasons = obstacles(network, blocks)
        return [block for block in blocks if reasons[block.name, None] is None]

    def of(self, network: Network, group: str | None = None) -> list[Candidate]:
        """What may go from `network`, in execution order; of one group where it is named."""
        blocks = self.blocks(network)
        found = []
        for start in range(len(blocks) - self._neighbours + 1):
            chosen = blocks[start : start + self._neighbours]
            groups = {self._group[block.own] for block in chosen}
            if len(groups) == 1 and (group is None or group in groups) and _follow(chosen):
                names = tuple(self._name[block.own] for block in chosen)
                found.append(Candidate(tuple(chosen), names, groups.pop()))
        return found

    def left(self, network: Network) -> dict[str, int]:
        """How many blocks each group has left."""
        there = [
            self._group[block.own] for block in innermost_residual(find_blocks(network)) if block.own in self._group
        ]
        return {group: there.count(group) for group in self.groups}

    def turn(self, network: Network, round: int) -> str | None:
        """The group whose turn it is after `round` rounds, the groups one after the other; one with nothing left is
        passed over. None: nothing may go."""
        names = list(self.groups)
        order = [names[(round + step) % len(names)] for step in range(len(names))]
        return next((name for name in order if self.of(network, name)), None)


def _follow(blocks: Sequence[Block]) -> bool:
    """Whether each one reads what the one in front of it gives, past an activation at most."""
    return all(one.output_shape == other.input_shape for one, other in pairwise(blocks))


def lowest(scores: Mapping[str, float], candidates: Sequence[Candidate], number: int) -> list[Candidate]:
    """So many candidates with the least scores, no block in two of them; of equal ones the first in execution order."""
    chosen: list[Candidate] = []
    taken: set[str] = set()
    for candidate in sorted(candidates, key=lambda each: scores[each.name]):
        if len(chosen) < number and taken.isdisjoint(candidate.names):
            chosen.append(candidate)
            taken.update(candidate.names)
    return chosen
