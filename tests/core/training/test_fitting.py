"""What a recipe says of the steps of a training, and when one ends: clipping, smoothing, warm-up, early stopping."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from core.data.datasets import Dataset
from core.graph.architectures import build
from core.graph.network import Network
from core.progress import Progress
from core.schedule_settings import RisingRestartsSchedule
from core.state import State
from core.training.port import FitResult
from core.training.trainer import Trainer
from core.training_settings import (
    AdamW,
    ConstantSchedule,
    CosineRestartsSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    Schedule,
    Sgd,
    Training,
)
from tests.core.fakes import Dying, Events, Killed, empty_state, small_dataset

CONSTANT = ConstantSchedule(name="constant")
PLATEAU = PlateauSchedule(name="plateau", patience=0, factor=0.5)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return small_dataset(images=64)


def cnn() -> Network:
    return build("small_cnn", num_classes=4, in_channels=1, image_size=(8, 8))


def fit(
    data: Dataset, network: Network, training: Training, state: State, events: Events | None = None, **more: Any
) -> FitResult:
    events = Events() if events is None else events
    made = Trainer(data, training=training, device=torch.device("cpu"), seed=0, original_macs=1, emit=events,
                   progress=Progress(events))  # fmt: skip
    return made.fit(network, training=training, label="train", state=state, **{"epochs": 6, **more})


def steps_of(data: Dataset, training: Training, workdir: Path) -> list[float]:
    """How far each step of plain SGD moves the weights."""
    network = cnn()
    seen: list[Tensor] = []

    def look(network: Network) -> None:
        seen.append(torch.cat([weight.detach().flatten() for weight in network.parameters()]))

    look(network)
    fit(data, network, training, empty_state(workdir), epochs=2, on_batch=look)
    return [float((after - before).norm()) for before, after in itertools.pairwise(seen)]


PLAIN = Sgd(lr=0.5, momentum=0, nesterov=False, weight_decay=0)


def test_gradients_are_clipped_to_their_norm(data: Dataset, tmp_path: Path) -> None:
    free = steps_of(data, Training(optimizer=PLAIN, schedule=CONSTANT, batch_size=16), tmp_path / "free")
    clipped = steps_of(data, Training(optimizer=PLAIN, schedule=CONSTANT, batch_size=16, clip_norm=0.1), tmp_path / "c")
    assert max(free) > 0.1
    assert max(clipped) <= 0.5 * 0.1 * 1.001
    assert max(clipped) > 0.5 * 0.1 * 0.99


def test_the_first_steps_of_a_warm_up_are_small(data: Dataset, tmp_path: Path) -> None:
    training = Training(optimizer=PLAIN, schedule=CONSTANT, batch_size=16, clip_norm=1e-3, warmup=1)
    steps = steps_of(data, training, tmp_path)
    assert steps == pytest.approx([0.5e-3 * min(1, (step + 1) / 4) for step in range(8)], rel=0.02)


def test_smoothed_labels_are_trained_on_and_not_measured_by(data: Dataset, tmp_path: Path) -> None:
    training = Training(optimizer=Sgd(lr=1e-9), schedule=CONSTANT, batch_size=64, label_smoothing=0.3)
    network = cnn()
    record = fit(data, network, training, empty_state(tmp_path), epochs=1).epochs[0]
    with torch.no_grad():
        images = data.preprocess(data.splits["train"].x)
        smoothed = functional.cross_entropy(network.train()(images), data.splits["train"].y, label_smoothing=0.3)
        images = data.preprocess(data.splits["validation"].x)
        plain = functional.cross_entropy(network.eval()(images), data.splits["validation"].y)
    assert record["loss"] == pytest.approx(float(smoothed), rel=1e-3)
    assert record["validation_loss"] == pytest.approx(float(plain), rel=1e-2)


def test_early_stopping_ends_it_so_many_epochs_after_the_best(data: Dataset, tmp_path: Path) -> None:
    events = Events()
    training = Training(optimizer=Sgd(lr=1e-9), schedule=CONSTANT, batch_size=16, early_stop=3)
    result = fit(data, cnn(), training, empty_state(tmp_path), events, epochs=50)
    best = result.best_epoch
    assert best is not None
    assert len(result.epochs) == best + 3 < 50
    assert result.cost.epochs == best + 3
    assert dict(events)["train/stopped"] == {"epoch": best + 3, "epochs": 50, "early_stop": 3}


def test_without_early_stopping_it_goes_to_the_end(data: Dataset, tmp_path: Path) -> None:
    events = Events()
    training = Training(optimizer=Sgd(lr=1e-9), schedule=CONSTANT, batch_size=16)
    assert len(fit(data, cnn(), training, empty_state(tmp_path), events, epochs=8).epochs) == 8
    assert "train/stopped" not in dict(events)


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        (Sgd(lr=0.05), PLATEAU),
        (Sgd(lr=0.05), OneCycleSchedule(name="one_cycle")),
        (AdamW(name="adamw"), OneCycleSchedule(name="one_cycle")),
        (Sgd(lr=0.05), CosineRestartsSchedule(name="cosine_restarts")),
        (Sgd(lr=0.01), RisingRestartsSchedule(name="rising_restarts", factor=3)),
    ],
)
@pytest.mark.parametrize("kill_at", [1, 2])
def test_a_resumed_training_ends_in_the_same_bits(
    optimizer: Any, schedule: Schedule, kill_at: int, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 2)
    training = Training(
        optimizer=optimizer, schedule=schedule, batch_size=16, augment="crop_flip", warmup=0.2, clip_norm=0.5,
        label_smoothing=0.1, early_stop=4,
    )  # fmt: skip
    whole, resumed = cnn(), cnn()
    expected = fit(data, whole, training, empty_state(tmp_path / "a"), epochs=8)
    events = Dying(kill_at)
    with pytest.raises(Killed):
        fit(data, cnn(), training, State.open(tmp_path / "b", fingerprint={"test": "x"}, emit=events), events, epochs=8)
    found = fit(data, resumed, training, empty_state(tmp_path / "b"), epochs=8)
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
    assert [record["lr"] for record in found.epochs] == [record["lr"] for record in expected.epochs]
    assert found.best_epoch == expected.best_epoch


def test_a_plateau_lowers_the_rate(data: Dataset, tmp_path: Path) -> None:
    training = Training(optimizer=Sgd(lr=1e-9), schedule=PLATEAU.model_copy(update={"threshold": 0.5}), batch_size=16)
    rates = [record["lr"] for record in fit(data, cnn(), training, empty_state(tmp_path), epochs=5).epochs]
    assert rates == pytest.approx([1e-9 * math.pow(0.5, max(0, epoch - 1)) for epoch in range(5)])
