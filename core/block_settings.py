"""The step `block_removal` of a recipe, as data (Velici 2022, chapters 3 and 4). Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from core.sections import Epochs, Section, Share
from core.target_settings import Target
from core.training_settings import FineTune, Training

Saliency = Literal[
    "oracle", "activation_change", "activation_change_plus_one", "activation_mean", "block_gradient",
    "block_gradient_max", "weights_mean", "linear_probe", "random",
]  # fmt: skip
DATALESS = frozenset({"weights_mean", "random"})
"""Saliencies that look at no images."""
Some = Annotated[int, Field(ge=1, le=10_000)]


class Racing(Section):
    """Candidates of the oracle that are clearly worse than the best are dropped after part of the data: after `first`
    of it and then batch by batch, at that confidence (Hoeffding's bound on the paired differences; Maron & Moore 1993).
    """

    first: Share = 0.1
    confidence: Share = 0.95


class Fade(Section):
    """Phased removal: for `epochs` epochs, the block's weights frozen, its output is multiplied by 1 − e/S before it
    goes (section 4.2). `mask: stochastic`: by 1 with that probability and else by 0, drawn anew for every `sample`.
    `lazy`: all blocks since the last fine-tuning together, in front of the next."""

    epochs: Some = 10
    mask: Literal["linear", "stochastic"] = "linear"
    sample: Literal["epoch", "batch"] = "batch"
    lazy: bool = False

    @model_validator(mode="after")
    def _sampled(self) -> Fade:
        if self.mask == "linear" and self.sample != "batch":  # not whether it was given: a recipe is given back whole
            raise ValueError("sample is of mask: stochastic")
        return self


class Soft(Section):
    """Soft block pruning (section 4.5, after He et al. 2018): before each of `epochs` epochs the blocks with the lowest
    scores, as many as the target needs, are zeroed and trained on; those zeroed last are removed."""

    epochs: Some = 10


class Replace(Section):
    """Replacement (section 4.5): `neighbours` blocks in a row are replaced by one, `with` random or zero weights. It is
    trained alone for `alone_epochs` first."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    neighbours: Annotated[int, Field(ge=2, le=100)] = 2
    weights: Literal["random", "zero"] = Field("random", alias="with")
    alone_epochs: Epochs = 0


class BlockRemoval(Section):
    """Residual blocks go one after the other, those with the lowest saliency first (Velici 2022)."""

    method: Literal["block_removal"]
    saliency: Saliency = "oracle"
    rescore_every: Some | None = Field(
        default_factory=lambda given: None if given.get("saliency") == "linear_probe" else 1,
        description="rounds between two scorings; null: once, at the beginning, as linear_probe always is",
        json_schema_extra={"default": 1},
    )
    scores: Literal["validation", "pruning_split"] = Field(
        "validation", description="the images that blocks are scored on"
    )
    batches: Some | None = Field(None, description="of those images, for block_gradient: the first so many; null: all")
    racing: Racing | None = None
    cache_mib: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        256, description="that the oracle holds of activations at once, at most: it takes smaller batches, or computes "
        "again what does not fit"
    )  # fmt: skip
    blocks_per_round: Some = 1
    equalise: bool = Field(
        False, description="each round's blocks are of one group, the groups take turns (section 4.3)"
    )
    fade: Fade | None = None
    soft: Soft | None = None
    replace: Replace | None = None
    target: Target = Field(description="what may remain at most of blocks, params, macs, filters, size or latency")
    fine_tune: FineTune = FineTune()

    @model_validator(mode="after")
    def _together(self) -> BlockRemoval:
        wrong = []
        gradient = self.saliency.startswith("block_gradient")
        if self.batches is not None and not gradient:
            wrong.append("batches is of saliency: block_gradient")
        if self.racing is not None and self.saliency != "oracle":
            wrong.append("racing is of saliency: oracle")
        if self.racing is not None and self.rescore_every is None:
            wrong.append("racing drops blocks that do not go before the next scoring: with rescore_every: a number")
        if self.racing is not None and self.equalise and self.rescore_every != 1:
            wrong.append("racing goes by the best blocks of all, equalise by those of a group: with rescore_every: 1")
        if self.saliency != "oracle" and self.cache_mib != type(self).model_fields["cache_mib"].default:
            wrong.append("cache_mib is of saliency: oracle")
        if self.saliency == "linear_probe" and self.rescore_every is not None:
            wrong.append("rescore_every is null with saliency: linear_probe, which is evaluated only once")
        if self.scores != "validation" and self.saliency in DATALESS:
            wrong.append(f"scores is of the images that blocks are scored on; {self.saliency} looks at none")
        if self.replace is not None and self.blocks_per_round > 1:
            wrong.append("replace takes its neighbours one group a round: without blocks_per_round")
        if self.replace is not None and self.rescore_every != 1:
            wrong.append("replace has new neighbours to score after each round: rescore_every is 1")
        if self.soft is not None:
            named = ("fade", "replace", "equalise")
            wrong += [f"soft goes without {name}" for name in named if getattr(self, name)]
            if self.fine_tune.policy.moments is not None or self.fine_tune.policy.low is not None:
                wrong.append("soft removes its blocks in one round at the end: policy: once")
            if self.blocks_per_round > 1 or self.rescore_every != 1:
                wrong.append(
                    "soft scores its blocks before each epoch and removes them in one round: without blocks_per_round, "
                    "rescore_every: 1"
                )
            if self.racing is not None:
                wrong.append("racing drops blocks that do not go before the next scoring; soft may zero any by then")
            if self.target.latency is not None:
                wrong.append("soft needs to know how many blocks go before any does: a target without latency")
        if self.replace is not None and self.saliency not in ("oracle", "random"):
            wrong.append("replace scores neighbours together, by saliency: oracle or random")
        if self.fine_tune.rewind != "last":
            if self.fade is not None:
                wrong.append(f"fine_tune.rewind: {self.fine_tune.rewind} sets back what fade has trained")
            if self.replace is not None and self.replace.alone_epochs:
                wrong.append(
                    f"fine_tune.rewind: {self.fine_tune.rewind} sets back what replace.alone_epochs has trained"
                )
        if self.fade is not None and self.replace is not None:
            wrong.append("fade and replace exclude each other")
        if self.fade is not None and self.fade.lazy and self.fine_tune.policy.low is not None:
            wrong.append(
                "a lazy fade restores what was removed since the last training, and low trains after each round"
            )
        if self.fade is not None and self.fade.lazy and not self.fine_tune.epochs:
            wrong.append("a lazy fade is in front of a fine-tuning: fine_tune.epochs of at least 1")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def at_random(self) -> BlockRemoval:
        """The same step with random scores and no guard."""
        target = self.target.model_copy(update={"max_accuracy_drop": None})
        changes = {"saliency": "random", "scores": "validation", "batches": None, "racing": None, "target": target}
        return self.model_copy(update=changes)

    def trainings(self, defaults: Training) -> list[tuple[Training, int]]:
        """Settings and epochs of each kind of training that it asks for, the one that ends it last."""
        fine_tune = self.fine_tune.resolved(defaults)
        own = [self.fine_tune.policy.low, self.fade and self.fade.epochs, self.soft and self.soft.epochs,
               self.replace and self.replace.alone_epochs]  # fmt: skip
        return [*((fine_tune, epochs) for epochs in own if epochs), (fine_tune, self.fine_tune.epochs)]
