"""block_removal on a small ResNet, with a real trainer, a scripted one, or one that trains nothing."""

from __future__ import annotations

from collections.abc import Callable
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
from core.training.port import FitResult, Moment
from core.training.trainer import Trainer
from core.training_settings import Sgd, Training
from tests.core.fakes import Events, small_dataset

FIELDS = [name for name in BlockRemoval.model_fields if name not in ("method", "target", "fine_tune")]
DATA = small_dataset(images=32)


def resnet(depth: int = 14) -> Network:
    torch.manual_seed(0)
    return trace(CifarResNet(depth, num_classes=4, in_channels=1).eval(), (1, 8, 8), format="safetensors")


class Watched(Trainer):
    """`watch(network, moment)` is called after whatever a training's caller does in front of a moment; `kept`: of each
    training the network's state before and after it, by its label."""

    watch: Callable[[Network, str, Moment], None] | None = None
    asked: dict[str, dict[str, Any]]
    kept: dict[str, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]

    def fit(self, network: Network, *, label: str, **named: Any) -> FitResult:  # type: ignore[override]
        given = named.pop("before", None)

        def before(moment: Moment) -> None:
            if given is not None:
                given(moment)
            if self.watch is not None:
                self.watch(network, label, moment)

        begun = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        result = super().fit(network, label=label, before=before, **named)
        self.asked[label] = named
        self.kept[label] = (begun, {name: tensor.clone() for name, tensor in network.state_dict().items()})
        return result


def trainer(events: Events, **training: Any) -> Watched:
    made = Watched(
        DATA,
        training=Training(**{"optimizer": Sgd(lr=0.05), "batch_size": 16, "augment": "crop", **training}),
        device=torch.device("cpu"),
        seed=3,
        original_macs=count(resnet()).macs,
        emit=events,
        progress=Progress(events),
    )
    made.asked, made.kept = {}, {}
    return made


def run(
    workdir: Path, events: Events | None = None, *, by: Any = None, network: Network | None = None, like: Any = None,
    **fields: Any,
) -> Outcome:  # fmt: skip
    """The step `fields`, by a real trainer unless another is given."""
    events = Events() if events is None else events
    network = resnet() if network is None else network
    step = BlockRemoval.model_validate({"method": "block_removal", "saliency": "weights_mean", **fields})
    return block_removal(
        network,
        DATA,
        **{name: getattr(step, name) for name in FIELDS},
        target=Goal(step.target, count(network), 0.9),
        fine_tune=step.fine_tune,
        trainer=trainer(events) if by is None else by,
        emit=events,
        state=State.open(workdir, fingerprint={"test": "x"}, emit=events).scope("method"),
        like=like,
        seed=5,
    )


def same(left: Network, right: Network) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
