"""What a dry run scores blocks on: few images, once, since it may take minutes only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from core.block_settings import DATALESS, BlockRemoval
from core.data.datasets import Dataset, Split
from core.data.source import SplitName
from core.graph.counts import count
from core.graph.network import Network
from core.recipe import Recipe
from core.step_settings import Step

MOST_IMAGES, FEWEST_IMAGES = 256, 16
MOST_MACS = 10**12
"""Of one scoring by the oracle, about half a minute on two cores: of large networks it is shown fewer images."""


def is_shown_images(step: Step) -> bool:
    """Whether `step` looks at images to score blocks."""
    return isinstance(step, BlockRemoval) and step.saliency not in DATALESS


def scored_once(recipe: Recipe) -> Recipe:
    """The recipe with one scoring of blocks for all rounds, where that looks at images."""
    steps = (
        step.model_copy(update={"rescore_every": None}) if is_shown_images(step) else step for step in recipe.steps
    )
    return recipe.model_copy(update={"steps": tuple(steps)})


def scoring_images(network: Network) -> int:
    """That blocks are scored on at most: as many as the oracle has time for."""
    counts = count(network)
    each = max(1, counts.macs * max(1, counts.blocks) // 2)
    return min(MOST_IMAGES, max(FEWEST_IMAGES, MOST_MACS // each))


def with_few(dataset: Dataset, most: Mapping[SplitName, int]) -> Dataset:
    """The same dataset with at most so many images of these splits, evenly spaced."""
    splits = dict(dataset.splits)
    for name, number in most.items():
        split = splits.get(name)
        if split is not None and len(split) > number:
            index = np.linspace(0, len(split) - 1, number).round().astype(np.int64)
            splits[name] = Split(
                split.rows.select(index), split.y[torch.from_numpy(index)], split.given, split.index_sha256
            )
    return dataclasses.replace(dataset, splits=splits)
