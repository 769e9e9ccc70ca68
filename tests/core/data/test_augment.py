from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from core.data.augment import AUGMENTATIONS, Draws, apply, crop_padding, draw


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_each_image_is_padded_cropped_and_mirrored_by_its_own_draws(channels: int, dtype: torch.dtype) -> None:
    batch = torch.randint(0, 256, (50, channels, 32, 28)).to(dtype)
    draws = draw("crop_flip", 50, 32, seed=1, epoch=1)
    assert draws is not None
    found = apply(batch, draws)
    assert found.dtype == dtype
    for image, result, row, column, flip in zip(batch, found, draws.rows, draws.columns, draws.flips, strict=True):
        padded = functional.pad(image, (4, 4, 4, 4))
        expected = padded[:, row : row + 32, column : column + 28]
        assert torch.equal(result, expected.flip(2) if flip else expected)


def test_draws_cover_every_place() -> None:
    draws = draw("crop_flip", 2000, 32, seed=0, epoch=0)
    assert draws is not None
    assert set(draws.rows.tolist()) == set(draws.columns.tolist()) == set(range(9))
    assert 900 < int(draws.flips.sum()) < 1100


def test_crop_does_not_mirror() -> None:
    draws = draw("crop", 100, 8, seed=0, epoch=0)
    assert draws is not None
    assert not draws.flips.any()
    assert draws.pad == 1


def test_none_draws_nothing() -> None:
    assert draw("none", 10, 8, seed=0, epoch=0) is None
    assert set(AUGMENTATIONS) == {"none", "crop", "crop_flip"}


@pytest.mark.parametrize(("height", "pad"), [(4, 1), (8, 1), (16, 2), (32, 4), (224, 4)])
def test_padding(height: int, pad: int) -> None:
    assert crop_padding(height) == pad


def test_a_sample_s_draw_does_not_depend_on_its_batch() -> None:
    draws = draw("crop_flip", 10, 8, seed=0, epoch=0)
    assert draws is not None
    images = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8)
    whole = apply(images, draws)
    some = torch.tensor([7, 2, 5])
    taken = draws.take(some, torch.device("cpu"))
    assert isinstance(taken, Draws)
    assert torch.equal(apply(images[some], taken), whole[some])
