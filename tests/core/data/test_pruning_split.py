"""A split for scoring, taken from train and given back to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from core.data.datasets import Dataset
from core.data.rows import Stored
from core.errors import DatasetUnsuitable
from core.job import Room, Splits

Load = Callable[..., Dataset]
Npz = Callable[..., Path]
IMAGES, CLASSES = 120, 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        x_train=draws.integers(0, 256, (IMAGES, 6, 6, 3), dtype=np.uint8),
        y_train=np.arange(IMAGES) % CLASSES,
        x_test=draws.integers(0, 256, (20, 6, 6, 3), dtype=np.uint8),
        y_test=np.arange(20) % CLASSES,
    )
    return tmp_path / "data.npz"


def rows_of(data: Dataset, split: str) -> list[bytes]:
    return [row.numpy().tobytes() for chunk in data.splits[split].rows.chunks() for row in chunk]  # type: ignore[index]


@pytest.mark.parametrize("room", [None, Room(memory_bytes=100)], ids=["held", "streamed"])
@pytest.mark.parametrize("channels", [None, "L"])
def test_it_is_taken_from_train_and_given_back(load: Load, file: Path, room: Room | None, channels: str | None) -> None:
    options = {} if channels is None else {"channels": channels}
    data = load(file, "npz", splits={"pruning": 0.1, "validation": 0.2}, room=room, **options)
    if channels is not None:
        data = data.with_channels("L")
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 84, "pruning": 12, "validation": 24, "test": 20,
    }  # fmt: skip
    assert torch.bincount(data.splits["pruning"].y).tolist() == [3, 3, 3, 3]
    parts = [set(rows_of(data, name)) for name in data.splits]
    assert sum(map(len, parts)) == len(set.union(*parts)) == IMAGES + 20
    both = data.with_pruning_in_train()
    assert rows_of(both, "train") == rows_of(data, "train") + rows_of(data, "pruning")
    assert both.splits["train"].y.equal(torch.cat([data.splits["train"].y, data.splits["pruning"].y]))
    assert rows_of(both, "pruning") == rows_of(data, "pruning")
    summary = data.summary()
    assert summary["splits"]["pruning"]["images"] == 12
    assert not summary["splits"]["pruning"]["given"]


def test_giving_it_back_copies_nothing(load: Load, file: Path) -> None:
    data = load(file, "npz", splits={"pruning": 0.1})
    assert data.with_pruning_in_train().splits["train"].x.data_ptr() == data.splits["train"].x.data_ptr()


def test_streamed_it_stays_in_its_file(load: Load, file: Path) -> None:
    data = load(file, "npz", splits={"pruning": 0.1}, room=Room(memory_bytes=100))
    assert isinstance(data.with_pruning_in_train().splits["train"].rows, Stored)


def test_without_one_nothing_is_different(load: Load, file: Path) -> None:
    assert "pruning" not in load(file, "npz").splits


def test_shares_must_leave_something() -> None:
    with pytest.raises(ValueError, match=r"validation \(0.5\) and test \(0.3\) and pruning \(0.2\) leave nothing"):
        Splits(validation=0.5, test=0.3, pruning=0.2)


def test_each_class_must_have_enough(load: Load, file: Path) -> None:
    with pytest.raises(DatasetUnsuitable, match="too few images to be split"):
        load(file, "npz", splits={"pruning": 0.89, "validation": 0.1, "test": 0.005})
