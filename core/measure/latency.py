"""Latency of several files side by side, in ONNX Runtime.

Samples of the variants are interleaved one by one in one run, so that whatever the machine does meets all of them
alike; the first in line changes from sample to sample. A window is a fixed number of samples of each variant; windows
are repeated until three in a row agree within 10 % (as Triton Model Navigator does), for every variant's median.
The figures are of these three windows. A budget that runs out first gives `stable: false`, of the last three.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from core.measure.sessions import Floats, bound_run, in_own_thread, open_session, provider_of, require_batch
from core.report import Latency

AGREEING_WINDOWS = 3
AGREEMENT = 0.10
WARM_UP_RUNS = 5
WARM_UP_SECONDS = 0.3
WINDOW_SECONDS = 0.5
FEWEST_SAMPLES, MOST_SAMPLES = 5, 200


@dataclass(frozen=True)
class Samples:
    """Milliseconds of each variant in the windows that count, in the order taken; `windows` is how many were run."""

    milliseconds: dict[str, list[float]]
    windows: int
    stable: bool


@in_own_thread
def measure_latency(
    files: Mapping[str, Path],
    inputs: Floats,
    *,
    threads: int = 1,
    device: str = "cpu",
    budget_seconds: float = 20.0,
) -> dict[str, Latency]:
    """Latency of each file on the same `inputs`, float32 (B, ...), in milliseconds per batch of B.

    `budget_seconds` is for all of them together, warm-up not included. Raises `DeviceUnavailable`, or `ValueError`
    where a file fixes another batch size than B.
    """
    runs: dict[str, Callable[[], None]] = {}
    for name, path in files.items():
        session = open_session(path, threads=threads, device=device)
        require_batch(session, len(inputs))
        runs[name] = bound_run(session, inputs, device)
    samples = sample(runs, budget_seconds=budget_seconds)
    runtime = f"onnxruntime {onnxruntime.__version__} {provider_of(device)[0]}"
    return {
        name: _latency(values, samples, device=device, runtime=runtime, batch_size=len(inputs), threads=threads)
        for name, values in samples.milliseconds.items()
    }


def sample(
    runs: Mapping[str, Callable[[], None]],
    *,
    budget_seconds: float,
    window_samples: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Samples:
    """Warm up, then take windows until three in a row agree or the budget is used up.

    `window_samples`: per variant and window; None = as many as take half a second, 5 to 200. `clock` in seconds.
    """
    round_seconds = warm_up(runs, clock)
    if window_samples is None:
        window_samples = min(MOST_SAMPLES, max(FEWEST_SAMPLES, round(WINDOW_SECONDS / max(round_seconds, 1e-9))))
    windows: list[dict[str, list[float]]] = []
    start = clock()
    with uncollected():
        while True:
            windows.append(take_window(runs, window_samples, clock))
            stable = agree(windows)
            if stable or clock() - start >= budget_seconds:
                break
    counted = windows[-AGREEING_WINDOWS:]
    return Samples({name: [ms for window in counted for ms in window[name]] for name in runs}, len(windows), stable)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, whose work would land in one sample of one variant."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def agree(windows: list[dict[str, list[float]]]) -> bool:
    """Whether every variant's medians of the last three windows lie within 10 % of the smallest of the three."""
    if len(windows) < AGREEING_WINDOWS:
        return False
    last = windows[-AGREEING_WINDOWS:]
    for name in last[0]:
        medians = [statistics.median(window[name]) for window in last]
        if max(medians) > (1 + AGREEMENT) * min(medians):
            return False
    return True


def warm_up(
    runs: Mapping[str, Callable[[], None]], clock: Callable[[], float], seconds: float = WARM_UP_SECONDS
) -> float:
    """Run each a few times, for at least `seconds` in all; the seconds of one round, by the fastest seen."""
    start = clock()
    fastest = float("inf")
    rounds = 0
    while rounds < WARM_UP_RUNS or (clock() - start < seconds and rounds < 10 * MOST_SAMPLES):
        before = clock()
        for run in runs.values():
            run()
        fastest = min(fastest, clock() - before)
        rounds += 1
    return fastest


def take_window(
    runs: Mapping[str, Callable[[], None]], samples: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """So many samples of each, in turns, in milliseconds."""
    names = list(runs)
    milliseconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(samples):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            run = runs[name]
            before = clock()
            run()
            milliseconds[name].append((clock() - before) * 1e3)
    return milliseconds


def _latency(
    milliseconds: list[float], samples: Samples, *, device: str, runtime: str, batch_size: int, threads: int
) -> Latency:
    p50, p90, p99 = (float(value) for value in np.percentile(milliseconds, [50, 90, 99]))
    return Latency(
        device=device,
        runtime=runtime,
        batch_size=batch_size,
        threads=threads,
        latency_ms_p50=p50,
        latency_ms_p90=p90,
        latency_ms_p99=p99,
        latency_ms_mean=statistics.fmean(milliseconds),
        latency_ms_std=statistics.stdev(milliseconds),
        windows=samples.windows,
        stable=samples.stable,
        samples_ms=milliseconds,
    )
