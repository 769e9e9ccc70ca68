"""What a job does besides training, told beforehand: for its progress, and for a dry run's estimate."""

from __future__ import annotations

from dataclasses import dataclass

from core.data.datasets import Dataset
from core.recipe import Recipe

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
