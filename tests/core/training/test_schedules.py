"""Rates by hand."""

from __future__ import annotations

import pytest

from core.recipe import ConstantSchedule, CosineSchedule, MultistepSchedule
from core.training.schedules import rate_factor


def factors(schedule: ConstantSchedule | MultistepSchedule | CosineSchedule, steps: int) -> list[float]:
    return [rate_factor(schedule, step=step, steps=steps) for step in range(steps)]


def test_constant() -> None:
    assert factors(ConstantSchedule(name="constant"), 3) == [1.0, 1.0, 1.0]


def test_multistep_drops_at_its_milestones() -> None:
    schedule = MultistepSchedule(name="multistep", milestones=(0.5, 0.75), gamma=0.1)
    assert factors(schedule, 8) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_goes_from_one_to_final() -> None:
    assert factors(CosineSchedule(), 4) == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
    assert factors(CosineSchedule(final=0.2), 2) == pytest.approx([1, 0.6])
