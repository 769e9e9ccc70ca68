"""The order of the samples in an epoch, and where its batches begin and end."""

from __future__ import annotations

import torch
from torch import Tensor

from core.data.augment import seeded


def batch_bounds(images: int, batch_size: int) -> list[tuple[int, int]]:
    """First and one-past-last position of each of ceil(images / batch_size) batches whose sizes differ by at most 1.

    Evened out instead of a short last batch: a rest of one image would break BatchNorm and weigh as much as a whole
    batch in the gradient.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    batches = -(-images // batch_size)
    return [(images * number // batches, images * (number + 1) // batches) for number in range(batches)]


def epoch_order(images: int, *, seed: int, epoch: int, shuffle: bool) -> Tensor:
    """Indices of the samples in the order of this epoch, int64 (images,), on the CPU.

    A permutation of (seed, epoch) alone: epoch e of a resumed run sees the same batches as that of an undisturbed one.
    """
    if not shuffle:
        return torch.arange(images)
    return torch.randperm(images, generator=seeded(seed, epoch, "order"))
