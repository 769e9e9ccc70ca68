from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from core.data.datasets import Dataset
from core.data.source import Images, Source
from core.data.splits import order_classes, split_source
from core.errors import DatasetMismatch, DatasetUnsuitable
from core.job import Splits

Load = Callable[..., Dataset]
Npz = Callable[..., Path]


def source(counts: tuple[int, ...] = (20, 30, 50)) -> Source:
    """Images whose pixel is their position in the upload."""
    y = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    y = y[torch.from_numpy(np.random.default_rng(1).permutation(len(y)))]
    x = torch.arange(len(y), dtype=torch.uint8).view(-1, 1, 1, 1).clone()
    return Source({"train": Images(x, y)}, tuple("abcdefgh"[: len(counts)]))


def test_splits_are_stratified_and_complete() -> None:
    given = source()
    labels = given.splits["train"].y.clone()
    parts = split_source(given, Splits(validation=0.1, test=0.2, seed=3))
    positions = {name: part.images.x.flatten().tolist() for name, part in parts.items()}
    assert sorted(position for each in positions.values() for position in each) == list(range(100))
    for part in parts.values():
        # each image still has its own label
        assert torch.equal(part.images.y, labels[part.images.x.flatten().long()])
    assert torch.bincount(parts["test"].images.y).tolist() == [4, 6, 10]
    assert torch.bincount(parts["validation"].images.y).tolist() == [2, 3, 5]
    assert torch.bincount(parts["train"].images.y).tolist() == [14, 21, 35]


def test_images_are_held_once() -> None:
    given = source()
    before = given.splits["train"].x
    parts = split_source(given, Splits())
    assert all(
        part.images.x.untyped_storage().data_ptr() == before.untyped_storage().data_ptr() for part in parts.values()
    )


def test_the_seed_decides() -> None:
    first, again, other = (split_source(source(), Splits(seed=seed)) for seed in (1, 1, 2))
    assert {name: part.index_sha256 for name, part in first.items()} == {
        name: part.index_sha256 for name, part in again.items()
    }
    assert all(first[name].index_sha256 != other[name].index_sha256 for name in first)


def test_small_classes_give_each_split_an_image_or_are_refused() -> None:
    parts = split_source(source((3, 40)), Splits(validation=0.1, test=0.1))
    assert [torch.bincount(part.images.y)[0].item() for part in parts.values()] == [1, 1, 1]
    with pytest.raises(DatasetUnsuitable) as caught:
        split_source(source((2, 40, 1)), Splits())
    assert [fault.pointer for fault in caught.value.faults] == ["/file/a", "/file/c"]


def test_shares_that_leave_no_train_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        Splits(validation=0.5, test=0.5)
    assert Splits(validation=0.5, test=0.49).test == 0.49


def test_a_share_that_the_upload_leaves_no_use_for_is_told(load: Load, make_npz: Npz) -> None:
    x = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    y = np.arange(60) % 3
    path = make_npz(x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    told = load(path, "npz", splits={"test": 0.3, "validation": 0.2}).summary()["warnings"]
    assert told == ["splits.test 0.3 is not used: the dataset has a test split of its own"]
    assert load(path, "npz").summary()["warnings"] == []


def test_class_order_is_that_of_the_model() -> None:
    given = source()
    ordered = order_classes(given, ("c", "a", "b"))
    assert ordered.classes == ("c", "a", "b")
    names = [given.classes[label] for label in given.splits["train"].y]
    assert [ordered.classes[label] for label in ordered.splits["train"].y] == names


def test_class_order_may_name_classes_without_images() -> None:
    ordered = order_classes(source(), ("a", "x", "b", "c"))
    assert torch.bincount(ordered.splits["train"].y).tolist() == [20, 0, 30, 50]
    assert ordered.warnings == ["class_order names 1 class(es) without images: x"]


def test_a_class_order_that_is_none_is_refused_with_every_fault() -> None:
    with pytest.raises(DatasetMismatch) as caught:
        order_classes(source(), ("a", "a", "cat"))
    assert [(fault.pointer, fault.message) for fault in caught.value.faults] == [
        ("/preprocess/class_order", "'a' is named more than once"),
        ("/preprocess/class_order", "the dataset's class 'b' is missing"),
        ("/preprocess/class_order", "the dataset's class 'c' is missing"),
    ]


def images(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4), dtype=np.uint8)


def test_the_same_images_in_train_and_test_are_refused(load: Load, make_npz: Npz) -> None:
    x, y = images(0, 20), np.arange(20) % 2
    with pytest.raises(DatasetUnsuitable, match="overlap") as caught:
        load(make_npz(x_train=x, y_train=y, x_test=x[::-1], y_test=y[::-1]), "npz")
    assert ("/file/test", "all 20 images of test are in train too") in [
        (fault.pointer, fault.message) for fault in caught.value.faults
    ]


def test_a_few_images_in_two_splits_are_a_warning(load: Load, make_npz: Npz) -> None:
    x, y = images(0, 20), np.arange(20) % 2
    test = np.concatenate([images(1, 7), x[:3]])
    data = load(make_npz(x_train=x, y_train=y, x_val=images(2, 6), y_val=y[:6], x_test=test, y_test=y[:10]), "npz")
    assert data.warnings == ("3 of 10 images of test are in train too",)
    assert data.summary()["warnings"] == ["3 of 10 images of test are in train too"]
