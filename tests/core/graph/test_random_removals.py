"""Random networks of blocks, any set of them: taken out together they leave what is left one after the other."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from core.errors import CutRefused
from core.graph.blocks import find_blocks, innermost_residual
from core.graph.bypass import bypass, obstacles, without_blocks
from core.graph.lowering import trace
from core.graph.network import Network
from tests.core.graph import block_topologies as made
from tests.core.graph.test_random_bypasses import BLOCKS
from tests.core.graph.topologies import SHAPE, seeded

RESIDUAL = ["basic", "wider", "bottleneck", "long skip", "scaled", "shared"]
OTHERS = sorted(set(BLOCKS) - set(RESIDUAL))


@st.composite
def stacks(draw: st.DrawFn) -> Network:
    """Two to four blocks on each other, mostly residual ones, with a stem and a head or without."""
    bare = draw(st.integers(0, 3)) == 0
    kinds = st.sampled_from([*RESIDUAL * 3, *OTHERS])
    width, blocks = 3 if bare else 6, []
    for name in draw(st.lists(st.just("basic") if bare else kinds, min_size=2, max_size=4)):
        make, following = BLOCKS[name]
        blocks.append(make(width))
        width = following(width)
    return trace(seeded((lambda: nn.Sequential(*blocks)) if bare else made.stages(*blocks, channels=width)), SHAPE)


def one_by_one(network: Network, owners: list[tuple[str, ...]]) -> Network:
    for own in owners:
        (name,) = (each.name for each in find_blocks(network) if each.kind == "residual" and each.own == own)
        network, _ = bypass(network, name)
    return network


@settings(
    max_examples=15, deadline=None, derandomize=True, database=None,
    phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(stacks(), st.data())
def compare(outcomes: Counter[str], network: Network, data: st.DataObject) -> None:
    found = innermost_residual(find_blocks(network))
    reasons = obstacles(network, found)
    removable = [block for block in found if reasons[block.name, None] is None]
    order = data.draw(st.permutations(removable))
    order = order[: data.draw(st.integers(min(2, len(order)), len(order)))]
    try:
        left = one_by_one(network, [block.own for block in order])
    except CutRefused:
        outcomes["refused"] += 1
        try:
            without_blocks(network, [block.name for block in order])
        except CutRefused:
            return
        raise AssertionError("together they may not go either") from None
    together = without_blocks(network, [block.name for block in order])
    outcomes["removed"] += len(order) > 1
    ours, theirs = together.state_dict(), left.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    inputs = network.example_input(2, seed=1)
    with torch.no_grad():
        assert torch.equal(together(inputs), left(inputs))


@pytest.mark.slow
def test_together_is_one_after_the_other() -> None:
    outcomes: Counter[str] = Counter()
    compare(outcomes)
    assert outcomes["removed"] >= 5, outcomes
    assert outcomes["refused"] >= 1, outcomes
