from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from core.data.augment import Draws, add_noise, apply, crop_padding, draw, seeded
from core.training_settings import Augmentation

CROP, CROP_FLIP = Augmentation(crop=True), Augmentation(crop=True, flip=True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_each_image_is_padded_cropped_and_mirrored_by_its_own_draws(channels: int, dtype: torch.dtype) -> None:
    batch = torch.randint(0, 256, (50, channels, 32, 28)).to(dtype)
    draws = draw(CROP_FLIP, 50, 32, 28, seed=1, epoch=1)
    assert draws is not None
    found = apply(batch, draws)
    assert found.dtype == dtype
    for image, result, row, column, flip in zip(batch, found, draws.rows, draws.columns, draws.flips, strict=True):
        padded = functional.pad(image, (4, 4, 4, 4))
        expected = padded[:, row : row + 32, column : column + 28]
        assert torch.equal(result, expected.flip(2) if flip else expected)


def test_draws_cover_every_place() -> None:
    draws = draw(CROP_FLIP, 2000, 32, 32, seed=0, epoch=0)
    assert draws is not None
    assert set(draws.rows.tolist()) == set(draws.columns.tolist()) == set(range(9))
    assert 900 < int(draws.flips.sum()) < 1100


def test_crop_does_not_mirror() -> None:
    draws = draw(CROP, 100, 8, 8, seed=0, epoch=0)
    assert draws is not None
    assert not draws.flips.any()
    assert draws.pad == 1


def test_none_draws_nothing() -> None:
    assert draw(Augmentation(), 10, 8, 8, seed=0, epoch=0) is None
    assert draw(Augmentation(noise=0.1, mixup=0.2), 10, 8, 8, seed=0, epoch=0) is None  # these move no sample


@pytest.mark.parametrize(("height", "pad"), [(4, 1), (8, 1), (16, 2), (32, 4), (224, 4)])
def test_padding(height: int, pad: int) -> None:
    assert crop_padding(height) == pad


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    images = torch.randint(0, 256, (1, 3, 9, 9), dtype=torch.uint8)
    draws = draw(Augmentation(rotate=90), 1, 9, 9, seed=0, epoch=0)
    assert draws is not None
    turned = apply(images, replace(draws, angles=torch.tensor([math.pi / 2])))
    assert torch.allclose(turned, torch.rot90(images, 1, (2, 3)).float(), atol=1e-2)
    assert torch.allclose(apply(images, replace(draws, angles=torch.zeros(1))), images.float(), atol=1e-3)


def test_a_turn_of_an_oblong_image_bends_nothing() -> None:
    """A square in the middle of a wide image, turned by a quarter, is the same square."""
    image = torch.zeros(1, 1, 12, 24)
    image[:, :, 4:8, 10:14] = 200
    draws = draw(Augmentation(rotate=90), 1, 12, 24, seed=0, epoch=0)
    assert draws is not None
    assert torch.allclose(apply(image, replace(draws, angles=torch.tensor([math.pi / 2]))), image, atol=1e-2)


def test_angles_lie_within_the_bound_on_both_sides() -> None:
    draws = draw(Augmentation(rotate=30), 2000, 8, 8, seed=0, epoch=0)
    assert draws is not None
    assert draws.angles is not None
    assert -math.radians(30) <= draws.angles.min() < -0.5 < 0.5 < draws.angles.max() <= math.radians(30)


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 1000))
def test_boxes_lie_inside(height: int, width: int, seed: int) -> None:
    draws = draw(Augmentation(erase=0.5), 64, height, width, seed=seed, epoch=0)
    assert draws is not None
    assert draws.boxes is not None
    top, left, tall, wide = draws.boxes.unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (top + tall <= height) & (left + wide <= width)).all())
    assert bool((wide >= 1).all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_box_is_filled_with_the_mean(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (200, 3, 16, 12)).to(dtype)
    draws = draw(Augmentation(erase=0.4), 200, 16, 12, seed=0, epoch=0)
    assert draws is not None
    assert draws.boxes is not None
    found = apply(images, draws)
    assert found.dtype == dtype
    erased = draws.boxes[:, 2] > 0
    assert 50 < int(erased.sum()) < 110
    for image, result, (top, left, tall, wide) in zip(images, found, draws.boxes.tolist(), strict=True):
        mean = image.float().mean((1, 2), keepdim=True)
        expected = image.clone()
        expected[:, top : top + tall, left : left + wide] = mean.round() if dtype == torch.uint8 else mean
        assert torch.equal(result, expected)


def test_noise_has_its_deviation_and_stays_in_range() -> None:
    images = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    noisy = add_noise(images, 0.1, seeded(0, 0, "noise"))
    assert abs(float(noisy.std()) / 25.5 - 1) < 0.02
    assert abs(float(noisy.mean()) - 128) < 0.5
    strong = add_noise(images, 1.0, seeded(0, 0, "noise"))
    assert (float(strong.min()), float(strong.max())) == (0.0, 255.0)


def test_one_augmentation_does_not_change_the_draws_of_another() -> None:
    alone = draw(CROP_FLIP, 20, 8, 8, seed=3, epoch=2)
    more = draw(Augmentation(crop=True, flip=True, rotate=5, erase=0.5), 20, 8, 8, seed=3, epoch=2)
    assert alone is not None
    assert more is not None
    assert torch.equal(alone.rows, more.rows)
    assert torch.equal(alone.flips, more.flips)


def test_a_sample_s_draw_does_not_depend_on_its_batch() -> None:
    draws = draw(CROP_FLIP, 10, 8, 8, seed=0, epoch=0)
    assert draws is not None
    images = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8)
    whole = apply(images, draws)
    some = torch.tensor([7, 2, 5])
    taken = draws.take(some, torch.device("cpu"))
    assert isinstance(taken, Draws)
    assert torch.equal(apply(images[some], taken), whole[some])
