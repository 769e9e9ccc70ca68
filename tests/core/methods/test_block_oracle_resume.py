"""Blocks removed by the oracle: what goes is what costs least, and a killed run ends in the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.block_settings import BlockRemoval
from core.data.datasets import Dataset
from core.graph.architectures.cifar_resnet import CifarResNet
from core.graph.bypass import without_blocks
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network
from core.methods.block_removal import block_removal
from core.outcome import Outcome
from core.progress import Progress
from core.state import State
from core.targets import Goal
from core.training.trainer import Trainer
from core.training_settings import Sgd, Training
from tests.core.fakes import Dying, Events, Killed, small_dataset

FIELDS = [name for name in BlockRemoval.model_fields if name not in ("method", "target", "fine_tune")]
RACED = {"racing": {"first": 0.3}, "rescore_every": 2, "fine_tune": {"epochs": 2, "policy": {"loops": 2}}}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=96)


def network() -> Network:
    torch.manual_seed(0)
    return trace(CifarResNet(14, num_classes=4, in_channels=1), (1, 8, 8))


def trainer_of(data: Dataset, events: Events) -> Trainer:
    return Trainer(
        data, training=Training(optimizer=Sgd(lr=0.02), batch_size=16), device=torch.device("cpu"), seed=3,
        original_macs=count(network()).macs, emit=events, progress=Progress(events),
    )  # fmt: skip


def run(data: Dataset, workdir: Path, last: int | None = None, **fields: Any) -> tuple[Outcome, Events]:
    events = Events() if last is None else Dying(last)
    step = BlockRemoval.model_validate({"method": "block_removal", "target": {"blocks": 2}, **fields})
    original = network()
    outcome = block_removal(
        original,
        data,
        **{name: getattr(step, name) for name in FIELDS},
        target=Goal(step.target, count(original), 0.9),
        fine_tune=step.fine_tune,
        trainer=trainer_of(data, events),
        emit=events,
        state=State.open(workdir, fingerprint={"test": "x"}, emit=events).scope("method"),
    )
    assert events.not_taken() == []
    return outcome, events


def test_each_round_takes_the_block_without_which_accuracy_is_best(data: Dataset, tmp_path: Path) -> None:
    outcome, events = run(data, tmp_path, fine_tune={"epochs": 0})
    present = network()
    trainer = trainer_of(data, Events())
    for round, body in enumerate(events.named("/select"), 1):
        scores = {name: trainer.evaluate(without_blocks(present, [name]), "validation") for name in body["scores"]}
        best = min(scores, key=lambda name: (1 - scores[name].accuracy, scores[name].loss))
        assert body["removed"] == [best]
        assert body["scores"] == {name: 1 - score.accuracy for name, score in scores.items()}
        present = without_blocks(present, [best])
        trainer.recalibrate(present, label=f"prune/step/0/round/{round}/recalibrate")
    assert count(outcome.network).blocks == 2


@pytest.fixture(scope="module")
def undisturbed(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Events]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found = run(data, tmp_path_factory.mktemp("whole"), **RACED)
    torch.set_num_threads(before)
    return found


@pytest.mark.parametrize("kill_at", [2, 4, 5])
def test_killed_after_a_checkpoint_it_ends_in_the_same_bits(
    kill_at: int, data: Dataset, undisturbed: tuple[Outcome, Events], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(data, tmp_path, kill_at, **RACED)
    again, events = run(data, tmp_path, **RACED)
    whole, all_events = undisturbed
    assert again.plan == whole.plan
    ours, theirs = again.network.state_dict(), whole.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    last = {name: body for name, body in all_events if name.endswith("/select")}
    for name, body in events:
        if name.endswith("/select"):
            assert list(body["scores"].items()) == list(last[name]["scores"].items())
    assert len(all_events.named("/race")) == 2
