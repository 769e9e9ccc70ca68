"""Runs of `block_removal` on a ResNet-20, with a trainer that trains nothing or with a real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from core.block_settings import BlockRemoval
from core.graph.architectures.cifar_resnet import CifarResNet
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network
from core.methods.block_removal import block_removal
from core.outcome import Outcome
from core.progress import Progress
from core.state import State
from core.targets import Goal
from core.training.port import TrainerPort
from core.training.trainer import Trainer
from core.training_settings import Sgd, Training
from tests.core.fakes import Dying, Events, ScriptedTrainer, small_dataset

FIELDS = [name for name in BlockRemoval.model_fields if name not in ("method", "target", "fine_tune")]


def resnet(depth: int = 20) -> Network:
    torch.manual_seed(0)
    return trace(CifarResNet(depth, num_classes=4, in_channels=1).eval(), (1, 8, 8))


def go(
    network: Network,
    workdir: Path,
    *,
    events: Events | None = None,
    trainer: TrainerPort | None = None,
    like: Sequence[Mapping[str, int]] | None = None,
    **fields: Any,
) -> Outcome:
    """`fields`: of the recipe's step; scores are random unless they say otherwise."""
    step = BlockRemoval.model_validate({"method": "block_removal", "saliency": "random", **fields})
    events = Events() if events is None else events
    return block_removal(
        network,
        small_dataset(images=32),
        **{name: getattr(step, name) for name in FIELDS},
        target=Goal(step.target, count(network), 0.9),
        fine_tune=step.fine_tune,
        trainer=ScriptedTrainer() if trainer is None else trainer,
        emit=events,
        state=State.open(workdir, fingerprint={"test": "x"}, emit=events).scope("method"),
        like=like,
    )


def real_trainer(network: Network, events: Events) -> Trainer:
    return Trainer(
        small_dataset(images=32), training=Training(optimizer=Sgd(lr=0.02), batch_size=16, augment="crop"),
        device=torch.device("cpu"), seed=3, original_macs=count(network).macs, emit=events, progress=Progress(events),
    )  # fmt: skip


def trained(workdir: Path, kill_at: int | None = None, depth: int = 20, **fields: Any) -> tuple[Outcome, Events]:
    """A run with a real trainer, killed right after a checkpoint where it is named."""
    network, events = resnet(depth), Events() if kill_at is None else Dying(kill_at)
    return go(network, workdir, events=events, trainer=real_trainer(network, events), **fields), events


def same(again: Outcome, whole: Outcome) -> None:
    """Raises where two outcomes differ in anything but seconds."""
    assert again.plan == whole.plan
    assert (again.front, again.checks, again.warnings) == (whole.front, whole.checks, whole.warnings)
    assert (again.removed, again.accuracy) == (whole.removed, whole.accuracy)
    ours, theirs = again.network.state_dict(), whole.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert again.cost.model_dump(exclude={"seconds"}) == whole.cost.model_dump(exclude={"seconds"})
