"""Which blocks may go, and the groups that they are in.

A block is known by its layers: names of blocks may change as others go (`core.graph.block_names`), those of layers do
not. What is said of a block is said under the name that it had in the network that the step was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.graph.blocks import Block, find_blocks, innermost_residual
from core.graph.bypass import obstacles
from core.graph.network import Network
from core.graph.replacing import successors


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

    @property
    def going(self) -> tuple[Block, ...]:
        """The blocks that there are fewer of: itself, or all neighbours but the one that stands for them."""
        return self.blocks[1:] or self.blocks


class Candidates:
    """Of the network that a step is given, and of what is left of it later.

    Attributes:
        groups: of each group (blocks whose outputs have the same shape: a stage) its blocks, in execution order.
        all: group of each block, in execution order.
        frozen: blocks that cannot go, with the reason.
        neighbours: so many go at once, and one stands for them; 1: blocks go one by one.
    """

    def __init__(self, given: Network, neighbours: int = 1) -> None:
        blocks = innermost_residual(find_blocks(given))
        reasons = obstacles(given, blocks)
        self.frozen = {block.name: reason for block in blocks if (reason := reasons[block.name, None]) is not None}
        shapes = list(dict.fromkeys(block.output_shape for block in blocks))
        self._group = {block.own: f"group {shapes.index(block.output_shape) + 1}" for block in blocks}
        self._name = {block.own: block.name for block in blocks}
        self.all = {block.name: self._group[block.own] for block in blocks}
        self.neighbours = neighbours
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
        found = []
        for blocks in self._rows(network):
            names = tuple(self._name[block.own] for block in blocks)
            candidate = Candidate(tuple(blocks), names, self._group[blocks[0].own])
            if group in (None, candidate.group):
                found.append(candidate)
        return found

    def chains(self, network: Network) -> dict[str, list[list[Block]]]:
        """Of each group the blocks of `network` that may go, those that follow one another in one list."""
        blocks = self.blocks(network)
        behind = self._behind(network, blocks)
        found: dict[str, list[list[Block]]] = {group: [] for group in self.groups}
        taken: set[str] = set()
        for block in blocks:
            if block.name in taken:
                continue
            chain, following = [], [block]
            while following:
                chain.append(following[0])
                taken.add(following[0].name)
                following = [other for other in behind[following[0].name] if other.name not in taken]
            found[self._group[block.own]].append(chain)
        return found

    def left(self, network: Network) -> dict[str, int]:
        """How many blocks each group has left."""
        there = [
            self._group[block.own] for block in innermost_residual(find_blocks(network)) if block.own in self._group
        ]
        return {group: there.count(group) for group in self.groups}

    def turn(self, network: Network, last: str | None) -> str | None:
        """The group whose turn it is after the group `last`, or at the beginning; the groups come one after the other,
        and one in which nothing may go is passed over. None: nothing may go."""
        names = list(self.groups)
        start = 0 if last is None else names.index(last) + 1
        left = {candidate.group for candidate in self.of(network)}
        return next((name for name in [*names[start:], *names[:start]] if name in left), None)

    def _rows(self, network: Network) -> list[list[Block]]:
        """The blocks that may go, by themselves or so many neighbours of one group, in execution order of the first."""
        blocks = self.blocks(network)
        rows = [[block] for block in blocks]
        behind = {} if self.neighbours == 1 else self._behind(network, blocks)
        for _ in range(self.neighbours - 1):
            rows = [[*row, other] for row in rows for other in behind[row[-1].name]]
        return rows

    def _behind(self, network: Network, blocks: Sequence[Block]) -> dict[str, list[Block]]:
        """Of each block, those of its group that read what it gives."""
        group = {block.name: self._group[block.own] for block in blocks}
        return {
            name: [other for other in found if group[other.name] == group[name]]
            for name, found in successors(network, blocks).items()
        }


def lowest(scores: Mapping[str, float], candidates: Sequence[Candidate], number: int) -> list[Candidate]:
    """So many candidates with the least scores, no block in two of them; of equal ones the first in `scores`."""
    places = {name: place for place, name in enumerate(scores)}
    chosen: list[Candidate] = []
    taken: set[str] = set()
    for candidate in sorted(candidates, key=lambda each: (scores[each.name], places[each.name])):
        if len(chosen) < number and taken.isdisjoint(candidate.names):
            chosen.append(candidate)
            taken.update(candidate.names)
    return chosen
