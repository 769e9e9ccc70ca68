"""Random small networks: whatever can be bypassed, by the description, is bypassed exactly; the rest is refused."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from torch import nn

from core.errors import CutRefused
from core.graph.bypass import bypass, check_bypass
from core.graph.description import describe
from core.graph.export import check_parity, write_onnx
from core.graph.importers import read_onnx
from core.graph.lowering import trace
from core.graph.network import Network
from core.graph.plans import replay
from tests.core.graph import block_topologies as made
from tests.core.graph.onnx_texts import model, saved
from tests.core.graph.random_networks import Drawn, networks
from tests.core.graph.topologies import SHAPE, seeded

EXAMPLES = 40


def check(drawn: Drawn, folder: Path) -> Counter[str]:
    text = model(drawn.body, inputs="float[n,3,8,8] x", outputs="float[n,5] y", weights=drawn.weights, opset=21)
    return bypass_everything(read_onnx(saved(text, folder)), drawn.seed, folder)


def bypass_everything(network: Network, seed: int, folder: Path) -> Counter[str]:
    """How many of each kind were bypassed and refused. Whatever is wrong is raised."""
    inputs = network.example_input(3, seed=seed)
    found: Counter[str] = Counter()
    for block in describe(network).blocks:
        for item, branch in [(each, each.name) for each in block.branches] or [(block, None)]:
            if not item.bypassable:
                found["refused"] += 1
                with pytest.raises(CutRefused):
                    bypass(network, block.name, branch)
                continue
            smaller, entry = bypass(network, block.name, branch)
            assert check_bypass(network, entry, smaller, inputs).passed
            write_onnx(smaller, folder / "bypassed.onnx")
            assert check_parity(smaller, folder / "bypassed.onnx", inputs).passed
            assert replay(network, [entry]).state_dict().keys() == smaller.state_dict().keys()
            found[block.kind] += 1
    return found


@pytest.mark.slow
def test_random_bypasses_of_random_networks_are_exact(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(networks())
    def every(drawn: Drawn) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            outcomes.update(check(drawn, Path(folder)))

    every()
    assert outcomes["layer"] >= 5, outcomes


def stack(seed: int) -> nn.Module:
    """Four blocks of any kind on each other, as they fit."""
    generator = random.Random(seed)
    width, blocks = 6, []
    for _ in range(4):
        name = generator.choice(list(BLOCKS))
        make, following = BLOCKS[name]
        blocks.append(make(width))
        width = following(width)
    return made.Stages(*blocks, channels=width)


BLOCKS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], int]]] = {
    "basic": (made.Basic, lambda width: width),
    "wider": (lambda width: made.Basic(width, width + 4), lambda width: width + 4),
    "bottleneck": (lambda width: made.GroupedBottleneck(width, 12, 1, True), lambda width: 12),
    "long skip": (made.LongSkip, lambda width: width),
    "scaled": (made.Scaled, lambda width: width),
    "parallel sum": (made.ParallelSum, lambda width: width),
    "gate": (made.Gate, lambda width: width),
    "overlapping": (made.OverlappingPaths, lambda width: width),
    "spread": (made.SpreadShortcut, lambda width: width),
    "branches": (made.Branches, lambda width: 12 + width),
    "fire": (made.Fire, lambda width: 12),
    "depthwise behind": (made.DepthwiseBehind, lambda width: 12),
    "identity branch": (made.IdentityBranch, lambda width: 6 + width),
    "dense": (made.DenseLayer, lambda width: width + 3),
    "tied": (made.TiedBranches, lambda width: 12),
    "shared": (made.SharedTwice, lambda width: width),
    "elsewhere": (made.UsedElsewhere, lambda width: width),
}  # fmt: skip


@pytest.mark.slow
def test_whatever_stands_on_what(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(12):
        outcomes.update(bypass_everything(trace(seeded(lambda: stack(seed)), SHAPE), seed, tmp_path))  # noqa: B023
    assert min(outcomes[kind] for kind in ("residual", "branches", "layer", "refused")) >= 5, outcomes
