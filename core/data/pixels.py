"""Pixel arithmetic on stored images: grey values and sizes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 1024  # images at a time, so that wide intermediates stay small beside the dataset


def to_grey(images: Tensor) -> Tensor:
    """Luma of RGB images by ITU-R 601-2, for uint8 rounded exactly as Pillow's convert("L") does.

    images: (N, 3, H, W) uint8 or float32. Returns (N, 1, H, W) of the same dtype and device.
    """
    grey = images.new_empty((len(images), 1, *images.shape[2:]))
    for start in range(0, len(images), CHUNK):
        part, out = images[start : start + CHUNK], grey[start : start + CHUNK]
        if images.dtype == torch.uint8:
            red, green, blue = part.to(torch.int32).unbind(1)
            out[:, 0] = ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)
        else:
            red, green, blue = part.unbind(1)
            out[:, 0] = 0.299 * red + 0.587 * green + 0.114 * blue
    return grey


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bilinear resize to `size` = (height, width); the aspect ratio is not kept.

    images: (N, C, H, W), uint8 (rounded to uint8 again) or float32. Returns (N, C, *size) of the same dtype.
    """
    if tuple(images.shape[2:]) == tuple(size):
        return images
    resized = images.new_empty((len(images), images.shape[1], *size))
    for start in range(0, len(images), CHUNK):
        part = functional.interpolate(images[start : start + CHUNK], size, mode="bilinear", antialias=True)
        resized[start : start + CHUNK] = part
    return resized
