"""Peak memory of a file, in a fresh process: resident bytes at the peak, over those of an empty session.

    python -m core.measure.memory FILE --batch-size N --input-shape 3,32,32 [--threads T] [--runs R]

prints {"peak_bytes": …} of that process. The peak is the kernel's VmHWM, which starts anew with a process;
`ru_maxrss` would begin with what the parent held when it forked. This module imports no torch: the process that is
measured holds Python, numpy, ONNX Runtime and the file's session, and the empty one all of that but the file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from core.measure.sessions import bound_run, input_shape, open_session
from core.report import Memory

REPEATS = 3
RUNS = 3
TIMEOUT_SECONDS = 600.0


class MemoryNotMeasured(RuntimeError):
    """The fresh process did not answer. `reason` is for a report; the message also has the end of its stderr."""

    def __init__(self, reason: str, stderr: str = "") -> None:
        super().__init__(f"{reason}: {stderr}" if stderr else reason)
        self.reason = reason


def measure_memory(
    files: Mapping[str, Path],
    *,
    batch_size: int,
    input_shape: Sequence[int],
    threads: int = 1,
    repeats: int = REPEATS,
) -> dict[str, Memory]:
    """Median over `repeats` of each file's peak over the empty session's, in bytes. On the CPU.

    `input_shape`: of one example, without the batch. Raises `MemoryNotMeasured`.
    """
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.onnx"
        _write_empty(empty)
        baseline: list[int] = []
        peaks: dict[str, list[int]] = {name: [] for name in files}
        for _ in range(repeats):  # in turns, as what the machine does meanwhile should meet all alike
            baseline.append(_peak_of(empty, 1, (1,), threads))
            for name, path in files.items():
                peaks[name].append(_peak_of(path, batch_size, input_shape, threads))
    return {name: _memory(values, baseline) for name, values in peaks.items()}


def _memory(samples: list[int], empty: list[int]) -> Memory:
    return Memory(
        peak_memory_bytes=max(0, round(statistics.median(samples) - statistics.median(empty))),
        noise_bytes=max(samples) - min(samples) + max(empty) - min(empty),
        samples_bytes=samples,
        empty_samples_bytes=empty,
    )


def _write_empty(path: Path) -> None:
    """A model that does nothing: the session of it is what every session costs."""
    import onnx  # not at the top: the measured process would hold it too

    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "empty", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def _peak_of(path: Path, batch_size: int, shape: Sequence[int], threads: int) -> int:
    command = [sys.executable, "-m", "core.measure.memory", str(path.resolve()), "--batch-size", str(batch_size),
               "--input-shape", ",".join(map(str, shape)), "--threads", str(threads)]  # fmt: skip
    # nothing of this process's environment but the way to Python: LD_PRELOAD, MALLOC_… and OMP_… would all show
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8",
                   "PYTHONPATH": str(Path(__file__).resolve().parents[2])}  # fmt: skip
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter and module, no shell
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MemoryNotMeasured(f"no answer within {TIMEOUT_SECONDS:g} s") from None
    except OSError as error:  # no memory or no process left to fork with
        raise MemoryNotMeasured(f"the process could not be started ({error.strerror})") from None
    if done.returncode != 0:
        raise MemoryNotMeasured(f"the process ended with {done.returncode}", done.stderr[-2000:])
    return int(json.loads(done.stdout)["peak_bytes"])


def peak_bytes() -> int:
    """The most resident bytes this process had since it was started."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux: macOS counts bytes, from the process's own start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the file a few times and print this process's peak."""
    parser = argparse.ArgumentParser(prog="python -m core.measure.memory", description="peak memory of an ONNX file")
    parser.add_argument("file", type=Path)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--input-shape", required=True, help="of one example, without the batch: 3,32,32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=RUNS)
    given = parser.parse_args(arguments)
    session = open_session(given.file, threads=given.threads)
    shape = input_shape(session, given.batch_size, [int(size) for size in given.input_shape.split(",")])
    run = bound_run(session, np.random.default_rng(0).standard_normal(shape, dtype=np.float32), "cpu")
    for _ in range(given.runs):
        run()
    sys.stdout.write(json.dumps({"peak_bytes": peak_bytes()}) + "\n")


if __name__ == "__main__":
    main()
