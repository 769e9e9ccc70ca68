"""A ratio of latencies and its doubt. No test asks how fast anything is: the clock is the test's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count, cycle, repeat
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
    """A clock that only the runs move. `costs`: of each session that is opened, the seconds of each run."""

    def __init__(self, original: Callable[[], Iterator[float]], candidate: Callable[[], Iterator[float]]) -> None:
        self.now = 0.0
        self.costs = {"original": original, "candidate": candidate}
        self.calls: list[str] = []
        self.opened: list[str] = []

    def sample(self, budget_seconds: float) -> LatencyRatio:
        def opener(name: str) -> Callable[[], Callable[[], None]]:
            def opened() -> Callable[[], None]:
                self.opened.append(name)
                costs = self.costs[name]()

                def run() -> None:
                    self.calls.append(name)
                    self.now += next(costs)

                return run

            return opened

        return sample_ratio(
            opener("original"), opener("candidate"), budget_seconds=budget_seconds, clock=lambda: self.now
        )


def always(seconds: float) -> Callable[[], Iterator[float]]:
    return lambda: repeat(seconds)


def test_windows_are_interleaved_and_their_ratios_counted() -> None:
    machine = Machine(always(0.1), always(0.05))
    found = machine.sample(1e9)
    assert (found.ratio, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found.original_ms, found.candidate_ms) == pytest.approx((100, 50))
    assert found.windows == MOST_WINDOWS
    # at that pace five runs of each to warm up, and five samples of each
    assert len(machine.calls) == MOST_WINDOWS * 20
    assert machine.calls[10:14] == ["original", "candidate", "candidate", "original"]


def test_each_window_opens_both_anew_and_neither_is_always_first() -> None:
    machine = Machine(always(0.1), always(0.05))
    machine.sample(1e9)
    assert machine.opened[:4] == ["original", "candidate", "candidate", "original"]
    assert len(machine.opened) == 2 * MOST_WINDOWS


def test_sessions_that_differ_leave_a_doubt() -> None:
    """What one pair of sessions would have told to the digit."""
    levels = cycle([0.04, 0.05, 0.06])
    found = Machine(always(0.1), lambda: repeat(next(levels))).sample(1e9)
    assert found.ratio == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0.4, 0.6))


def test_a_slow_network_is_measured_for_no_longer_than_it_must() -> None:
    assert Machine(always(10.0), always(9.0)).sample(1.0).windows == FEWEST_WINDOWS


def test_what_slows_the_machine_down_slows_both_and_leaves_the_ratio() -> None:
    load = count(50)

    def slower(seconds: float) -> Callable[[], Iterator[float]]:
        return lambda: (seconds * next(load) / 50 for _ in repeat(None))

    assert Machine(slower(0.1), slower(0.05)).sample(1e9).ratio == pytest.approx(0.5, abs=0.01)


def test_real_files_are_run(linear_file: MakeFile) -> None:
    small = linear_file(np.ones((3, 64)), name="small")
    large = linear_file(np.ones((3, 64)), name="large")
    found = measure_latency_ratio(large, small, np.zeros((1, 1, 8, 8), np.float32), budget_seconds=0.1)
    assert 0 < found.low <= found.ratio <= found.high
    assert FEWEST_WINDOWS <= found.windows <= MOST_WINDOWS
    fixed = linear_file(np.ones((3, 64)), batch=2, name="fixed")
    with pytest.raises(ValueError, match="batches of 2"):
        measure_latency_ratio(fixed, small, np.zeros((1, 1, 8, 8), np.float32))
