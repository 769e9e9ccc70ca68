"""How many images go through a network to score blocks, told beforehand: for the progress, and for a dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.block_settings import BlockRemoval, Saliency
from core.blocks.candidates import Candidates
from core.blocks.foreseen import planned_rounds
from core.data.datasets import Dataset
from core.data.source import SplitName
from core.graph.network import Network
from core.targets import Goal
from core.training_settings import Training

BACKWARD = 3
"""Passes that a gradient takes: forward, and backward twice as much."""
PROBE_EPOCHS = 3
"""Of the linear probes of DBP, whose network only runs forward."""


@dataclass(frozen=True)
class ScoringWork:
    """What one scoring takes. `images`: of the split that is scored on; `train`: of train. `batches`, `batch_size`: of
    those that block_gradient looks at."""

    saliency: Saliency
    images: int
    train: int
    batches: int | None
    batch_size: int

    @classmethod
    def of(
        cls, data: Dataset, training: Training, *, saliency: Saliency, scores: str, batches: int | None
    ) -> ScoringWork:
        """training: the recipe's defaults."""
        split: SplitName = "pruning" if scores == "pruning_split" else "validation"
        images = len(data.splits[split]) if split in data.splits else 0
        return cls(saliency, images, len(data.splits["train"]), batches, training.batch_size)

    def passes(self, candidates: int) -> int:
        """Images through the whole network, without gradients, to score so many candidates: the oracle half of the
        network for each of them, whatever races; the others one pass for all, or none."""
        if self.saliency in ("weights_mean", "random"):
            return 0
        if self.saliency == "oracle":
            return candidates * self.images // 2
        if self.saliency.startswith("block_gradient"):
            looked = self.images if self.batches is None else min(self.images, self.batches * self.batch_size)
            return BACKWARD * looked
        if self.saliency == "linear_probe":
            return PROBE_EPOCHS * self.train + self.images
        return self.images


@dataclass(frozen=True)
class Scorings:
    """When there is one: every `every` rounds, or once. `groups`: that take turns; `gone`: candidates that each round
    costs. `epochs`: of soft pruning, whose one round scores all of them in front of each."""

    work: ScoringWork
    every: int | None
    groups: int = 1
    gone: int = 1
    epochs: int = 1

    @classmethod
    def of(cls, work: ScoringWork, every: int | None, *, groups: int | None, gone: int, epochs: int | None) -> Scorings:
        """groups: None where they do not take turns. epochs: None but for soft pruning."""
        if groups is None or every != 1:  # scores that several rounds go by are of all groups
            groups = 1
        return cls(work, every, groups=groups, gone=gone, epochs=epochs or 1)

    def to_come(
        self, macs: Sequence[int], *, candidates: int, done: int, scored_at: int | None
    ) -> list[tuple[int, int]]:
        """(images, MACs) of each scoring of the rounds to come.

        macs: of the network in front of each of them. candidates: in front of the first. done: rounds done. scored_at:
        rounds that were done at the last scoring; None: there was none.
        """
        found = []
        for round, size in enumerate(macs):
            left = -(-max(0, candidates - round * self.gone) // self.groups)
            if scored_at is None or (self.every is not None and done + round - scored_at >= self.every):
                scored_at = done + round
                found += [(self.work.passes(left), size)] * self.epochs
        return [(images, size) for images, size in found if images]


def planned_scorings(
    network: Network, step: BlockRemoval, data: Dataset, training: Training, *, target: Goal
) -> list[tuple[int, int]]:
    """(images, MACs) of each scoring that `step` is expected to take on `network`."""
    known = Candidates(network, 1 if step.replace is None else step.replace.neighbours)
    per_round = len(known.all) if step.soft else step.blocks_per_round
    rounds = planned_rounds(network, known, target, per_round=per_round, equalise=step.equalise)
    work = ScoringWork.of(data, training, saliency=step.saliency, scores=step.scores, batches=step.batches)
    scorings = Scorings.of(
        work, step.rescore_every, groups=len(known.groups) if step.equalise else None, gone=step.blocks_per_round,
        epochs=None if step.soft is None else step.soft.epochs,
    )  # fmt: skip
    return scorings.to_come(rounds[:-1], candidates=len(known.of(network)), done=0, scored_at=None)
