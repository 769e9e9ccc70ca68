"""Folding, where it has to be exact."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from core.errors import ModelTooLarge
from core.graph.onnx_constants import CannotFold, fold

RANGE = helper.make_node("Range", ["start", "stop", "step"], ["y"])


@pytest.mark.parametrize(
    ("start", "stop", "step", "expected"),
    [
        (0.5, 3.0, 1.0, [0.5, 1.5, 2.5]),
        (0.0, 1.0, 0.25, [0.0, 0.25, 0.5, 0.75]),
        (2.5, 0.0, -1.0, [2.5, 1.5, 0.5]),
        (1.0, 0.0, 1.0, []),
        (3, 9, 3, [3, 6]),
        (10, 4, -2, [10, 8, 6]),
    ],
)
def test_range(start: float, stop: float, step: float, expected: list[float]) -> None:
    kind = np.float32 if isinstance(start, float) else np.int64
    found = fold(RANGE, [np.array(value, dtype=kind) for value in (start, stop, step)])
    assert found.tolist() == expected
    assert found.dtype == kind


@pytest.mark.parametrize("step", [0.0, np.nan])
def test_a_range_without_an_end_is_not_folded(step: float) -> None:
    with pytest.raises(CannotFold):
        fold(RANGE, [np.array(value, dtype=np.float32) for value in (0, 1, step)])


def test_a_long_range_is_refused() -> None:
    with pytest.raises(ModelTooLarge):
        fold(RANGE, [np.array(value, dtype=np.float32) for value in (0, 1, 1e-30)])
