from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.data.datasets import READERS, STATISTICS_ELEMENTS, Dataset
from core.errors import DatasetMismatch
from core.training_settings import Augmentation
from tests.core.fakes import small_dataset

Load = Callable[..., Dataset]
Npz = Callable[..., Path]
RGB = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
GREY = RGB[..., 0]
Y = np.arange(40) % 4

AUGMENT = Augmentation(crop=True, flip=True, rotate=10, erase=0.2, noise=0.05)


def stored(data: Dataset) -> torch.Tensor:
    return data.splits["train"].x


def test_preprocess_is_scale_then_mean_and_std(load: Load, make_npz: Npz) -> None:
    data = load(make_npz(x_train=RGB, y_train=Y), "npz", mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), scale=1 / 128)
    x = stored(data)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(data.preprocess(x), (x.float() / 128 - mean) / std, rtol=1e-6, atol=1e-6)
    assert data.preprocess(x).dtype == torch.float32


def test_the_default_is_0_to_1(load: Load, make_npz: Npz) -> None:
    data = load(make_npz(x_train=RGB, y_train=Y), "npz")
    torch.testing.assert_close(data.preprocess(stored(data)), stored(data).float() / 255)


def test_bgr_and_nhwc(load: Load, make_npz: Npz) -> None:
    data = load(make_npz(x_train=RGB, y_train=Y), "npz", channels="BGR", layout="NHWC", mean=(0.0, 0.0, 0.5))
    x = stored(data)
    expected = x.flip(1).permute(0, 2, 3, 1).float() / 255 - torch.tensor([0.0, 0.0, 0.5])  # red is the third here
    found = data.preprocess(x)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()
    assert tuple(found.shape[1:]) == data.input_shape == (6, 5, 3)


def test_grey_of_rgb_is_pillow_s(load: Load, make_npz: Npz) -> None:
    from PIL import Image

    data = load(make_npz(x_train=RGB, y_train=Y), "npz", channels="L")
    assert data.image_shape == data.input_shape == (1, 6, 5)
    expected = {np.array(Image.fromarray(image).convert("L")).tobytes() for image in RGB}
    assert {row.numpy().tobytes() for split in data.splits.values() for row in split.x} == expected


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_grey_images_are_repeated_for_a_colour_model(load: Load, make_npz: Npz, channels: str) -> None:
    data = load(make_npz(x_train=GREY, y_train=Y), "npz", channels=channels, mean=(0.1, 0.2, 0.3))
    x = stored(data)
    assert x.shape[1] == 1  # held once
    expected = x.expand(-1, 3, -1, -1).float() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(data.preprocess(x), expected)
    plain = load(make_npz(x_train=GREY, y_train=Y), "npz", channels=channels)
    assert plain.preprocess(stored(plain)).shape == (*x.shape[:1], 3, 6, 5)


def test_means_that_do_not_fit_the_channels_are_refused(load: Load, make_npz: Npz) -> None:
    data = load(make_npz(x_train=RGB, y_train=Y), "npz", mean=(0.1, 0.2), std=(1.0, 1.0, 1.0, 1.0))
    with pytest.raises(DatasetMismatch) as caught:
        data.preprocess(stored(data))
    assert [fault.pointer for fault in caught.value.faults] == ["/preprocess/mean", "/preprocess/std"]


def test_batches_see_every_image_once(load: Load) -> None:
    data = load(None, "digits")
    seen = torch.cat([x for x, _ in data.batches("train", 64, epoch=3, seed=1, shuffle=True)])
    expected = data.preprocess(stored(data))
    assert sorted(map(tuple, seen.flatten(1).tolist())) == sorted(map(tuple, expected.flatten(1).tolist()))
    sizes = [len(y) for _, y in data.batches("train", 64)]
    assert sum(sizes) == 1259
    assert len(sizes) == data.batch_count("train", 64) == 20
    assert max(sizes) - min(sizes) <= 1


