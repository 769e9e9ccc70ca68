"""A ratio of latencies and its doubt. No test asks how fast anything is: the clock is the test's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.measure.latency_ratio import (
    FEWEST_WINDOWS,
    MOST_WINDOWS,
    measure_latency_ratio,
    median_interval,
    sample_ratio,
)
from core.report import LatencyRatio

MakeFile = Callable[..., Path]


@given(values=st.lists(st.floats(0.01, 100), min_size=6, max_size=30))
def test_the_interval_is_the_narrowest_that_holds_the_median_often_enough(values: list[float]) -> None:
    n, ordered = len(values), sorted(values)
    low, high = median_interval(values)

    def coverage(k: int) -> float:
        """Of the interval from the k-th to the k-th last: the median has at least k values on either side."""
        return sum(math.comb(n, below) for below in range(k, n - k + 1)) / 2**n

    enough = [k for k in range(1, n // 2 + 1) if coverage(k) >= 0.95]
    assert (low, high) == (ordered[max(enough) - 1], ordered[n - max(enough)])
    assert low <= float(np.median(values)) <= high


def test_too_few_windows_have_no_interval() -> None:
    assert median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    assert median_interval([float(number) for number in range(1, 16)]) == (4.0, 12.0)
    with pytest.raises(ValueError, match="too few"):
        median_interval([1.0] * 5)


class Machine:
    """A clock that only the runs move."""

    def __init__(self, original: Iterator[float], candidate: Iterator[float]) -> None:
        self.now = 0.0
        self.costs = {"original": original, "candidate": candidate}
        self.calls: list[str] = []

    def sample(self, budget_seconds: float) -> LatencyRatio:
        def runner(name: str) -> Callable[[], None]:
            def run() -> None:
                self.calls.append(name)
                self.now += next(self.costs[name])

            return run

        return sample_ratio(
            runner("original"), runner("candidate"), budget_seconds=budget_seconds, clock=lambda: self.now
        )


def always(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def test_windows_are_interleaved_and_their_ratios_counted() -> None:
    machine = Machine(always(0.1), always(0.05))
    found = machine.sample(1e9)
    assert (found.ratio, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found.original_ms, found.candidate_ms) == pytest.approx((100, 50))
    assert found.windows == MOST_WINDOWS
    first = len(machine.calls) - MOST_WINDOWS * 2 * 5  # five samples of each in a window, at that pace
    assert machine.calls[first : first + 4] == ["original", "candidate", "candidate", "original"]


def test_a_slow_network_is_measured_for_no_longer_than_it_must() -> None:
    found = Machine(always(10.0), always(9.0)).sample(1.0)
    assert found.windows == FEWEST_WINDOWS


def test_what_slows_the_machine_down_slows_both_and_leaves_the_ratio() -> None:
    def drifting(seconds: float) -> Iterator[float]:
        yield from (seconds * (1 + number / 50) for number in count())

    found = Machine(drifting(0.1), drifting(0.05)).sample(1e9)
    assert found.ratio == pytest.approx(0.5, abs=0.01)


def test_windows_that_disagree_leave_a_doubt() -> None:
    def jumping() -> Iterator[float]:
        yield from [0.05] * 5  # the warm-up
        while True:
            for level in (0.04, 0.05, 0.06):
                yield from [level] * 5

    found = Machine(always(0.1), jumping()).sample(1e9)
    assert found.ratio == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0.4, 0.6))


def test_real_files_are_run(linear_file: MakeFile) -> None:
    small = linear_file(np.ones((3, 64)), name="small")
    large = linear_file(np.ones((3, 64)), name="large")
    found = measure_latency_ratio(large, small, np.zeros((1, 1, 8, 8), np.float32), budget_seconds=0.1)
    assert 0 < found.low <= found.ratio <= found.high
    assert FEWEST_WINDOWS <= found.windows <= MOST_WINDOWS
    fixed = linear_file(np.ones((3, 64)), batch=2, name="fixed")
    with pytest.raises(ValueError, match="batches of 2"):
        measure_latency_ratio(fixed, small, np.zeros((1, 1, 8, 8), np.float32))
