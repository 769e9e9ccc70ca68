"""Random small networks, random cuts: each is taken, and exact, or refused for a reason that is on a fixed list."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from core.errors import CutRefused
from core.graph.cuts import cut, sliced, slices
from core.graph.exactness import check_cut
from core.graph.export import check_parity, write_onnx
from core.graph.groups import ChannelGroups, channel_groups
from core.graph.importers import read_onnx
from core.graph.network import Network
from core.graph.plans import replay
from tests.core.graph.onnx_texts import model, saved
from tests.core.graph.random_networks import STEPS, Drawn, networks

EXAMPLES = 100
REASONS = ("nothing would be left of", "there is nothing to remove", "is frozen")
"""Why a removal may be refused: all of a layer or an activation, nothing at all, or what is frozen."""


def random_removal(groups: ChannelGroups, seed: int) -> dict[str, list[int]]:
    """Units of most groups: mostly all but one of them at most, now and then all, or those of a frozen group."""
    generator = np.random.default_rng(seed)
    removal = {}
    for group in groups.groups:
        dare = generator.random() < 0.02
        most = group.width if dare else group.width - 1
        if generator.random() < 0.3 or most < 1 or not (group.cuttable or dare):
            continue
        units = generator.choice(group.width, generator.integers(1, most + 1), replace=False)
        removal[group.name] = sorted(units.tolist())
    free = [group.name for group in groups.groups if group.cuttable and group.width > 1]
    return removal or {name: [0] for name in free[:1]}


def check_moving_along(network: Network, smaller: Network, removal: dict[str, list[int]]) -> None:
    """What is shaped like a weight (momentum, masks) is sliced like it: the cut weights are those places of the old."""
    kept = slices(network, removal)
    after = smaller.state_dict()
    for name, tensor in network.state_dict().items():
        places = torch.arange(tensor.numel()).reshape(tensor.shape)
        moved = sliced(places, kept[name]) if name in kept else places
        if name in after and tensor.is_floating_point():  # indices of channels are counted anew
            assert moved.shape == after[name].shape, name
            assert torch.equal(tensor.reshape(-1)[moved], after[name]), name


def check(drawn: Drawn, folder: Path) -> str:
    """ "cut", or the reason of the refusal. Whatever is wrong is raised."""
    made = model(drawn.body, inputs="float[n,3,8,8] x", outputs="float[n,5] y", weights=drawn.weights, opset=21)
    network = read_onnx(saved(made, folder))
    inputs = network.example_input(3, seed=drawn.seed)
    assert check_parity(network, folder / "model.onnx", inputs).passed
    groups = channel_groups(network)
    removal = random_removal(groups, drawn.seed)
    try:
        smaller, entry = cut(network, removal, groups)
    except CutRefused as error:
        return next(reason for reason in REASONS if reason in error.message)
    assert check_cut(network, removal, smaller, inputs).passed
    write_onnx(smaller, folder / "cut.onnx")
    assert check_parity(smaller, folder / "cut.onnx", inputs).passed
    again = replay(network, [entry]).state_dict()
    assert again.keys() == smaller.state_dict().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in smaller.state_dict().items())
    check_moving_along(network, smaller, removal)
    return "cut"


@pytest.mark.slow
def test_a_random_cut_of_a_random_network_is_exact_or_refused_for_a_listed_reason(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(networks())
    def every(drawn: Drawn) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            outcome = check(drawn, Path(folder))
        outcomes[outcome] += 1
        kinds.update(set(drawn.kinds))

    every()
    assert outcomes["cut"] >= 0.9 * sum(outcomes.values()), outcomes
    assert kinds.keys() == STEPS.keys(), STEPS.keys() - kinds.keys()
