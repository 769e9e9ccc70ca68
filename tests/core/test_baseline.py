"""The check that the original is better than guessing."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.baseline import chance_of_at_least, check_better_than_guessing
from core.errors import BaselineNearChance


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 19))
def test_the_tail_is_the_binomial_one(images: int, correct: int, twentieths: int) -> None:
    p = Fraction(twentieths, 20)
    exact = sum(comb(images, k) * p**k * (1 - p) ** (images - k) for k in range(correct, images + 1))
    assert chance_of_at_least(correct, images, float(p)) == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


def test_large_numbers_stay_finite() -> None:
    assert chance_of_at_least(50_000, 100_000, 0.5) == pytest.approx(0.5, abs=0.01)
    assert chance_of_at_least(60_000, 100_000, 0.5) < 1e-300


@pytest.mark.parametrize("correct", [0, 100, 110, 125])
def test_guessing_is_refused(correct: int) -> None:
    with pytest.raises(BaselineNearChance, match=r"always naming the commonest class gives 10\.0%") as raised:
        check_better_than_guessing(correct, [100] * 10)
    pointers = [fault.pointer for fault in raised.value.faults]
    assert pointers == ["/preprocess", "/preprocess/class_order", "/recipe/allow_near_chance"]


def test_better_than_guessing_passes() -> None:
    check_better_than_guessing(135, [100] * 10)


def test_the_commonest_class_is_the_measure() -> None:
    with pytest.raises(BaselineNearChance):
        check_better_than_guessing(905, [900, 100])  # 90.5 %, but naming class 0 gives 90 %
    check_better_than_guessing(940, [900, 100])
