"""Dominators and post-dominators, against their definition."""

from __future__ import annotations

import random

import pytest

from core.graph.architectures import build
from core.graph.dominators import NOWHERE, flow, immediate_dominators


def by_definition(predecessors: list[list[int]]) -> list[int]:
    """The nearest node whose removal cuts a node off from where ways begin."""

    def reachable(without: int) -> set[int]:
        found: set[int] = set()
        for node, before in enumerate(predecessors):
            begins = not before or NOWHERE in before
            if node != without and (begins or any(item in found for item in before)):
                found.add(node)
        return found

    cut_off = [set(range(len(predecessors))) - reachable(node) - {node} for node in range(len(predecessors))]
    return [
        max((other for other in range(node) if node in cut_off[other]), default=NOWHERE)
        for node in range(len(predecessors))
    ]


@pytest.mark.parametrize("seed", range(30))
def test_dominators_of_random_graphs(seed: int) -> None:
    generator = random.Random(seed)
    predecessors: list[list[int]] = []
    for node in range(40):
        before = sorted(generator.sample(range(max(0, node - 6), node), min(node, generator.randint(0, 3))))
        if generator.random() < 0.05:
            before = [NOWHERE, *before]
        predecessors.append(before)
    assert immediate_dominators(predecessors) == by_definition(predecessors)


def test_the_flow_of_a_network_is_that_of_its_activations() -> None:
    network = build("resnet20")
    found = flow(network.module.graph)
    adds = [number for node, number in found.number.items() if "add" in str(node.target)]
    assert all(found.nodes[found.dominator[number]].name.startswith("relu") for number in adds)
    assert found.dominator[0] == NOWHERE
    assert all(found.always_reaches(number, adds[-1]) for number in range(adds[-1] + 1))
    inside = adds[0] - 1
    assert found.always_reaches(inside, adds[0])
    assert not found.always_reaches(adds[0], inside)
    assert found.post_dominator[len(found.nodes) - 1] == len(found.nodes)
