"""Mixup and CutMix against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from core.training.mixing import Mixed, mixed
from core.training_settings import Augmentation

IMAGES = torch.arange(6 * 3 * 8 * 10, dtype=torch.float32).view(6, 3, 8, 10)
LABELS = torch.arange(6)


def mix(images: torch.Tensor = IMAGES, seed: int = 0, layout: str = "NCHW", **augment: float) -> Mixed:
    found = mixed(images, LABELS, Augmentation(**augment), seed=seed, layout=layout)
    assert found is not None
    return found


def test_nothing_is_mixed_unless_asked() -> None:
    assert mixed(IMAGES, LABELS, Augmentation(crop=True, noise=0.1), seed=0, layout="NCHW") is None


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_images_as_it_blends_labels(seed: int) -> None:
    found = mix(seed=seed, mixup=0.4)
    assert 0 <= found.share <= 1
    expected = found.share * IMAGES + (1 - found.share) * IMAGES[found.labels]
    torch.testing.assert_close(found.images, expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_cutmix_puts_a_box_in_and_counts_its_pixels(seed: int, layout: str) -> None:
    images = IMAGES if layout == "NCHW" else IMAGES.permute(0, 2, 3, 1)
    found = mix(images, seed=seed, layout=layout, cutmix=1.0)
    ours, theirs = found.images == images, found.images == images[found.labels]
    assert bool((ours | theirs).all())
    changed = ~ours if layout == "NCHW" else ~ours.permute(0, 3, 1, 2)
    moved = found.labels != LABELS
    for one in changed[moved]:  # the same box in all channels, a rectangle
        rows, columns = one[0].any(1), one[0].any(0)
        assert torch.equal(one[0], rows[:, None] & columns[None, :])
        assert bool((one == one[0]).all())
        assert found.share == pytest.approx(1 - float(one[0].float().mean()))


def test_both_take_turns() -> None:
    kinds = {bool((mix(seed=seed, mixup=1.0, cutmix=1.0).images % 1 == 0).all()) for seed in range(30)}
    assert kinds == {True, False}


def test_the_loss_of_a_blend_is_that_of_blended_labels() -> None:
    """λ·loss(y_i) + (1 − λ)·loss(y_j) is the cross-entropy to the blended one-hot labels."""
    found = mix(mixup=1.0)
    logits = torch.randn(6, 6)
    first, second = functional.cross_entropy(logits, LABELS), functional.cross_entropy(logits, found.labels)
    one_hot = functional.one_hot(LABELS, 6), functional.one_hot(found.labels, 6)
    blended = found.share * one_hot[0] + (1 - found.share) * one_hot[1]
    torch.testing.assert_close(
        found.share * first + (1 - found.share) * second, functional.cross_entropy(logits, blended)
    )
