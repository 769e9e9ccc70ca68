"""Learning-rate schedules, as a recipe says them. Torch-free; `core.training.schedules` computes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Strict, field_validator

from core.sections import Beta, Items, Section, Share, Span, check_span


class ConstantSchedule(Section):
    """The same rate throughout."""

    name: Literal["constant"]


class Milestones(Section):
    """Moments at which the rate changes: shares of the training, or numbers of epochs done."""

    milestones: Items[Annotated[Span, BeforeValidator(check_span)]] = (0.5, 0.75)

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len({type(item) for item in value}) > 1:
            raise ValueError("milestones are all shares (floats), or all numbers of epochs (integers)")
        if list(value) != sorted(set(value)):
            raise ValueError("milestones must ascend, each once")
        return value


class MultistepSchedule(Milestones):
    """The rate times `gamma` at each milestone."""

    name: Literal["multistep"]
    gamma: float = Field(0.1, gt=0, lt=1)


class RisingRestartsSchedule(Milestones):
    """The training is resumed at each milestone with a rate `factor` times as high as the last time, to leave the
    minimum that it is in; in between the rate goes down to `final` times itself along half a cosine (1: it stays).

    Gschoßmann 2021, sections 4.1.2 and 4.2.2: trained at 0.001, then resumed with 0.01, then with 0.1. It is a warm
    restart (Loshchilov & Hutter 2017) that grows: weights and momentum stay.
    """

    name: Literal["rising_restarts"]
    factor: float = Field(10.0, gt=1, le=1_000)
    final: float = Field(0.0, ge=0, le=1)

    @field_validator("milestones")
    @classmethod
    def _some(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("needs a milestone at least: where the training is resumed")
        return value


class CosineSchedule(Section):
    """From the rate down to `final` times the rate along half a cosine, once per batch."""

    name: Literal["cosine"] = "cosine"
    final: float = Field(0.0, ge=0, lt=1)


class CosineRestartsSchedule(Section):
    """`cycles` half cosines one after the other, each `multiplier` times as long as the one before (Loshchilov & Hutter
    2017). They fill the training: 3 cycles with a multiplier of 2 take 1/7, 2/7 and 4/7 of it."""

    name: Literal["cosine_restarts"]
    cycles: int = Field(3, ge=2, le=100)
    multiplier: float = Field(1.0, ge=1, le=10)
    final: float = Field(0.0, ge=0, lt=1)


class OneCycleSchedule(Section):
    """Up from `start` times the rate to the rate at `peak` of the training, then down to `final` times it, both along
    half a cosine (Smith & Topin 2018, as in `torch.optim.lr_scheduler.OneCycleLR`). The momentum (of AdamW the first
    beta) goes the other way between the two of `momentum`; null leaves it alone."""

    name: Literal["one_cycle"]
    peak: Share = 0.3
    start: float = Field(0.04, gt=0, le=1)
    final: float = Field(4e-6, ge=0, le=1)
    momentum: Annotated[tuple[Beta, Beta], Strict(False)] | None = (0.85, 0.95)

    @field_validator("momentum")
    @classmethod
    def _ascending(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] <= value[1]:
            raise ValueError("momentum is [least, most], both above 0")
        return value


class PlateauSchedule(Section):
    """The rate times `factor` once `watch` on the validation split has not become better for more than `patience`
    epochs, down to `minimum` times the rate (`torch.optim.lr_scheduler.ReduceLROnPlateau`). Better is lower (loss) or
    higher (accuracy) by more than `threshold`, a share of the best."""

    name: Literal["plateau"]
    watch: Literal["loss", "accuracy"] = "loss"
    factor: float = Field(0.1, gt=0, lt=1)
    patience: int = Field(5, ge=0, le=1_000)
    threshold: float = Field(1e-3, ge=0, lt=1)
    minimum: float = Field(0.0, ge=0, lt=1)


Schedule = Annotated[
    ConstantSchedule
    | MultistepSchedule
    | RisingRestartsSchedule
    | CosineSchedule
    | CosineRestartsSchedule
    | OneCycleSchedule
    | PlateauSchedule,
    Discriminator("name"),
]
