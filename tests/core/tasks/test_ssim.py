"""Structural similarity against the formula written out in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.tasks.ssim import ssim


def by_loops(first: np.ndarray, second: np.ndarray) -> float:
    """Of two grey images (H, W), float64: equations 13 to 16 of Wang et al. 2004, window by window."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(first.shape[0] - 10):
        for column in range(first.shape[1] - 10):
            x, y = (image[row : row + 11, column : column + 11] for image in (first, second))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            covariance = (window * (x - mean_x) * (y - mean_y)).sum()
            values.append(
                (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
                / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4))
            )  # fmt: skip
    return float(np.mean(values))


@settings(max_examples=15, deadline=None)
@given(st.integers(11, 16), st.integers(11, 16), st.integers(1, 3), st.integers(0, 2**16), st.floats(0, 1))
def test_ssim_is_the_paper_s(height: int, width: int, channels: int, seed: int, noise: float) -> None:
    draws = np.random.default_rng(seed)
    first = draws.random((2, channels, height, width))
    second = first * (1 - noise) + draws.random(first.shape) * noise
    wanted = [np.mean([by_loops(*pair) for pair in zip(*images, strict=True)])
              for images in zip(first, second, strict=True)]  # fmt: skip
    assert ssim(torch.from_numpy(first), torch.from_numpy(second)).tolist() == pytest.approx(wanted, abs=1e-9)


def test_the_same_image_is_wholly_similar_and_its_negative_is_not() -> None:
    image = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert ssim(image, image).item() == pytest.approx(1)
    assert ssim(image, 1 - image).item() < 0


def test_it_has_a_gradient() -> None:
    image = torch.rand(2, 1, 11, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = (image * 0.7).requires_grad_()
    assert torch.autograd.gradcheck(lambda each: ssim(image, each), (other,))
