"""Augmentation of whole batches on the device, one draw per sample.

The draws for a whole epoch are made at once from (seed, epoch) on the CPU, indexed by a sample's place in the dataset:
what happens to a sample depends neither on the batch it is in, nor on the device, nor on where an epoch was resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from core.training_settings import Augment


@dataclass(frozen=True)
class Draws:
    """What augmentation does to each of N samples in one epoch.

    rows, columns: int64 (N,), the corner of the crop inside the padded image, 0 .. 2·pad. flips: bool (N,).
    """

    pad: int
    rows: Tensor
    columns: Tensor
    flips: Tensor

    def take(self, samples: Tensor, device: torch.device) -> Draws:
        """The draws of `samples` (int64 indices), on `device`."""
        parts = (part[samples].to(device, non_blocking=True) for part in (self.rows, self.columns, self.flips))
        return Draws(self.pad, *parts)


def crop_padding(height: int) -> int:
    """Pixels of black added on each side before a random crop: 4 as usual for 32×32, an eighth of smaller images."""
    return min(4, max(1, height // 8))


def _draw_none(images: int, height: int, generator: torch.Generator) -> None:
    return None


def _draw_crop(images: int, height: int, generator: torch.Generator) -> Draws:
    pad = crop_padding(height)
    rows = torch.randint(0, 2 * pad + 1, (images,), generator=generator)
    columns = torch.randint(0, 2 * pad + 1, (images,), generator=generator)
    return Draws(pad, rows, columns, torch.zeros(images, dtype=torch.bool))


def _draw_crop_flip(images: int, height: int, generator: torch.Generator) -> Draws:
    crop = _draw_crop(images, height, generator)
    return Draws(crop.pad, crop.rows, crop.columns, torch.rand(images, generator=generator) < 0.5)


AUGMENTATIONS: Mapping[Augment, Callable[[int, int, torch.Generator], Draws | None]] = {
    "none": _draw_none,
    "crop": _draw_crop,
    "crop_flip": _draw_crop_flip,
}


def seeded(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose in one epoch. Hashed, so that neighbouring seeds and epochs share nothing."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw(augment: Augment, images: int, height: int, *, seed: int, epoch: int) -> Draws | None:
    """The draws of one epoch for `images` samples of `height` pixels; None where nothing is augmented."""
    return AUGMENTATIONS[augment](images, height, seeded(seed, epoch, "augment"))


def apply(batch: Tensor, draws: Draws) -> Tensor:
    """Pad with black, crop back to size, mirror left-right where drawn.

    batch: (B, C, H, W) of any dtype, on the device of `draws`. Returns the same shape and dtype.
    """
    images, channels, height, width = batch.shape
    padded = functional.pad(batch, (draws.pad,) * 4)  # (B, C, H + 2p, W + 2p)
    stride = width + 2 * draws.pad
    columns = torch.arange(width, device=batch.device)
    columns = torch.where(draws.flips[:, None], width - 1 - columns, columns) + draws.columns[:, None]  # (B, W)
    rows = torch.arange(height, device=batch.device) + draws.rows[:, None]  # (B, H)
    # one gather over flattened pixels does crop and flip: six times faster than indexing with four index tensors
    pixels = (rows[:, :, None] * stride + columns[:, None, :]).reshape(images, 1, height * width)
    flat = padded.reshape(images, channels, -1)
    return flat.gather(2, pixels.expand(images, channels, -1)).reshape(batch.shape)
