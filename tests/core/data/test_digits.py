from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from core.data.datasets import Dataset
from core.data.digits import DIGITS
from core.errors import DatasetRefused

Load = Callable[..., Dataset]


def test_the_digits_are_the_uci_digits(load: Load) -> None:
    data = load(None, "digits")
    summary = data.summary()
    assert summary["images"] == 1797
    assert summary["image_shape"] == [1, 8, 8]
    assert data.classes == tuple("0123456789")
    counts = torch.stack([torch.bincount(split.y) for split in data.splits.values()]).sum(0)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as UCI's documentation lists them
    assert "CC BY 4.0" in summary["source"]
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 1259, "validation": 179, "test": 359}


def test_the_scale_goes_back_to_0_to_16() -> None:
    with np.load(DIGITS) as arrays:
        held = arrays["x_train"]
    original = np.rint(held.astype(float) * 16 / 255)
    assert np.array_equal(np.rint(original * 255 / 16), held)
    assert set(np.unique(original)) == set(range(17))


def test_a_file_is_refused(load: Load, tmp_path: Path) -> None:
    with pytest.raises(DatasetRefused) as caught:
        load(tmp_path / "a.npz", "digits")
    assert caught.value.faults[0].pointer == "/format"
