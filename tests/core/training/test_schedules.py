"""Rates by hand, and those of torch's own schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from core.schedule_settings import RisingRestartsSchedule
from core.training.optimizers import build_optimizer, set_rate
from core.training.schedules import Place, momentum_at, rate_factor
from core.training_settings import (
    AdamW,
    ConstantSchedule,
    CosineRestartsSchedule,
    CosineSchedule,
    MultistepSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    Schedule,
    Sgd,
    Training,
)

STEPS, EPOCHS = 4, 10


def factors(schedule: Schedule, steps: int = STEPS, epochs: int = EPOCHS, **more: Any) -> list[float]:
    training = Training(schedule=schedule, **more)
    return [rate_factor(training, Place(step, steps, epochs)) for step in range(steps * epochs)]


def torchs(make: Any) -> list[dict[str, Any]]:
    """What torch's scheduler sets for each batch, on a rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler, seen = make(optimizer), []
    for _ in range(STEPS * EPOCHS):
        seen.append(dict(optimizer.param_groups[0]))
        optimizer.step()
        scheduler.step()
    return seen


def test_constant() -> None:
    assert factors(ConstantSchedule(name="constant"), 3, 1) == [1.0, 1.0, 1.0]


def test_multistep_drops_at_its_milestones() -> None:
    schedule = MultistepSchedule(name="multistep", milestones=(0.5, 0.75), gamma=0.1)
    assert factors(schedule, 1, 8) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_milestones_in_epochs() -> None:
    schedule = MultistepSchedule(name="multistep", milestones=(3, 7), gamma=0.5)
    expected = torchs(lambda opt: lr_scheduler.MultiStepLR(opt, [3 * STEPS, 7 * STEPS], 0.5))
    assert factors(schedule) == pytest.approx([item["lr"] for item in expected])


def test_cosine_goes_from_one_to_final() -> None:
    assert factors(CosineSchedule(), 1, 4) == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
    assert factors(CosineSchedule(final=0.2), 1, 2) == pytest.approx([1, 0.6])


@pytest.mark.parametrize(("cycles", "multiplier", "first"), [(4, 1, 10), (2, 3, 10), (2, 1, 20)])
def test_restarts_are_those_of_torch(cycles: int, multiplier: int, first: int) -> None:
    schedule = CosineRestartsSchedule(name="cosine_restarts", cycles=cycles, multiplier=multiplier, final=0.1)
    warm = lr_scheduler.CosineAnnealingWarmRestarts
    expected = torchs(lambda opt: warm(opt, first, multiplier, eta_min=0.1))
    assert factors(schedule) == pytest.approx([item["lr"] for item in expected])


def test_a_training_is_resumed_with_higher_rates() -> None:
    """Gschoßmann's 0.001, 0.01, 0.1: on a rate of 0.001 the factors 1, 10 and 100."""
    constant = RisingRestartsSchedule(name="rising_restarts", milestones=(0.5, 0.75), final=1.0)
    assert factors(constant, 1, 8) == pytest.approx([1, 1, 1, 1, 10, 10, 100, 100])
    cosine = RisingRestartsSchedule(name="rising_restarts", milestones=(4, 6), factor=2)
    half = (1 + 0.5**0.5) / 2
    assert factors(cosine, 1, 8) == pytest.approx([1, half, 0.5, 1 - half, 2, 1, 4, 2])
    later = RisingRestartsSchedule(name="rising_restarts", milestones=(9,), final=0.5)
    assert factors(later, 1, 2) == pytest.approx([1, 0.75]), "a milestone that a short training does not get to"


@pytest.mark.parametrize("peak", [0.3, 0.5])
def test_one_cycle_is_that_of_torch(peak: float) -> None:
    schedule = OneCycleSchedule(name="one_cycle", peak=peak)
    expected = torchs(lambda opt: _OneCycle(opt, 1.0, STEPS * EPOCHS, pct_start=peak))
    assert factors(schedule) == pytest.approx([item["lr"] for item in expected])
    momenta = [momentum_at(schedule, Place(step, STEPS, EPOCHS)) for step in range(STEPS * EPOCHS)]
    assert momenta == pytest.approx([item["momentum"] for item in expected])


class _OneCycle(lr_scheduler.OneCycleLR):
    """Without the error for the step after the last batch."""

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch + 1 < self.total_steps:
            super().step()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_one_cycle_of_a_few_batches(steps: int) -> None:
    found = factors(OneCycleSchedule(name="one_cycle"), steps, 1)
    assert all(0 < factor <= 1 for factor in found)
    assert found[-1] == pytest.approx(4e-6)


@pytest.mark.parametrize("watch", ["loss", "accuracy"])
def test_plateau_is_that_of_torch(watch: Any) -> None:
    values = [
        1.0,
        0.9,
        0.9,
        0.8995,
        0.95,
        0.9,
        0.7,
        0.7,
        0.71,
        0.7,
        0.6995,
        0.72,
        0.5,
        0.6,
        0.6,
        0.6,
        0.6,
        0.6,
        0.6,
        0.6,
    ]
    schedule = PlateauSchedule(name="plateau", watch=watch, factor=0.5, patience=2, threshold=1e-3, minimum=0.2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    mode: Any = "min" if watch == "loss" else "max"
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, mode, 0.5, 2, 1e-3, min_lr=0.2)
    records: list[dict[str, float]] = []
    for epoch, value in enumerate(values):
        place = Place(epoch * STEPS, STEPS, len(values), records)
        assert rate_factor(Training(schedule=schedule), place) == pytest.approx(optimizer.param_groups[0]["lr"])
        theirs.step(value)
        records.append({f"validation_{watch}": value})
    assert optimizer.param_groups[0]["lr"] == 0.2, "it fell to its minimum"


def test_warm_up_grows_to_what_the_schedule_says() -> None:
    plain = factors(CosineSchedule())
    for warmup, batches in ((2, 2 * STEPS), (0.25, 10)):
        warmed = factors(CosineSchedule(), warmup=warmup)
        assert warmed[:batches] == pytest.approx([(step + 1) / batches * plain[step] for step in range(batches)])
        assert warmed[batches:] == plain[batches:]


@pytest.mark.parametrize("settings", [Sgd(), AdamW(name="adamw")])
def test_momentum_is_set(settings: Any) -> None:
    optimizer = build_optimizer(settings, [torch.nn.Parameter(torch.zeros(1))])
    before = {key: value for key, value in optimizer.param_groups[0].items() if key not in ("lr", "params")}
    set_rate(optimizer, 0.5, None)
    assert {key: value for key, value in optimizer.param_groups[0].items() if key not in ("lr", "params")} == before
    set_rate(optimizer, 0.25, 0.7)
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.25 * settings.lr
    assert (group["betas"] == (0.7, 0.999)) if "betas" in group else (group["momentum"] == 0.7)
