"""Some classes of a dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from core.data.datasets import Dataset, load_dataset
from core.errors import DatasetMismatch, DatasetUnsuitable
from core.job import DatasetInput, DatasetOptions, Preprocess, Splits

X = np.random.default_rng(0).integers(0, 256, (80, 6, 5), dtype=np.uint8)
Y = np.arange(80) % 4


def load(path: Path, *, order: Any = None, **splits: Any) -> Dataset:
    options = DatasetOptions(preprocess=Preprocess(class_order=order), splits=Splits(**splits))
    return load_dataset(DatasetInput(path=path, sha256=None, format="npz", options=options))


@pytest.fixture
def path(make_npz: Callable[..., Path]) -> Path:
    return make_npz(x_train=X, y_train=Y)


def images_of(data: Dataset) -> dict[str, set[bytes]]:
    """By class, over all splits."""
    found: dict[str, set[bytes]] = {}
    for split in data.splits.values():
        for image, label in zip(split.x, split.y.tolist(), strict=True):
            found.setdefault(data.classes[label], set()).add(image.numpy().tobytes())
    return found


def test_two_halves_are_the_whole(path: Path) -> None:
    """The same classes, as a choice and as a holdout: two datasets that share nothing and miss nothing."""
    whole, some, others = load(path), load(path, classes=("1", "3")), load(path, holdout_classes=("1", "3"))
    assert (some.classes, others.classes) == (("1", "3"), ("0", "2"))
    assert images_of(some) | images_of(others) == images_of(whole)
    assert some.summary()["classes_left_out"] == 2
    assert set(some.splits["train"].y.tolist()) == {0, 1}


def test_the_order_of_the_names_does_not_matter(path: Path) -> None:
    first, second = load(path, classes=("1", "3")), load(path, classes=("3", "1"))
    assert first.classes == second.classes
    assert torch.equal(first.splits["train"].x, second.splits["train"].x)


def test_a_model_of_all_classes_is_given_their_order(path: Path) -> None:
    """So that some classes of a dataset fit a model that was trained on all of them."""
    data = load(path, classes=("1", "3"), order=("3", "2", "1", "0"))
    assert data.classes == ("3", "2", "1", "0")
    assert set(data.splits["train"].y.tolist()) == {0, 2}
    with pytest.raises(DatasetMismatch):
        load(path, classes=("1", "3"), order=("1", "2"))


def test_names_that_are_not_there(path: Path) -> None:
    with pytest.raises(DatasetUnsuitable) as error:
        load(path, holdout_classes=("1", "cat", "dog"))
    assert [fault.pointer for fault in error.value.faults] == ["/splits/holdout_classes/1", "/splits/holdout_classes/2"]
    assert error.value.faults[0].expected == "one of 0, 1, 2, 3"


def test_a_split_that_would_be_empty(make_npz: Callable[..., Path]) -> None:
    path = make_npz(x_train=X, y_train=Y, x_test=X[:20] // 2, y_test=Y[:20] % 2)
    assert load(path, classes=("0", "1", "2")).splits["test"].given
    with pytest.raises(DatasetUnsuitable, match="left empty") as error:
        load(path, classes=("2", "3"))
    assert "test has no images of 2, 3" in error.value.faults[0].message


def test_one_class_is_none(path: Path) -> None:
    with pytest.raises(DatasetUnsuitable):
        load(path, holdout_classes=("0", "1", "2"))


@pytest.mark.parametrize(
    "options",
    [
        {"classes": ("1", "2"), "holdout_classes": ("3",)},
        {"classes": ("1", "1")},
        {"classes": ("1",)},
        {"holdout_classes": ()},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Splits(**options)
