"""Is the original any better than guessing? If it is not, preprocessing or the order of classes is wrong, and all that
follows would be measured against noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from core.errors import BaselineNearChance, Fault

SIGNIFICANCE = 1e-3


def chance_of_at_least(correct: int, images: int, probability: float) -> float:
    """P(X ≥ correct) for X ~ Binomial(images, probability), exactly (sum of the tail, in logarithms)."""
    if correct <= 0 or probability >= 1:
        return 1.0
    if probability <= 0:
        return 0.0

    def logarithm(hits: int) -> float:
        misses = images - hits
        ways = math.lgamma(images + 1) - math.lgamma(hits + 1) - math.lgamma(misses + 1)
        return ways + hits * math.log(probability) + misses * math.log1p(-probability)

    return min(1.0, math.fsum(math.exp(logarithm(hits)) for hits in range(correct, images + 1)))


def is_better_than_guessing(correct: int, images_per_class: Sequence[int]) -> bool:
    """Whether `correct` is significantly more than always naming the commonest class gives."""
    images = sum(images_per_class)
    return chance_of_at_least(correct, images, max(images_per_class) / images) <= SIGNIFICANCE


def check_better_than_guessing(correct: int, images_per_class: Sequence[int]) -> None:
    """Raises `BaselineNearChance` unless `correct` is significantly more than naming the commonest class always gives.

    `images_per_class`: of the images that `correct` is about. One-sided: guessing with the commonest class's share as
    its chance of a hit would do as well with a probability of at most 0.001.
    """
    if is_better_than_guessing(correct, images_per_class):
        return
    images = sum(images_per_class)
    guess = max(images_per_class) / images
    message = (
        f"the original classifies {correct / images:.1%} of {images} images rightly; always naming the commonest class "
        f"gives {guess:.1%}. Its preprocessing or the order of its classes is not what the dataset was given"
    )
    faults = [
        Fault("/preprocess", "the images may not be what the model was trained on",
              "the training's own size, scale, mean, std, channels (RGB or BGR) and layout"),
        Fault("/preprocess/class_order", "the classes may be in another order than the model's outputs",
              "class names in the order of the model's outputs"),
        Fault("/recipe/allow_near_chance", "the job stops here unless the recipe says otherwise", "true, to go on"),
    ]  # fmt: skip
    raise BaselineNearChance(message, faults=faults)
