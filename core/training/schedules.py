"""Learning-rate schedules: the factor on the optimizer's rate, a function of how far the training is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from core.recipe import ConstantSchedule, CosineSchedule, MultistepSchedule, Schedule


def constant(schedule: ConstantSchedule, progress: float) -> float:
    return 1.0


def multistep(schedule: MultistepSchedule, progress: float) -> float:
    """gamma ** (milestones reached)."""
    return schedule.gamma ** sum(progress >= milestone for milestone in schedule.milestones)


def cosine(schedule: CosineSchedule, progress: float) -> float:
    """Loshchilov & Hutter 2017, equation 5, without restarts: final + (1 − final) · (1 + cos(π · progress)) / 2."""
    return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2


SCHEDULES: Mapping[str, Callable[[Any, float], float]] = {
    "constant": constant,
    "multistep": multistep,
    "cosine": cosine,
}


def rate_factor(schedule: Schedule, *, step: int, steps: int) -> float:
    """The factor for batch `step` (from 0) of a training of `steps` batches in all."""
    return SCHEDULES[schedule.name](schedule, step / steps)
