from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.measure.memory import MemoryNotMeasured, measure_memory, peak_bytes

MakeFile = Callable[..., Path]
MIB = 1 << 20
ROOT = Path(__file__).parents[3]


def test_a_larger_model_takes_more_memory_whatever_this_process_holds(linear_file: MakeFile) -> None:
    """`ru_maxrss` of a child begins with what its parent held when it forked; the figures must not."""
    held = np.ones(300 * MIB, dtype=np.uint8)
    assert peak_bytes() > held.nbytes
    small = linear_file(np.ones((4, 64)), name="small")
    large = linear_file(np.ones((200_000, 64)), name="large")  # 49 MiB of weights
    found = measure_memory({"small": small, "large": large}, batch_size=1, input_shape=(1, 8, 8), repeats=1)
    assert found["small"].peak_memory_bytes < 30 * MIB
    assert found["large"].peak_memory_bytes > found["small"].peak_memory_bytes + 40 * MIB
    assert found["large"].above_noise


def test_every_sample_is_kept_and_their_spread_is_the_noise(linear_file: MakeFile) -> None:
    file = linear_file(np.ones((4, 64)))
    (memory,) = measure_memory({"a": file}, batch_size=1, input_shape=(1, 8, 8), repeats=2).values()
    file_low, file_high = sorted(memory.samples_bytes)
    empty_low, empty_high = sorted(memory.empty_samples_bytes)
    assert memory.noise_bytes == file_high - file_low + empty_high - empty_low
    assert memory.peak_memory_bytes == max(0, round((file_low + file_high - empty_low - empty_high) / 2))


def test_the_measured_process_holds_no_torch() -> None:
    code = "import core.measure.memory, sys; assert not {'torch', 'onnx'} & set(sys.modules), 'heavy imports'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_command_prints_json(linear_file: MakeFile) -> None:
    command = [sys.executable, "-m", "core.measure.memory", str(linear_file(np.ones((4, 64)))), "--batch-size", "3",
               "--input-shape", "1,8,8"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["peak_bytes"] > 10 * MIB


def test_a_process_that_fails_says_why(linear_file: MakeFile) -> None:
    file = linear_file(np.ones((4, 64)), batch=1)
    with pytest.raises(MemoryNotMeasured, match="batches of 1 only, not 2") as caught:
        measure_memory({"a": file}, batch_size=2, input_shape=(1, 8, 8), repeats=1)
    assert caught.value.reason == "the process ended with 1"  # nothing of this machine


def test_a_process_that_cannot_be_started_says_so(linear_file: MakeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "run", no_memory)
    with pytest.raises(MemoryNotMeasured, match="Cannot allocate memory"):
        measure_memory({"a": linear_file(np.ones((4, 64)))}, batch_size=1, input_shape=(1, 8, 8), repeats=1)