def test_batches_in_order_are_the_split(load: Load) -> None:
    data = load(None, "digits")
    batches = list(data.batches("test", 100))
    assert torch.equal(torch.cat([x for x, _ in batches]), data.preprocess(data.splits["test"].x))
    assert torch.equal(torch.cat([y for _, y in batches]), data.splits["test"].y)


def epoch_of(data: Dataset, **options: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(data.batches("train", 200, shuffle=True, augment=AUGMENT, **options))  # type: ignore[arg-type]


def same(first: list[tuple[torch.Tensor, torch.Tensor]], second: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


def test_an_epoch_depends_on_seed_and_number_alone(load: Load) -> None:
    data = load(None, "digits")
    torch.manual_seed(1)
    epoch = epoch_of(data, seed=5, epoch=2)
    torch.manual_seed(2)
    assert same(epoch, epoch_of(load(None, "digits"), seed=5, epoch=2))
    assert not same(epoch, epoch_of(data, seed=5, epoch=3))
    assert not same(epoch, epoch_of(data, seed=6, epoch=2))


def test_an_epoch_can_be_taken_up_in_the_middle(load: Load) -> None:
    data = load(None, "digits")
    assert same(epoch_of(data, seed=5, epoch=2)[3:], epoch_of(data, seed=5, epoch=2, start=3))


def test_the_global_random_state_is_left_alone(load: Load) -> None:
    data = load(None, "digits")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    epoch_of(data)
    assert torch.equal(before, torch.get_rng_state())


def test_the_stored_images_are_not_changed_by_batches(load: Load) -> None:
    data = load(None, "digits")
    before = stored(data).clone()
    for x, _ in data.batches("train", 100):
        x.zero_()
    epoch_of(data)
    assert torch.equal(stored(data), before)


def test_a_batch_size_below_one_is_refused(load: Load) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(load(None, "digits").batches("train", 0))


def test_a_summary_is_json_and_says_what_is_held(load: Load, make_npz: Npz) -> None:
    data = load(make_npz(x_train=RGB, y_train=Y), "npz", splits={"validation": 0.2, "test": 0.3, "seed": 4})
    summary = data.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["classes"] == ["0", "1", "2", "3"]
    assert summary["splits"]["train"]["images"] == 20
    assert summary["splits"]["test"]["per_class"] == {"0": 3, "1": 3, "2": 3, "3": 3}
    chosen = {"validation": 0.2, "test": 0.3, "pruning": None, "seed": 4, "classes": None, "holdout_classes": None}
    assert summary["split_options"] == chosen
    scaled = stored(data).double() / 255
    assert summary["mean"] == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert summary["std"] == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist())


def test_content_hashes_tell_datasets_apart(load: Load, make_npz: Npz) -> None:
    def hashes(x: np.ndarray, y: np.ndarray) -> list[str]:
        splits = load(make_npz(x_train=x, y_train=y), "npz").summary()["splits"]
        return [splits[name]["content_sha256"] for name in splits]

    changed = RGB.copy()
    changed[:, 0, 0, 0] += 1
    assert hashes(RGB, Y) == hashes(RGB, Y)
    assert not set(hashes(RGB, Y)) & set(hashes(changed, Y))


def test_every_format_has_a_reader() -> None:
    from typing import get_args

    from core.job import DatasetFormat

    assert set(READERS) == set(get_args(DatasetFormat))


def test_statistics_hold_little_in_double_precision_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_dataset(images=24, size=224, channels=3)
    sizes: list[int] = []
    convert = torch.Tensor.to

    def to(tensor: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if arguments == (torch.float64,):
            sizes.append(tensor.numel())
        return convert(tensor, *arguments)

    monkeypatch.setattr(torch.Tensor, "to", to)
    mean = data.summary()["mean"]
    assert max(sizes) <= STATISTICS_ELEMENTS < sum(sizes) == 24 * 3 * 224 * 224
    assert mean == pytest.approx((data.splits["train"].x.double().mean((0, 2, 3)) / 255).tolist())
