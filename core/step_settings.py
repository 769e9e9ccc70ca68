"""The steps of a recipe, as data: one class per method. Torch-free; `core.steps` runs them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, ValidationInfo, field_validator, model_validator

from core.block_settings import BlockRemoval
from core.sections import Epochs, Section, Share
from core.target_settings import Target
from core.training_settings import FineTune, Overrides, Training


class FilterNorm(Section):
    """Iterative removal of several filters at once by 2-norm (Salcedo & Sharma, algorithms 1-3)."""

    method: Literal["filter_norm"]
    signal: Literal["weights", "activations", "random"] = "weights"
    ratio_per_round: Share = 0.05
    every_epochs: int = Field(7, ge=1, le=1_000)
    scope: Literal["local", "global"] = "local"
    normalize: Literal["none", "max"] = "none"
    scores: Literal["training", "pruning_split"] = Field(
        "training",
        description="where activations are noticed: while the rounds train, or on the dataset's pruning split after it",
    )
    target: Target = Field(description="what may remain at most of params, macs, filters, size or latency")
    fine_tune: FineTune = FineTune()

    @model_validator(mode="after")
    def _norms_are_normalised(self) -> FilterNorm:
        if self.signal == "random" and self.normalize != "none":
            raise ValueError("normalize is of norms, signal: random has none: leave one of them out")
        if self.signal != "activations" and self.scores != "training":
            raise ValueError(f"scores is of signal: activations; signal: {self.signal} looks at no images")
        if self.target.blocks is not None:
            raise ValueError("filter_norm removes no blocks: target.blocks is of method: block_removal")
        return self

    def at_random(self) -> FilterNorm:
        """The same step with random scores and no guard."""
        target = self.target.model_copy(update={"max_accuracy_drop": None})
        return self.model_copy(update={"signal": "random", "normalize": "none", "scores": "training", "target": target})

    def trainings(self, defaults: Training) -> list[tuple[Training, int]]:
        """Settings and epochs of each kind of training that it asks for, the one that ends it last."""
        fine_tune = self.fine_tune.resolved(defaults)
        low = [(fine_tune, self.fine_tune.policy.low)] if self.fine_tune.policy.low else []
        return [(defaults, self.every_epochs), *low, (fine_tune, self.fine_tune.epochs)]


MAX_CHECKPOINTS = 200
"""Files that `checkpoint_every` may leave, of all steps together."""


class Train(Overrides):
    """Training without removing anything. Fields left out are those of the recipe's `training`."""

    method: Literal["train"]
    epochs: Epochs
    checkpoint_every: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, description="keeps the network after every so many epochs, and after the last, as a file of the job"
    )

    @field_validator("checkpoint_every")
    @classmethod
    def _comes(cls, value: int | None, info: ValidationInfo) -> int | None:
        epochs = info.data.get("epochs")
        if value is not None and epochs is not None and value > epochs:
            raise ValueError(f"{value} epochs are never done: the step has {epochs}")
        return value

    @property
    def checkpoints(self) -> int:
        """How many it keeps at most."""
        return -(-self.epochs // self.checkpoint_every) if self.checkpoint_every else 0

    def at_random(self) -> Train:
        """Itself, since it removes nothing; its checkpoints are kept once."""
        return self.model_copy(update={"checkpoint_every": None})

    def trainings(self, defaults: Training) -> list[tuple[Training, int]]:
        """See `FilterNorm.trainings`."""
        return [(self.resolved(defaults), self.epochs)]


Step = Annotated[FilterNorm | BlockRemoval | Train, Discriminator("method")]
