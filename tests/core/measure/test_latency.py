from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from core.errors import DeviceUnavailable
from core.measure.latency import FEWEST_SAMPLES, MOST_SAMPLES, agree, measure_latency, sample
from core.measure.sessions import execution_providers

MakeFile = Callable[..., Path]


class Machine:
    """A clock that only the runs move. `costs`: seconds of each run of a variant, one after the other."""

    def __init__(self, **costs: Iterator[float]) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self._costs = costs

    def runs(self) -> dict[str, Callable[[], None]]:
        return {name: lambda name=name: self._run(name) for name in self._costs}  # type: ignore[misc]

    def clock(self) -> float:
        return self.now

    def _run(self, name: str) -> None:
        self.calls.append(name)
        self.now += next(self._costs[name])


def always(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def scripted(machine_warm_up: int, *windows: float, size: int) -> Iterator[float]:
    """One second each in the warm-up, then each window's cost for its samples, the last one for good."""
    yield from [1.0] * machine_warm_up
    for window in windows:
        yield from [window] * size
    yield from always(windows[-1])


WARM_UP = 5  # with runs of a second, the fewest


def test_samples_are_interleaved_and_the_first_in_line_changes() -> None:
    machine = Machine(original=always(1.0), pruned=always(0.5))
    sample(machine.runs(), budget_seconds=1e9, window_samples=4, clock=machine.clock)
    measured = machine.calls[2 * WARM_UP :]
    assert measured[:8] == ["original", "pruned", "pruned", "original", "original", "pruned", "pruned", "original"]


def test_three_variants_take_turns() -> None:
    machine = Machine(a=always(1.0), b=always(1.0), c=always(1.0))
    sample(machine.runs(), budget_seconds=1e9, window_samples=3, clock=machine.clock)
    assert "".join(machine.calls[3 * WARM_UP :][:9]) == "abcbcacab"


def test_three_windows_that_agree_are_enough() -> None:
    machine = Machine(original=always(1.0), pruned=always(0.5))
    result = sample(machine.runs(), budget_seconds=1e9, window_samples=4, clock=machine.clock)
    assert (result.windows, result.stable) == (3, True)
    assert result.milliseconds == {"original": [1000.0] * 12, "pruned": [500.0] * 12}


def test_windows_are_repeated_until_three_in_a_row_agree() -> None:
    """3 and 1.5 are apart, 1.0 1.3 1.0 too; the last three are the first that agree, and theirs are the samples."""
    machine = Machine(
        original=scripted(WARM_UP, 3.0, 1.5, 1.0, 1.3, 1.0, 1.05, 1.1, size=4), pruned=scripted(WARM_UP, 1.0, size=4)
    )
    result = sample(machine.runs(), budget_seconds=1e9, window_samples=4, clock=machine.clock)
    assert (result.windows, result.stable) == (7, True)
    assert result.milliseconds["original"] == pytest.approx([1000.0] * 4 + [1050.0] * 4 + [1100.0] * 4)


def test_every_variant_must_agree() -> None:
    machine = Machine(original=always(1.0), pruned=scripted(WARM_UP, 2.0, 1.0, size=4))
    assert sample(machine.runs(), budget_seconds=1e9, window_samples=4, clock=machine.clock).windows == 4


def test_a_used_up_budget_ends_it_unstable() -> None:
    machine = Machine(original=iter([1.0] * WARM_UP + [1.0, 2.0] * 1000))
    result = sample(machine.runs(), budget_seconds=10.0, window_samples=1, clock=machine.clock)
    assert (result.windows, result.stable) == (7, False)  # 1 + 2 + 1 + 2 + 1 + 2 + 1 = 10 seconds
    assert result.milliseconds["original"] == [1000.0, 2000.0, 1000.0]


def test_the_warm_up_is_not_counted() -> None:
    machine = Machine(original=iter([60.0] * WARM_UP + [1.0] * 100))
    result = sample(machine.runs(), budget_seconds=10.0, window_samples=2, clock=machine.clock)
    assert result.stable
    assert max(result.milliseconds["original"]) == 1000.0


@pytest.mark.parametrize(("seconds", "samples"), [(1.0, FEWEST_SAMPLES), (0.01, 50), (1e-4, MOST_SAMPLES)])
def test_a_window_takes_about_half_a_second(seconds: float, samples: int) -> None:
    machine = Machine(original=always(seconds))
    result = sample(machine.runs(), budget_seconds=1e9, clock=machine.clock)
    assert len(result.milliseconds["original"]) == 3 * samples


def test_agreement_is_within_ten_percent() -> None:
    def windows(*medians: float) -> list[dict[str, list[float]]]:
        return [{"a": [median, median, 100 * median]} for median in medians]

    assert agree(windows(1.0, 1.05, 1.1))
    assert not agree(windows(1.0, 1.05, 1.11))
    assert not agree(windows(1.0, 1.0))
    assert agree(windows(5.0, 1.0, 1.0, 1.0))


def test_files_are_measured_with_their_settings(linear_file: MakeFile) -> None:
    weight = np.ones((3, 64))
    files = {"original": linear_file(weight, name="a"), "pruned": linear_file(weight[:2], name="b")}
    result = measure_latency(files, np.ones((2, 1, 8, 8), dtype=np.float32), threads=1, budget_seconds=0.2)
    assert set(result) == {"original", "pruned"}
    one = result["original"]
    assert (one.device, one.batch_size, one.threads) == ("cpu", 2, 1)
    assert "CPUExecutionProvider" in one.runtime
    assert one.windows == result["pruned"].windows
    assert len(one.samples_ms) == len(result["pruned"].samples_ms) > 0
    assert 0 < min(one.samples_ms) <= one.latency_ms_p50 <= one.latency_ms_p90 <= one.latency_ms_p99
    assert one.latency_ms_p50 == pytest.approx(np.median(one.samples_ms))
    assert one.latency_ms_std == pytest.approx(np.std(one.samples_ms, ddof=1))


def test_another_batch_than_the_file_fixes_is_an_error(linear_file: MakeFile) -> None:
    file = linear_file(np.ones((3, 64)), batch=1)
    with pytest.raises(ValueError, match="batches of 1 only, not 2"):
        measure_latency({"a": file}, np.ones((2, 1, 8, 8), dtype=np.float32))


@pytest.mark.skipif("CUDAExecutionProvider" in execution_providers(), reason="there is one here")
@pytest.mark.parametrize("device", ["cuda:0", "tpu"])
def test_a_device_that_is_not_there_is_an_error_and_never_the_cpu(linear_file: MakeFile, device: str) -> None:
    with pytest.raises(DeviceUnavailable):
        measure_latency({"a": linear_file(np.ones((3, 64)))}, np.ones((1, 1, 8, 8), dtype=np.float32), device=device)
