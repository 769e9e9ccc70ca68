"""How networks are trained, as a recipe says it: optimizer, schedule and the rest. Torch-free.

`core.training` does what is said here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    field_validator,
    model_serializer,
    model_validator,
)

from core.schedule_settings import ConstantSchedule as ConstantSchedule
from core.schedule_settings import CosineRestartsSchedule as CosineRestartsSchedule
from core.schedule_settings import CosineSchedule as CosineSchedule
from core.schedule_settings import MultistepSchedule as MultistepSchedule
from core.schedule_settings import OneCycleSchedule as OneCycleSchedule
from core.schedule_settings import PlateauSchedule as PlateauSchedule
from core.schedule_settings import RisingRestartsSchedule as RisingRestartsSchedule
from core.schedule_settings import Schedule as Schedule
from core.sections import Beta, Epochs, Items, Section, Share, Span, check_span

# --- optimizers ------------------------------------------------------------------------------------------------------


class _Groups(Section):
    """`decay_norm_and_bias`: whether weight decay is on parameters of one dimension, too: those of BatchNorm, and
    biases (false: He et al. 2019, section 3.1). `classifier_lr`: of the layer that makes the output; null: as lr."""

    decay_norm_and_bias: bool = True
    classifier_lr: float | None = Field(None, gt=0, le=100)


class Sgd(_Groups):
    """Stochastic gradient descent with (Nesterov) momentum."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(0.01, gt=0, le=100)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(1e-4, ge=0, le=1)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0; set nesterov: false or momentum: 0.9")
        return self


