"""Learning-rate schedules: the factor on the optimizer's rate, a function of how far the training is.

All of them are functions of the place alone (`Place`): a training that is resumed goes on at the rate that it would
have had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.schedule_settings import (
    ConstantSchedule,
    CosineRestartsSchedule,
    CosineSchedule,
    MultistepSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    RisingRestartsSchedule,
    Schedule,
)
from core.training_settings import Training


@dataclass(frozen=True)
class Place:
    """Batch `step` (from 0, counted through the training), with `steps` of them in each of `epochs` epochs. `records`:
    of the epochs that are done, with validation_loss and validation_accuracy."""

    step: int
    steps: int
    epochs: int
    records: Sequence[Mapping[str, Any]] = ()

    @property
    def progress(self) -> float:
        """The share of the training that is done."""
        return self.step / (self.steps * self.epochs)

    def length(self, span: float) -> float:
        """A share of the training (float) or a number of epochs (int), in batches."""
        return span * self.steps * (1 if isinstance(span, int) else self.epochs)


def constant(schedule: ConstantSchedule, place: Place) -> float:
    return 1.0


def multistep(schedule: MultistepSchedule, place: Place) -> float:
    """gamma ** (milestones reached)."""
    return schedule.gamma ** sum(place.step >= place.length(milestone) for milestone in schedule.milestones)


def rising_restarts(schedule: RisingRestartsSchedule, place: Place) -> float:
    """factor ** (milestones reached), times the cosine from the last of them to the next, or to the end."""
    starts = [0.0, *(place.length(milestone) for milestone in schedule.milestones), float(place.steps * place.epochs)]
    done = sum(place.step >= start for start in starts[1:-1])
    start, end = starts[done], min(starts[done + 1], starts[-1])
    return schedule.factor**done * between(1.0, schedule.final, (place.step - start) / (end - start))


def cosine(schedule: CosineSchedule, place: Place) -> float:
    """Loshchilov & Hutter 2017, equation 5, without restarts: final + (1 - final) (1 + cos(pi progress)) / 2."""
    return between(1.0, schedule.final, place.progress)


def cosine_restarts(schedule: CosineRestartsSchedule, place: Place) -> float:
    """The same equation over each cycle."""
    lengths = [schedule.multiplier**cycle for cycle in range(schedule.cycles)]
    at = place.progress * sum(lengths)
    for length in lengths[:-1]:
        if at < length:
            return between(1.0, schedule.final, at / length)
        at -= length
    return between(1.0, schedule.final, at / lengths[-1])


def one_cycle(schedule: OneCycleSchedule, place: Place) -> float:
    """As `torch.optim.lr_scheduler.OneCycleLR` of two phases with cosine annealing."""
    return _cycled(schedule, place, schedule.start, 1.0, schedule.final)


def plateau(schedule: PlateauSchedule, place: Place) -> float:
    """As `torch.optim.lr_scheduler.ReduceLROnPlateau` after every epoch that is done."""
    sign = 1 if schedule.watch == "loss" else -1
    factor, best, waited = 1.0, math.inf, 0
    for record in place.records:
        value = sign * record[f"validation_{schedule.watch}"]
        if value < best - schedule.threshold * abs(best) if math.isfinite(best) else value < best:
            best, waited = value, 0
        else:
            waited += 1
        if waited > schedule.patience:
            factor, waited = max(factor * schedule.factor, schedule.minimum), 0
    return factor


def between(start: float, end: float, share: float) -> float:
    """From `start` to `end` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _cycled(schedule: OneCycleSchedule, place: Place, start: float, peak: float, end: float) -> float:
    last = place.steps * place.epochs - 1
    top = schedule.peak * (last + 1) - 1
    if place.step <= top and top > 0:
        return between(start, peak, place.step / top)
    return between(peak, end, (place.step - top) / (last - top))


SCHEDULES: Mapping[str, Callable[[Any, Place], float]] = {
    "constant": constant,
    "multistep": multistep,
    "rising_restarts": rising_restarts,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "one_cycle": one_cycle,
    "plateau": plateau,
}


def rate_factor(training: Training, place: Place) -> float:
    """The factor on the rate at `place`: the schedule's, times the warm-up's (step + 1) / (its length)."""
    warm = place.length(training.warmup)
    warming = min(1.0, (place.step + 1) / warm) if warm else 1.0
    return warming * SCHEDULES[training.schedule.name](training.schedule, place)


def momentum_at(schedule: Schedule, place: Place) -> float | None:
    """The momentum that the schedule asks for, None where it leaves it alone."""
    if not isinstance(schedule, OneCycleSchedule) or schedule.momentum is None:
        return None
    least, most = schedule.momentum
    return _cycled(schedule, place, most, least, most)
