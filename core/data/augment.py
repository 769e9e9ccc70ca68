"""Augmentation of whole batches on the device, one draw per sample.

The draws for a whole epoch are made at once from (seed, epoch) on the CPU, indexed by a sample's place in the dataset:
what happens to a sample depends neither on the batch it is in, nor on the device, nor on where an epoch was resumed.
Noise is the exception: it is drawn on the device, of (seed, epoch, number of the batch).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from core.training_settings import Augmentation

ERASED_SHARE = (0.02, 0.33)
ERASED_ASPECT = (0.3, 1 / 0.3)
"""Of an image's pixels, and height / width of the box: Zhong et al. 2020, section 4.1."""


@dataclass(frozen=True)
class Draws:
    """What augmentation does to each of N samples in one epoch.

    rows, columns: int64 (N,), the corner of the crop inside the padded image, 0 .. 2·pad. flips: bool (N,). moves:
    whether any of these is more than nothing. angles: float32 (N,), radians, counter-clockwise; None: no rotation.
    boxes: int64 (N, 4), top, left, height and width of what is erased, height 0 where nothing is; None: nothing
    anywhere.
    """

    pad: int
    rows: Tensor
    columns: Tensor
    flips: Tensor
    moves: bool
    angles: Tensor | None = None
    boxes: Tensor | None = None

    def take(self, samples: Tensor, device: torch.device) -> Draws:
        """The draws of `samples` (int64 indices), on `device`."""

        def part(whole: Tensor) -> Tensor:
            return whole[samples].to(device, non_blocking=True)

        return replace(
            self,
            rows=part(self.rows),
            columns=part(self.columns),
            flips=part(self.flips),
            angles=None if self.angles is None else part(self.angles),
            boxes=None if self.boxes is None else part(self.boxes),
        )


def crop_padding(height: int) -> int:
    """Pixels of black added on each side before a random crop: 4 as usual for 32×32, an eighth of smaller images."""
    return min(4, max(1, height // 8))


def seeded(seed: int, epoch: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose in one epoch. Hashed, so that neighbouring seeds and epochs share nothing."""
    digest = hashlib.sha256(f"{purpose}/{seed}/{epoch}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def draw(augment: Augmentation, images: int, height: int, width: int, *, seed: int, epoch: int) -> Draws | None:
    """The draws of one epoch for `images` samples of height × width pixels; None where no sample is moved or erased."""
    if not (augment.crop or augment.flip or augment.rotate or augment.erase):
        return None
    generator = seeded(seed, epoch, "augment")
    pad = crop_padding(height) if augment.crop else 0
    rows = torch.randint(0, 2 * pad + 1, (images,), generator=generator)
    columns = torch.randint(0, 2 * pad + 1, (images,), generator=generator)
    flips = torch.zeros(images, dtype=torch.bool)
    if augment.flip:
        flips = torch.rand(images, generator=generator) < 0.5
    angles = boxes = None
    if augment.rotate:
        turn = torch.rand(images, generator=seeded(seed, epoch, "rotate"))
        angles = (2 * turn - 1) * math.radians(augment.rotate)
    if augment.erase:
        boxes = _boxes(augment.erase, images, height, width, seeded(seed, epoch, "erase"))
    return Draws(pad, rows, columns, flips, augment.crop or augment.flip, angles, boxes)


def _boxes(share: float, images: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(images, 4), see `Draws`: `share` of them have a box of random area, aspect and place."""
    erased, area, aspect, top, left = torch.rand(5, images, generator=generator)
    low, high = ERASED_SHARE
    pixels = (low + (high - low) * area) * height * width
    ratio = torch.exp(math.log(ERASED_ASPECT[0]) + math.log(ERASED_ASPECT[1] / ERASED_ASPECT[0]) * aspect)
    tall = (pixels * ratio).sqrt().round().clamp(1, height)
    wide = (pixels / ratio).sqrt().round().clamp(1, width)
    first, side = (top * (height - tall + 1)).floor(), (left * (width - wide + 1)).floor()
    return torch.stack([first, side, tall * (erased < share), wide], 1).to(torch.int64)


def apply(batch: Tensor, draws: Draws) -> Tensor:
    """Turn about the middle, pad with black, crop back to size, mirror left-right, erase: each where drawn.

    batch: (B, C, H, W) of any dtype, on the device of `draws`. Returns the same shape; the same dtype, but float32
    where images are turned (bilinear).
    """
    if draws.angles is not None:
        batch = _turned(batch.to(torch.float32), draws.angles)
    if draws.moves:
        batch = _moved(batch, draws)
    return batch if draws.boxes is None else _erased(batch, draws.boxes)


def _turned(batch: Tensor, angles: Tensor) -> Tensor:
    """Each image turned counter-clockwise by its angle; black comes in at the corners."""
    _, _, height, width = batch.shape
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # from places in the result to places in the image, both from -1 to 1 along each side
    matrix = torch.stack(
        [torch.stack([cos, -sin * height / width, zero], 1), torch.stack([sin * width / height, cos, zero], 1)], 1
    )
    grid = functional.affine_grid(matrix, list(batch.shape), align_corners=False)
    return functional.grid_sample(batch, grid, align_corners=False)


def _moved(batch: Tensor, draws: Draws) -> Tensor:
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


def _erased(batch: Tensor, boxes: Tensor) -> Tensor:
    """Each image's box filled with the image's mean, channel by channel."""
    _, _, height, width = batch.shape
    top, left, tall, wide = boxes[:, :, None].unbind(1)  # (B, 1)
    rows, columns = (torch.arange(size, device=batch.device) for size in (height, width))
    within_rows = (rows >= top) & (rows < top + tall)  # (B, H)
    within_columns = (columns >= left) & (columns < left + wide)  # (B, W)
    inside = (within_rows[:, :, None] & within_columns[:, None, :])[:, None]  # (B, 1, H, W)
    mean = batch.to(torch.float32).mean((2, 3), keepdim=True)
    mean = mean.round().to(batch.dtype) if batch.dtype == torch.uint8 else mean
    return torch.where(inside, mean, batch)


def add_noise(batch: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of `std` (1 = from black to white) on every pixel, kept within 0 to 255. Returns float32."""
    noise = torch.empty(batch.shape, device=batch.device).normal_(generator=generator)
    return (batch.to(torch.float32) + noise * (255 * std)).clamp_(0, 255)
