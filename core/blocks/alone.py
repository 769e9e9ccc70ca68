"""A block that stands for others is trained alone first, everything else frozen (Velici 2022, section 4.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.block_settings import Replace
from core.blocks.candidates import Candidate
from core.graph.blocks import find_blocks
from core.graph.network import Network
from core.graph.replacing import own_parameters
from core.state import State
from core.training.port import FitResult, TrainerPort
from core.training_settings import FineTune


def alone_epochs(replace: Replace | None) -> int:
    """Epochs that each round trains its new block alone."""
    return 0 if replace is None else replace.alone_epochs


def alone_trainings(replace: Replace | None, macs: Sequence[int]) -> list[tuple[int, int]]:
    """(epochs, MACs) of such a training after each round that is still to come, after which the network has `macs`."""
    epochs = alone_epochs(replace)
    return [(epochs, size) for size in macs] if epochs else []


def train_alone(
    network: Network,
    chosen: Sequence[Candidate],
    *,
    epochs: int,
    fine_tune: FineTune,
    trainer: TrainerPort,
    label: str,
    state: State,
    plan: Sequence[Mapping[str, Any]],
) -> FitResult:
    """Trains the residual paths of the blocks of `network` that stand for `chosen`, in place, by the settings of
    `fine_tune`. BatchNorm statistics of all others stay as they are.

    state: this training's own scope; an earlier attempt is continued. plan: see `TrainerPort.fit`.
    """
    own = {block.own for candidate in chosen for block in candidate.blocks}
    new = [block for block in find_blocks(network) if block.kind == "residual" and block.own in own]
    names = [name for block in new for name in own_parameters(network, block)]
    return trainer.fit(
        network,
        training=fine_tune.resolved(trainer.training),
        epochs=epochs,
        label=f"{label}/alone",
        state=state,
        moving=lambda epoch, epochs: names,
        plan=plan,
    )
