"""Mixup and CutMix: two images and their labels made into one, on the device.

mixup (Zhang et al. 2018):   x = λ·x_i + (1 − λ)·x_j
CutMix (Yun et al. 2019):    x = x_i with a box of x_j of (1 − λ) of the area, cut off at the border; λ is then the
                             share that is left of x_i
both                         loss = λ·loss(y_i) + (1 − λ)·loss(y_j), λ ~ Beta(a, a), one for the batch, j a permutation
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.training_settings import Augmentation


@dataclass(frozen=True)
class Mixed:
    """images: as given. labels of the images that were mixed in, and the share of the loss that goes to the first."""

    images: Tensor
    labels: Tensor
    share: float


def mixed(images: Tensor, labels: Tensor, augment: Augmentation, *, seed: int, layout: str) -> Mixed | None:
    """The batch mixed with itself in another order; None where `augment` mixes nothing.

    images: (B, C, H, W) or, for `layout` NHWC, (B, H, W, C). labels: (B,). The draws are of `seed` alone.
    """
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(augment, kind)]
    if not kinds:
        return None
    draws = np.random.default_rng(seed)
    kind = kinds[draws.integers(len(kinds))]
    alpha = getattr(augment, kind)
    share = float(draws.beta(alpha, alpha))
    other = torch.from_numpy(draws.permutation(len(images))).to(images.device)
    if kind == "mixup":
        return Mixed(torch.lerp(images[other], images, share), labels[other], share)
    rows, columns = (2, 3) if layout == "NCHW" else (1, 2)
    height, width = images.shape[rows], images.shape[columns]
    top, bottom = _span(height, share, draws)
    left, right = _span(width, share, draws)
    box = [slice(None)] * 4
    box[rows], box[columns] = slice(top, bottom), slice(left, right)
    result = images.clone()
    result[tuple(box)] = images[other][tuple(box)]
    return Mixed(result, labels[other], 1 - (bottom - top) * (right - left) / (height * width))


def _span(size: int, share: float, draws: np.random.Generator) -> tuple[int, int]:
    """First and one-past-last place of a side of √(1 − share) · size around a random middle."""
    half = round(size * math.sqrt(1 - share) / 2)
    middle = int(draws.integers(size))
    return max(0, middle - half), min(size, middle + half)
