"""How what block removal has left is fine-tuned: near the wound only, or towards the original's features."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from core.block_settings import BlockRemoval
from core.graph.architectures import CifarResNet
from core.graph.blocks import find_blocks
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network
from core.methods.block_removal import block_removal
from core.outcome import Outcome
from core.targets import Goal
from core.training.features import matches
from tests.core.fakes import Events, ScriptedTrainer, empty_state, small_dataset

FIELDS = [name for name in BlockRemoval.model_fields if name not in ("method", "target", "fine_tune")]
FIRST, SECOND = "layer2.1", "layer3.0"
"""The blocks that go, made the lightest: one inside of a group, and one that changes shapes."""


@pytest.fixture
def network() -> Network:
    """Blocks layer1.0, layer1.1, layer2.0, … layer3.1, between conv1 and fc."""
    torch.manual_seed(0)
    network = trace(CifarResNet(14, num_classes=4, in_channels=1).eval(), (1, 8, 8))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith((f"{FIRST}.conv", f"{SECOND}.")) and name.endswith("weight"):
                parameter.mul_(1e-4 if name.startswith(FIRST) else 1e-3)
    return network


def go(network: Network, tmp_path: Path, trainer: ScriptedTrainer, **fine_tune: Any) -> Outcome:
    step = BlockRemoval.model_validate(
        {"method": "block_removal", "saliency": "weights_mean", "target": {"blocks": 4}, "fine_tune": fine_tune}
    )
    return block_removal(
        network, small_dataset(), **{name: getattr(step, name) for name in FIELDS},
        target=Goal(step.target, count(network), 0.9), fine_tune=step.fine_tune, trainer=trainer, emit=Events(),
        state=empty_state(tmp_path),
    )  # fmt: skip


def units(names: Collection[str]) -> set[str]:
    return {".".join(name.split(".")[:2]) if name.startswith("layer") else name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("left", "right", "first", "second"),
    [
        (0, 1, {"layer3.0"}, {"layer3.0", "layer3.1"}),
        (1, 0, {"layer2.0"}, {"layer2.0", "layer3.0"}),
        (1, 1, {"layer2.0", "layer3.0"}, {"layer2.0", "layer3.0", "layer3.1"}),
        (2, 2, {"layer1.1", "layer2.0", "layer3.0", "layer3.1"},
         {"layer1.1", "layer2.0", "layer3.0", "layer3.1", "fc"}),
    ],
)  # fmt: skip
def test_only_what_is_near_a_removed_block_is_trained(
    left: int, right: int, first: set[str], second: set[str], network: Network, tmp_path: Path
) -> None:
    """Velici 2022, section 6.1.6. What is left of layer3.0, its shortcut, is itself the wound."""
    trainer = ScriptedTrainer()
    outcome = go(network, tmp_path, trainer, epochs=2, policy={"every": 1}, local={"left": left, "right": right})
    assert [entry["block"] for entry in outcome.plan] == [FIRST, SECOND]
    assert len(trainer.moving) == 2
    for moving, expected in zip(trainer.moving, (first, second), strict=True):
        assert moving is not None
        assert [units(names) for names in moving] == [expected] * 2
    second_moving = trainer.moving[1]
    assert second_moving is not None
    shortcut = {name for name, _ in outcome.network.named_parameters() if name.startswith(SECOND)}
    assert shortcut == {name for name in second_moving[0] if name.startswith(SECOND)}
    assert not {f"{SECOND}.conv1.weight", f"{SECOND}.conv2.weight"} & shortcut
    assert shortcut


def test_a_vicinity_grows_to_the_whole_network(network: Network, tmp_path: Path) -> None:
    """From the wound at layer2.1: four units to conv1, three to fc; after two of four epochs all of it."""
    trainer = ScriptedTrainer()
    local = {"left": 0, "right": 1, "grow": 0.5}
    go(network, tmp_path, trainer, epochs=4, policy={"every": 1}, local=local)
    moving = trainer.moving[0]
    assert moving is not None
    whole = {"conv1", "bn1", "layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer3.1", "fc"}
    assert [units(names) for names in moving] == [
        {"layer3.0"},
        {"layer1.1", "layer2.0", "layer3.0", "layer3.1", "fc"},
        whole,
        whole,
    ]


def test_surviving_blocks_are_matched_and_no_other(network: Network, tmp_path: Path) -> None:
    outcome = go(network, tmp_path, ScriptedTrainer(), epochs=0)
    exits = {block.name: block.exit for block in find_blocks(network) if block.kind == "residual"}
    found = matches(network, outcome.network, outcome.plan)
    assert dict(found) == {end: None for name, end in exits.items() if name not in (FIRST, SECOND)}
    assert len(found) == 4
