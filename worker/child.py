"""The child process: runs core on one job's files and says on a pipe what happens.

`python -m worker.child run|dry_run|inspect_model|inspect_dataset --workdir DIR --events-fd N …`, as
`worker.supervisor` starts it. It reads `DIR/job.json`, writes only below DIR, and writes JSON lines to the pipe,
{"name": …, "body": {…}}; the last one is `result` or `error`. Exit status 0 or 1.

What the parent gives it is all it has: no database, broker or storage URL, no key, no open file but 0, 1, 2 and the
pipe. It dies with its parent: Linux kills it then, and a broken pipe ends it in any case.

What this does not stop, honestly: the child runs as the worker's user on the worker's host. Code that took it over
could read whatever files that user can read, use the network, signal the user's other processes, and start
any number of descendants that leave the session (those are neither counted against the memory limit nor killed; a child
that dies with its parent leaves its own children to end by themselves). The limits hold against accidents and bombs in
inputs. Run the worker in a container of its own, without network towards anything but the database, the broker
and the storage, where uploads come from people you do not trust.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import faulthandler
import json
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.errors import BillhookError
from core.events import Emit, jsonable
from core.job import DatasetCheck, DryRunInputs, JobInputs, ModelInput

PR_SET_PDEATHSIG = 1
Operation = Callable[[Path, Emit], Mapping[str, Any]]


def run(workdir: Path, emit: Emit) -> Mapping[str, Any]:
    """The whole job: its files in `workdir/out`, the report among them. There is no more to say at the end."""
    from core import pipeline

    pipeline.run(JobInputs.model_validate_json((workdir / "job.json").read_bytes()), workdir, emit)
    return {}


def dry_run(workdir: Path, emit: Emit) -> Mapping[str, Any]:
    """What the job would come to, a `core.dry_run_report.DryRunReport`. Raises what the job would be refused for."""
    from core import dry_run

    inputs = DryRunInputs.model_validate_json((workdir / "job.json").read_bytes())
    return dry_run.dry_run(inputs.job, workdir, emit, timed=inputs.timed).model_dump(mode="json")


def inspect_model(workdir: Path, emit: Emit) -> Mapping[str, Any]:
    """The summary of an uploaded model, and the description of its graph in `workdir/out`. Raises what makes it
    unusable."""
    from core import inspection

    return inspection.inspect_model(
        ModelInput.model_validate_json((workdir / "job.json").read_bytes()), workdir / "out"
    )


def inspect_dataset(workdir: Path, emit: Emit) -> Mapping[str, Any]:
    """The summary of an uploaded dataset, and its contact sheet in `workdir/out`. Raises what makes it unusable."""
    from core import inspection

    return inspection.inspect_dataset(DatasetCheck.model_validate_json((workdir / "job.json").read_bytes()), workdir)


OPERATIONS: Mapping[str, Operation] = {
    "run": run,
    "dry_run": dry_run,
    "inspect_model": inspect_model,
    "inspect_dataset": inspect_dataset,
}


class Pipe:
    """The way up: one JSON line per event, whole lines only, from any thread. Nobody reading ends this process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def emit(self, name: str, /, **body: Any) -> None:
        self.write(name, body)

    def write(self, name: str, body: Mapping[str, Any]) -> None:
        line = json.dumps({"name": name, "body": jsonable(body)}, allow_nan=False, separators=(",", ":"))
        rest = memoryview(line.encode("utf-8", "backslashreplace") + b"\n")
        with self._lock:
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except BrokenPipeError:
                os._exit(1)  # the parent is gone: write nothing more, run no handlers


def main(arguments: Sequence[str] | None = None, operations: Mapping[str, Operation] = OPERATIONS) -> int:
    """Run one operation and report on the pipe. The exit status: 0 after `result`, 1 after `error`."""
    parser = argparse.ArgumentParser(prog="python -m worker.child")
    parser.add_argument("operation", choices=sorted(operations))
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True, help="pid of the worker; this process dies with it")
    parser.add_argument("--open-files", type=int, required=True)
    parser.add_argument("--file-bytes", type=int, required=True, help="largest file that may be written")
    parser.add_argument("--cpu-seconds", type=int, required=True, help="CPU time of this process, all threads together")
    options = parser.parse_args(arguments)

    die_with(options.parent)
    confine(options.open_files, options.file_bytes, options.cpu_seconds)
    os.set_inheritable(options.events_fd, False)
    faulthandler.enable()  # a crash in native code leaves its stack in the log

    pipe = Pipe(options.events_fd)
    try:
        result = operations[options.operation](options.workdir, pipe.emit)
        pipe.write("result", result)
    except BillhookError as error:
        traceback.print_exc()
        pipe.write("error", error.as_dict())
        return 1
    except Exception as error:
        traceback.print_exc()  # for the log; what goes up names no path of this machine
        pipe.write("error", unexpected(error))
        return 1
    return 0


def unexpected(error: Exception) -> dict[str, Any]:
    """The `error` body for an exception that is not one of ours: no path, no traceback, no text of a library."""
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return {"code": "disk_limit", "message": "the job tried to write a file larger than it may", "faults": []}
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return {"code": "disk_full", "message": "the worker's disk is full", "faults": []}
    if isinstance(error, MemoryError):
        return {"code": "memory_limit", "message": "the job asked for more memory than there is", "faults": []}
    message = f"an unexpected {type(error).__name__} ended the job; the worker's log has the details"
    return {"code": "internal_error", "message": message, "faults": []}


def die_with(parent: int) -> None:
    """Have Linux kill this process when its parent dies, and end now if the parent is dead already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died between starting us and the line above
        os._exit(1)


def confine(open_files: int, file_bytes: int, cpu_seconds: int) -> None:
    """Resource limits. Memory is watched by the parent: RLIMIT_AS counts what is only reserved, and breaks CUDA."""
    for limit, value in (
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
    ):
        _, hard = resource.getrlimit(limit)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(limit, (value, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # where the kernel has it: out of memory, this process goes before the worker
        Path("/proc/self/oom_score_adj").write_text("500")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # all is said and stored: no library's tear-down may turn this into a crash
