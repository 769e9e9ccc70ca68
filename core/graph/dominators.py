"""Dominators: what every way from the inputs to a node goes through, and every way from a node to the outputs.

Nodes are numbered in execution order, so that one pass finds them: the immediate dominator of a node is the nearest
node that dominates all of its predecessors (Cooper, Harvey and Kennedy 2001, figure 3; no cycles, no iterations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

NOWHERE = -1
"""What lies in front of all inputs."""


@dataclass(frozen=True)
class Flow:
    """The nodes that are computed from the inputs, in execution order.

    What is computed from constants alone takes no part: it is where no path comes from. `sources[i]` are the numbers of
    the nodes that node i reads. `dominator[i]` is the nearest node on every path from the inputs to node i, `NOWHERE`
    where there is none; `post_dominator[i]` the nearest on every path from node i to the outputs, `len(nodes)` where
    there is none.
    """

    nodes: tuple[fx.Node, ...]
    number: dict[fx.Node, int]
    sources: tuple[tuple[int, ...], ...]
    dominator: tuple[int, ...]
    post_dominator: tuple[int, ...]

    def always_reaches(self, start: int, end: int) -> bool:
        """Whether every path from `start` to the outputs goes through `end`: `end` post-dominates `start`."""
        while start < end:
            start = self.post_dominator[start]
        return start == end


def flow(graph: fx.Graph) -> Flow:
    """The flow of `graph` from its placeholders to its outputs."""
    nodes: list[fx.Node] = []
    number: dict[fx.Node, int] = {}
    sources: list[tuple[int, ...]] = []
    for node in graph.nodes:
        found = tuple(sorted({number[item] for item in node.all_input_nodes if item in number}))
        if node.op == "placeholder" or (found and node.op != "output"):
            number[node] = len(nodes)
            nodes.append(node)
            sources.append(found)
    count = len(nodes)
    readers: list[list[int]] = [[] for _ in nodes]
    for reader, read in enumerate(sources):
        for item in read:
            readers[item].append(reader)
    (output,) = graph.find_nodes(op="output")
    for item in output.all_input_nodes:
        if item in number:
            readers[number[item]].append(count)
    # backwards: node i is number count - 1 - i, and what lies behind the outputs is NOWHERE
    mirrored = immediate_dominators([[count - 1 - item for item in found] for found in reversed(readers)])
    behind = tuple(count - 1 - item for item in reversed(mirrored))
    return Flow(tuple(nodes), number, tuple(sources), tuple(immediate_dominators(sources)), behind)


def immediate_dominators(predecessors: Sequence[Sequence[int]]) -> list[int]:
    """Per node the nearest node that is on every way to it. Predecessors have smaller numbers; a node without any, or
    with `NOWHERE` among them, is one where ways begin."""
    found: list[int] = []
    for before in predecessors:
        nearest = before[0] if before else NOWHERE
        for other in before[1:]:
            while nearest != other:
                if nearest > other:
                    nearest = found[nearest]
                else:
                    other = found[other]
        found.append(nearest)
    return found