class AdamW(_Groups):
    """AdamW (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"]
    lr: float = Field(1e-3, gt=0, le=100)
    betas: Annotated[tuple[Beta, Beta], Strict(False)] = (0.9, 0.999)
    weight_decay: float = Field(1e-2, ge=0, le=1)


Optimizer = Annotated[Sgd | AdamW, Discriminator("name")]


# --- augmentation ----------------------------------------------------------------------------------------------------

_SHORT = {"none": {}, "crop": {"crop": True}, "crop_flip": {"crop": True, "flip": True}}


class Augmentation(Section):
    """What is done to training images, each with draws of its own, anew in each epoch.

    `crop`: padded with black and cropped back to size at a random place. `flip`: half of them mirrored left-right.
    `rotate`: turned by up to so many degrees either way. `erase`: that share has a random box filled with its mean
    (Zhong et al. 2020). `noise`: Gaussian, of that standard deviation (1 = from black to white). `mixup` (Zhang et al.
    2018) and `cutmix` (Yun et al. 2019): two images and their labels blended, or a box of one put into the other, by a
    share drawn from Beta(a, a); with both, each batch gets one of them.
    """

    crop: bool = False
    flip: bool = False
    rotate: float = Field(0.0, ge=0, le=180)
    erase: float = Field(0.0, ge=0, le=1)
    noise: float = Field(0.0, ge=0, le=1)
    mixup: float = Field(0.0, ge=0, le=100)
    cutmix: float = Field(0.0, ge=0, le=100)

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any] | str:
        given = {name: value for name, value in handler(self).items() if value}
        return next((name for name, fields in _SHORT.items() if fields == given), given)


def _augmentation(value: Any) -> Any:
    if isinstance(value, str) and value in _SHORT:
        return _SHORT[value]
    if isinstance(value, dict | Augmentation):
        return value
    raise ValueError("is one of none, crop, crop_flip, or an object: {crop: true, flip: true, rotate: 10, erase: 0.25}")


Augment = Annotated[
    Augmentation,
    BeforeValidator(_augmentation, json_schema_input_type=Literal["none", "crop", "crop_flip"] | Augmentation),
]
NullAugment = Annotated[
    Augmentation | None,
    BeforeValidator(
        lambda value: value if value is None else _augmentation(value),
        json_schema_input_type=Literal["none", "crop", "crop_flip"] | Augmentation | None,
    ),
]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]


def _is_zero(value: Any) -> bool:
    return type(value) is int and value == 0


Warmup = Annotated[
    Annotated[int, Field(ge=0, le=10_000)] | Share,
    BeforeValidator(lambda value: value if value is None or _is_zero(value) else check_span(value)),
]
ClipNorm = Annotated[float, Field(ge=0, le=1e6)]
Precision = Literal["float32", "bfloat16", "float16"]
Smoothing = Annotated[float, Field(ge=0, lt=1)]


class Distill(Section):
    """Training towards the answers of the original, too: (1 - weight) · loss + weight · T² · KL(original ‖ network),
    both softened by the temperature T (Hinton et al. 2015). A weight of 0 is none.

    `features`: so many times the mean squared difference between what the blocks give that both networks have is added
    to the loss; 0: none (after Romero et al. 2015)."""

    temperature: float = Field(4.0, gt=0, le=100)
    weight: float = Field(0.5, ge=0, le=1)
    features: float = Field(0.0, ge=0, le=1e6)


class WeightNoise(Section):
    """Normal noise on the weights of the convolutions before a fine-tuning, of `eta` times the standard deviation of
    the layer's weights, or of each kernel's (Velici 2022, section 3.6.2)."""

    eta: float = Field(gt=0, le=10)
    per: Literal["layer", "kernel"] = "layer"


PruningSplit = Literal["held_out", "trained_on"]
Freeze = Literal["none", "classifier", "body"]


class Training(Section):
    """The defaults of every training in the recipe; a step's `fine_tune` may override each field.

    `warmup`: the rate grows from 0 over that share or number of epochs, times what the schedule says (Goyal 2017).
    `clip_norm`: gradients of a larger 2-norm, all together, are scaled down to it; 0: never. `label_smoothing`: that
    share of the target goes to all classes alike (Szegedy 2016), in training only. `early_stop`: the training ends once
    its best epoch on the validation split lies that many epochs back; 0: never. It is not for the rounds of a method
    that counts their epochs. `freeze`: the classifier's weights stay as they are; `body`: all others do. `precision`:
    that layers compute in while they are trained, under autocast; weights, losses and every measurement are float32.
    `compile`: a training step's forward and backward are compiled by `torch.compile`. `pruning_split`: whether the
    images of the dataset's pruning split are trained on, too.
    """

    optimizer: Optimizer = Sgd()
    schedule: Schedule = CosineSchedule()
    warmup: Warmup = 0
    batch_size: BatchSize = 128
    augment: Augment = Augmentation()
    clip_norm: ClipNorm = 0.0
    label_smoothing: Smoothing = 0.0
    early_stop: Epochs = 0
    restore_best: bool = True
    distill: Distill | None = None
    freeze: Freeze = "none"
    precision: Precision = "float32"
    compile: bool = False
    pruning_split: PruningSplit = "held_out"


# --- when a method that goes in rounds fine-tunes --------------------------------------------------------------------

Round = Annotated[int, Field(ge=1, le=10_000)]


class Moments(Section):
    """After which rounds of a method there is a fine-tuning, besides the one at the end, which is always there.

    Exactly one of `loops` (that many in all, spread evenly over the rounds that are planned, the last at the end),
    `at` (after these rounds, from 1), `every` (after every so many rounds) and `threshold` (whenever the cuts since the
    last fine-tuning, or since the beginning, have cost more than that much validation accuracy, 0-1).
    """

    loops: Annotated[int, Field(ge=1, le=1_000)] | None = None
    at: Annotated[Items[Round], Field(min_length=1, max_length=10_000)] | None = None
    every: Round | None = None
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None

    @field_validator("at")
    @classmethod
    def _ascending(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and list(value) != sorted(set(value)):
            raise ValueError("rounds must ascend, each once")
        return value

    def _given(self) -> list[str]:
        return [name for name in Moments.model_fields if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _one(self) -> Moments:
        if len(self._given()) != 1:
            raise ValueError(f"needs exactly one of {', '.join(Moments.model_fields)}")
        return self


class Policy(Moments):
    """`once`: at the end only. Otherwise `Moments`; or `low`, a number of epochs after every round, with `high`, the
    moments at which the fine-tuning has its whole number of epochs instead (Velici 2022, section 3.5)."""

    low: Annotated[int, Field(ge=1, le=10_000)] | None = None
    high: Moments | None = None

    @model_validator(mode="after")
    def _one(self) -> Policy:
        given = self._given()
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high go together: low: 2, high: {loops: 4}")
        if self.high is not None and given:
            raise ValueError(f"with low, {', '.join(given)} goes into high: low: 2, high: {{loops: 4}}")
        if self.high is None and len(given) > 1:
            raise ValueError(f"needs one of {', '.join(given)}, not all; or once")
        return self

    @property
    def moments(self) -> Moments | None:
        """When there is a whole fine-tuning; None: at the end only."""
        if self.high is not None:
            return self.high
        return self if self._given() else None

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any] | str:
        written = {name: value for name, value in handler(self).items() if value is not None}
        if "high" in written:
            written["high"] = {name: value for name, value in written["high"].items() if value is not None}
        return written or "once"


def _policy(value: Any) -> Any:
    if value == "once":
        return Policy()
    if isinstance(value, Policy):
        return value
    known = "once, {loops: 4}, {at: [6, 12]}, {every: 2}, {threshold: 0.01} or {low: 2, high: {loops: 4}}"
    if not isinstance(value, dict) or not value:
        raise ValueError(f"is one of {known}")
    return value


class Overrides(Section):
    """Fields of `training` for one purpose. Fields left out are those of `training`."""

    optimizer: Optimizer | None = None
    schedule: Schedule | None = None
    warmup: Warmup | None = None
    batch_size: BatchSize | None = None
    augment: NullAugment = None
    clip_norm: ClipNorm | None = None
    label_smoothing: Smoothing | None = None
    early_stop: Epochs | None = None
    restore_best: bool | None = None
    distill: Distill | None = None
    freeze: Freeze | None = None
    precision: Precision | None = None
    compile: bool | None = None
    pruning_split: PruningSplit | None = None

    def resolved(self, defaults: Training) -> Training:
        """`defaults` with what this section overrides."""
        given = {name: getattr(self, name) for name in Training.model_fields}
        return defaults.model_copy(update={name: value for name, value in given.items() if value is not None})


class Local(Section):
    """Only the blocks that were changed are trained, with `left` blocks in front of each and `right` behind it, the
    rest of the network stays (Velici 2022, section 6.1.6). `grow` (phased): the vicinity grows, until at that share of
    the fine-tuning or after that many epochs it is the whole network; null: never. `fine_tunings`: all of them, or
    those of `low` in the policy, while those of the whole number of epochs train everything."""

    left: int = Field(1, ge=0, le=10_000)
    right: int = Field(1, ge=0, le=10_000)
    grow: Annotated[Span, BeforeValidator(lambda value: value if value is None else check_span(value))] | None = None
    fine_tunings: Literal["all", "low"] = "all"


Rewind = Literal["last", "trained", "initial"]


class FineTune(Overrides):
    """Training after a step, and between the rounds of one.

    `rewind`: the weights that each whole fine-tuning begins with (Velici 2022, sections 2.4.2 and 4.4): `last`, as they
    are; `trained`, those of the network that the step was given; `initial`, those that the recipe's steps began with;
    of both what is left after the removals."""

    policy: Annotated[Policy, BeforeValidator(_policy, json_schema_input_type=Literal["once"] | Policy)] = Policy()
    epochs: Epochs = Field(10, description="of each fine-tuning")
    noise: WeightNoise | None = None
    local: Local | None = None
    rewind: Rewind = Field("last", description="what the weights are set back to before each whole fine-tuning")

    @model_validator(mode="after")
    def _rewound_and_trained(self) -> FineTune:
        if self.rewind != "last" and self.epochs == 0:
            raise ValueError(f"rewind: {self.rewind} sets back what is then trained, and there are no epochs")
        if self.rewind == "initial" and self.local is not None and self.local.fine_tunings == "all":
            raise ValueError(
                "rewind: initial sets back all weights, and local trains some of them only: fine_tunings: low"
            )
        return self

    @model_validator(mode="after")
    def _local_is_of_some(self) -> FineTune:
        if self.local is not None and self.local.fine_tunings == "low" and self.policy.low is None:
            raise ValueError("local is for the fine-tunings of low, and the policy has none: fine_tunings: all")
        return self

    def never_grown(self, budget: int | None) -> str | None:
        """What is wrong with `local.grow` where no fine-tuning that it is for, `budget` epochs at most, gets to it."""
        local, low = self.local, self.policy.low or 0
        if local is None or not isinstance(local.grow, int):
            return None
        longest = low if local.fine_tunings == "low" else max(low, self.epochs)
        longest = longest if budget is None else min(longest, budget)
        if local.grow < longest:
            return None
        return f"local.grow after {local.grow} epochs is never reached: the longest local fine-tuning has {longest}"
