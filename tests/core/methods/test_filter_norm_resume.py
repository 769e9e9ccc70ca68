"""filter_norm with a real trainer: killed after any checkpoint and started again, it ends in the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.data.datasets import Dataset
from core.graph.architectures import CifarResNet
from core.graph.counts import count
from core.graph.lowering import trace
from core.graph.network import Network
from core.methods.filter_norm import filter_norm
from core.outcome import Outcome
from core.progress import Progress
from core.state import State
from core.target_settings import Target
from core.targets import Goal
from core.training.trainer import Trainer
from core.training_settings import FineTune, Moments, Policy, Sgd, Training, WeightNoise
from tests.core.fakes import Dying, Events, Killed, small_dataset


def epochs(events: Events) -> list[str]:
    return [name for name, _ in events if "/epoch/" in name]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=48)


def network() -> Network:
    torch.manual_seed(0)
    return trace(CifarResNet(8, num_classes=4, in_channels=1), (1, 8, 8), format="safetensors")


def run(data: Dataset, workdir: Path, signal: Any, last: int | None = None, **changes: Any) -> tuple[Outcome, Events]:
    events = Events() if last is None else Dying(last)
    original = network()
    trainer = Trainer(
        data,
        training=Training(optimizer=Sgd(lr=0.02), batch_size=16, augment="crop"),
        device=torch.device("cpu"),
        seed=3,
        original_macs=count(original).macs,
        emit=events,
        progress=Progress(events),
    )
    settings: dict[str, Any] = {
        "target": Goal(Target(macs=0.6), count(original)),
        "fine_tune": FineTune(epochs=4),
        "every_epochs": 2,
    }
    outcome = filter_norm(
        original,
        data,
        signal=signal,
        ratio_per_round=0.2,
        scope="global" if signal == "activations" else "local",
        normalize="none",
        **(settings | changes),
        channel_multiple=4,
        trainer=trainer,
        emit=events,
        state=State.open(workdir, fingerprint={"test": "x"}, emit=events).scope("method"),
    )
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), network().parameters(), strict=True))
    return outcome, events


@pytest.fixture(scope="module")
def undisturbed(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Outcome, Events]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        found = {signal: run(data, tmp_path_factory.mktemp(signal), signal) for signal in ("weights", "activations")}
        torch.set_num_threads(before)
        return found


@pytest.mark.parametrize(
    ("signal", "kill_at"),
    [
        ("weights", 1),
        ("activations", 2),
        ("weights", 3),
        ("activations", 4),
        ("weights", 5),
        ("activations", 6),
        ("activations", 7),
    ],
)
def test_killed_after_a_checkpoint_it_ends_in_the_same_bits(
    signal: str,
    kill_at: int,
    data: Dataset,
    undisturbed: dict[str, tuple[Outcome, Events]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Checkpoint 1 is in the middle of a round's training, 2 after its cut, and so on; the last are in fine-tuning."""
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    whole, events = undisturbed[signal]
    with pytest.raises(Killed):
        run(data, tmp_path, signal, last=kill_at)
    again, after = run(data, tmp_path, signal)
    assert again.plan == whole.plan
    ours, theirs = again.network.state_dict(), whole.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert again.front == whole.front
    assert again.checks == whole.checks
    assert again.cost.model_dump(exclude={"seconds"}) == whole.cost.model_dump(exclude={"seconds"})
    # no epoch is repeated: each was followed by a checkpoint, or by the cut's
    assert epochs(after) == epochs(events)[-len(epochs(after)) :]
    names = [name for name, _ in events]
    checkpoints = [index for index, (name, body) in enumerate(events) if body.get("number") == kill_at]
    lost = [name for name in names[: checkpoints[0]] if "/epoch/" in name]
    assert len(lost) + len(epochs(after)) == len(epochs(events))
    # what was scored and removed after the resumption is what would have been
    selects = [body for name, body in events if name.endswith("/select")]
    later = [body for name, body in after if name.endswith("/select")]
    assert later == selects[len(selects) - len(later) :]


def test_killed_anywhere_between_its_fine_tunings(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a fine-tuning after every round and a guard that ends it: the same bits, whatever was saved last."""
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)
    original = network()
    policy = Policy(low=1, high=Moments(threshold=0.9))  # whole at the end only
    changes: dict[str, Any] = {
        "fine_tune": FineTune(policy=policy, epochs=2, noise=WeightNoise(eta=0.05)), "every_epochs": 1,
    }  # fmt: skip

    free, _ = run(data, tmp_path / "free", "weights", target=Goal(Target(macs=0.3), count(original)), **changes)
    *others, last = (point.validation_accuracy or 0.0 for point in free.front[1:])
    target = Target(macs=0.3, max_accuracy_drop=0.5)  # of which the last network is half an image outside
    changes["target"] = Goal(target, count(original), accuracy=last + 0.5 + 0.5 / len(data.splits["validation"]))
    if max(others) <= last:  # as it may be on another machine: then the guard admits everything
        changes["target"] = Goal(target, count(original), accuracy=last)
    whole, events = run(data, tmp_path / "whole", "weights", **changes)
    rounds = {name.split("/")[3] for name in epochs(events) if name.startswith("fine_tune/0/round/")}
    assert len(rounds) >= 3
    assert bool(whole.warnings) == (max(others) > last)
    checkpoints = sum(name == "checkpoint" for name, _ in events)
    for kill_at in range(1, checkpoints, 2):
        with pytest.raises(Killed):
            run(data, tmp_path / str(kill_at), "weights", last=kill_at, **changes)
        again, after = run(data, tmp_path / str(kill_at), "weights", **changes)
        assert (again.plan, again.front, again.warnings) == (whole.plan, whole.front, whole.warnings)
        ours, theirs = again.network.state_dict(), whole.network.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert again.cost.model_dump(exclude={"seconds"}) == whole.cost.model_dump(exclude={"seconds"})
        assert epochs(after) == epochs(events)[len(epochs(events)) - len(epochs(after)) :]


def test_the_run_has_rounds_and_fine_tuning(undisturbed: dict[str, tuple[Outcome, Events]]) -> None:
    for outcome, events in undisturbed.values():
        assert count(outcome.network).macs <= 0.6 * count(network()).macs
        assert "prune/step/0/round/2/epoch/2" in epochs(events)
        assert epochs(events)[-1] == "fine_tune/0/epoch/4"
