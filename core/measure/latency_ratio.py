"""The latency of one file against another's, with its doubt: what a target of latency is decided by.

Both run in one process, their samples in turns. A window gives one ratio, of the medians of its samples. Each window
opens both files anew, since where a session's memory happens to lie moves its latency by some per cent for as long as
it lives: windows of one pair of sessions would agree with each other more than with the next pair. The result is the
median of the windows' ratios, and around it the narrowest interval between two of them that holds the true median
with at least 95 % (order statistics, whatever the ratios' distribution: Conover 1999, section 3.2).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from core.measure.latency import FEWEST_SAMPLES, MOST_SAMPLES, take_window, uncollected, warm_up
from core.measure.sessions import Floats, bound_run, in_own_thread, open_session, require_batch
from core.report import LatencyRatio

FEWEST_WINDOWS, MOST_WINDOWS = 6, 15
"""Of five windows even the whole range holds the median with 94 % only."""

WINDOW_SECONDS, WARM_UP_SECONDS = 0.2, 0.05
BUDGET_SECONDS = 6.0
CONFIDENCE = 0.95
Run = Callable[[], None]


@in_own_thread
def measure_latency_ratio(
    original: Path, candidate: Path, inputs: Floats, *, budget_seconds: float = BUDGET_SECONDS
) -> LatencyRatio:
    """Latency of `candidate` over that of `original` in ONNX Runtime on the CPU, with one thread.

    inputs: float32 (B, ...), for both. Raises `ValueError` where a file fixes another batch size than B.
    """

    def opened(path: Path) -> Run:
        session = open_session(path)
        require_batch(session, len(inputs))
        return bound_run(session, inputs, "cpu")

    return sample_ratio(lambda: opened(original), lambda: opened(candidate), budget_seconds=budget_seconds)


def sample_ratio(
    original: Callable[[], Run],
    candidate: Callable[[], Run],
    *,
    budget_seconds: float = BUDGET_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyRatio:
    """Takes 15 windows; after 6, no more once `budget_seconds` are over. Each opens both, warms up and takes samples.

    original, candidate: open a session and return what runs it once. `clock` in seconds.
    """
    start = clock()
    medians: list[tuple[float, float]] = []
    while len(medians) < MOST_WINDOWS:
        if len(medians) >= FEWEST_WINDOWS and clock() - start >= budget_seconds:
            break
        if len(medians) % 2:  # neither is always the one that is opened first
            runs = {"candidate": candidate(), "original": original()}
        else:
            runs = {"original": original(), "candidate": candidate()}
        seconds = warm_up(runs, clock, WARM_UP_SECONDS)
        size = min(MOST_SAMPLES, max(FEWEST_SAMPLES, round(WINDOW_SECONDS / max(seconds, 1e-9))))
        with uncollected():
            window = take_window(runs, size, clock)
        medians.append((statistics.median(window["original"]), statistics.median(window["candidate"])))
    ratios = [after / before for before, after in medians]
    low, high = median_interval(ratios)
    return LatencyRatio(
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        windows=len(ratios),
        original_ms=statistics.median(before for before, _ in medians),
        candidate_ms=statistics.median(after for _, after in medians),
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The ends of the narrowest interval between two of at least six `values`, equally far from either end of their
    order, that holds the median of what they are drawn from with a probability of at least 95 %.

    It misses it where all but k of them fall on one side: 2 · P(Binomial(n, 1/2) ≤ k).
    """
    ordered, count = sorted(values), len(values)
    left_out, missed = 0, 2 * 0.5**count
    if missed > 1 - CONFIDENCE:
        raise ValueError(f"{count} values are too few for an interval")
    while (more := missed + 2 * math.comb(count, left_out + 1) * 0.5**count) <= 1 - CONFIDENCE:
        left_out, missed = left_out + 1, more
    return ordered[left_out], ordered[count - 1 - left_out]
