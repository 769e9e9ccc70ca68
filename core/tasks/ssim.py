"""Structural similarity of images, with its gradient (Wang, Bovik, Sheikh & Simoncelli 2004)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
"""Sections III-B and III-C of the paper; for pixels of 0 to 1."""


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Mean over pixels and channels, (B,), of images (B, C, H, W) with pixels of 0 to 1. 1 where they are the same.

    Only places whose whole window of 11×11 is inside the image count, as in the authors' own program; H and W are
    therefore at least 11.
    """
    channels = first.shape[1]
    places = torch.arange(WINDOW, dtype=first.dtype, device=first.device) - WINDOW // 2
    weights = torch.exp(-places.square() / (2 * SIGMA**2))
    weights = (weights / weights.sum()).view(1, 1, -1, 1)

    def blurred(images: Tensor) -> Tensor:
        across = weights.expand(images.shape[1], 1, -1, -1)
        down = functional.conv2d(images, across, groups=images.shape[1])
        return functional.conv2d(down, across.transpose(2, 3), groups=images.shape[1])

    stacked = torch.cat([first, second, first * first, second * second, first * second], 1)
    mean, other, squares, others, products = torch.split(blurred(stacked), channels, 1)
    variance, deviation, covariance = squares - mean**2, others - other**2, products - mean * other
    luminance = (2 * mean * other + K1**2) / (mean**2 + other**2 + K1**2)
    structure = (2 * covariance + K2**2) / (variance + deviation + K2**2)
    found: Tensor = (luminance * structure).mean((1, 2, 3))
    return found
