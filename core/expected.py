"""What a job does besides training, told beforehand: for its progress, and for a dry run's estimate."""

from __future__ import annotations

from dataclasses import dataclass

from core.block_settings import BlockRemoval
from core.blocks.scoring_work import planned_scorings
from core.data.datasets import Dataset
from core.graph.counts import Counts
from core.graph.network import Network
from core.recipe import Recipe
from core.targets import Exports, Goal

EXPORT_SECONDS, MEASURE_SECONDS = 2.0, 15.0
"""What these stages usually take of two files, beside running the data through."""


@dataclass(frozen=True)
class Work:
    """`passes`: images, each once through a network without gradients. `seconds`: what does not depend on them."""

    passes: int = 0
    seconds: float = 0.0


def besides_training(recipe: Recipe, dataset: Dataset) -> dict[str, Work]:
    """The work of each stage that trains nothing. Each of the recipe's baselines is exported and measured, too."""
    scored = len(dataset.splits["validation"]) + len(dataset.splits["test"])
    files = 2 + len(recipe.baselines)
    return {
        "baseline": Work(scored),
        "export": Work(seconds=files / 2 * EXPORT_SECONDS),
        "measure": Work(files * scored, files / 2 * MEASURE_SECONDS),
    }


def scorings(
    recipe: Recipe, dataset: Dataset, network: Network, original: Counts, exports: Exports
) -> dict[int, list[tuple[int, int]]]:
    """(images, MACs) of each scoring of the steps that remove blocks of `network`, by the step's index; a guess, which
    the step corrects."""
    return {
        index: planned_scorings(
            network, step, dataset, recipe.training, target=Goal(step.target, original, exports=exports)
        )
        for index, step in enumerate(recipe.steps)
        if isinstance(step, BlockRemoval)
    }
