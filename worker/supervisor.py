"""Runs one child process to its end and hands on what it says. Knows processes and pipes; no database, no queue.

What the sandbox is, and what it does not stop, is said in `worker.child`. Linux only (`/proc`, PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from worker.guard import Guard, Limits, Order
from worker.lines import EventLine, Lines

CHILD = (sys.executable, "-m", "worker.child")
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
BATCH_LINES = 200
BATCH_SECONDS = 0.25
TAIL_BYTES = 8_192
PIPE_BYTES = 2**20  # the most that Linux lets a process have in a pipe

Store = Callable[[Sequence[EventLine]], None]
Verdict = Literal["result", "error", "died", "terminated", "cancelled", "stopped", "lost"]


@dataclass(frozen=True)
class Ended:
    """How a child ended. `body` is the result, or the error as {code, message, faults}; empty where there is neither.

    `terminated`: by a SIGTERM that was not ours. Where a service is stopped, it may go to all processes at once.

    `rest` are the events that were not stored yet: they belong into the transaction that closes the job.
    """

    verdict: Verdict
    body: Mapping[str, Any]
    rest: Sequence[EventLine]
    output_tail: str
    peak_memory_bytes: int


def supervise(
    operation: str,
    workdir: Path,
    limits: Limits,
    *,
    order: Callable[[], Order | None],
    store: Store,
    gpu: int | None = None,
    command: Sequence[str] = CHILD,
) -> Ended:
    """Run `command operation …` in `workdir` until it has ended, and every process of its group with it.

    `store` is given the child's events, in order, in small batches, on this thread; it may block (the child then waits
    for the pipe). `order` is asked ten times a second, on another thread, whether to end the child. `gpu` is the one
    GPU that the child sees, None for none.
    """
    limits_given = [
        f"--open-files={limits.open_files}", f"--file-bytes={limits.disk_bytes}", f"--cpu-seconds={limits.cpu_seconds}",
    ]  # fmt: skip
    with ExitStack() as stack:
        # kept open: in their place the child may leave a link to another file, or a pipe that is never written to
        logs = [stack.enter_context((workdir / name).open("w+b")) for name in ("stdout.log", "stderr.log")]
        reading, writing = os.pipe()
        stack.callback(os.close, reading)
        try:
            child = subprocess.Popen(  # noqa: S603 the command is ours, and no shell is involved
                [*command, operation, f"--workdir={workdir}", f"--events-fd={writing}", f"--parent={os.getpid()}",
                 *limits_given],
                stdin=subprocess.DEVNULL, stdout=logs[0], stderr=logs[1], cwd=workdir,
                env=clean_environment(workdir, gpu), close_fds=True, pass_fds=(writing,), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(writing)
        guard = Guard(child.pid, workdir, limits, order)
        lines, rest = Lines(limits), list[EventLine]()
        try:
            guard.start()
            os.set_blocking(reading, False)
            rest = _listen(reading, child, guard, lines, store)
        finally:
            if not _over(child):  # something here raised
                guard.limit("internal_error", "the worker gave up")
            guard.close()
            child.wait()
        return _ended(child, guard, lines, rest, output_tail(logs, workdir))


def _listen(reading: int, child: subprocess.Popen[bytes], guard: Guard, lines: Lines, store: Store) -> list[EventLine]:
    """Read the pipe and store batches until the child is over. Returns what is left of the last batch."""
    batch: list[EventLine] = []
    due = 0.0
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        listening = True
        left = PIPE_BYTES  # of what is read after its end: others may hold the pipe, and say more than we can read
        while True:
            over = _over(child)  # asked before reading: what it said before its end is in the pipe by then
            data = _read(reading) if over or selector.select(0.05) else None
            if data:
                if not batch:
                    due = time.monotonic() + BATCH_SECONDS
                batch += lines.feed(data)
                if lines.fault is not None:
                    guard.limit("output_limit", f"the job's events cannot be taken: {lines.fault}")
                elif lines.last is not None:
                    guard.expect_exit()
            elif data == b"" and listening and not over:  # closed its end, and lives on
                selector.unregister(reading)
                listening = False
            if over:
                left -= len(data or b"")
                if not data or left <= 0 or lines.fault is not None:
                    return batch
            urgent = any(name in ("checkpoint", "artifact") for name, _ in batch)
            if batch and not guard.lost and (urgent or len(batch) >= BATCH_LINES or time.monotonic() >= due):
                store(batch)
                batch = []
            if not listening:
                time.sleep(0.05)


def _read(descriptor: int) -> bytes | None:
    """Up to 1 MiB; b"" at the end of the pipe; None if there is nothing now."""
    try:
        return os.read(descriptor, PIPE_BYTES)
    except BlockingIOError:
        return None


def _over(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child has ended. It stays unreaped, so that its number stays its own."""
    if child.returncode is not None:
        return True
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _ended(child: subprocess.Popen[bytes], guard: Guard, lines: Lines, rest: Sequence[EventLine], tail: str) -> Ended:
    if guard.lost:
        return Ended("lost", {}, (), tail, guard.peak_memory_bytes)
    if lines.last is not None:  # it had come to its end, whatever happened to it then
        name, body = lines.last
        return Ended("result" if name == "result" else "error", body, rest, tail, guard.peak_memory_bytes)
    if guard.reached is not None:
        return Ended("error", guard.reached.as_dict(), rest, tail, guard.peak_memory_bytes)
    if guard.cause in ("cancelled", "stopped"):
        return Ended(guard.cause, {}, rest, tail, guard.peak_memory_bytes)
    if child.returncode == -signal.SIGXCPU:
        error = {"code": "time_limit", "message": "the job used more CPU time than it may", "faults": []}
        return Ended("error", error, rest, tail, guard.peak_memory_bytes)
    verdict: Verdict = "terminated" if child.returncode == -signal.SIGTERM else "died"
    return Ended(verdict, death(child.returncode), rest, tail, guard.peak_memory_bytes)


def death(status: int) -> dict[str, Any]:
    """The error of a child that ended without saying why. `status` as in `subprocess`: negative is a signal."""
    if status < 0:
        try:
            how = f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            how = f"was killed by signal {-status}"
    else:
        how = f"exited with status {status}"
    return {"code": "child_died", "message": f"the job's process {how} before it was done", "faults": []}


def clean_environment(workdir: Path, gpu: int | None) -> dict[str, str]:
    """All that a child finds in its environment: no URL, no credentials, no key."""
    root = Path(__file__).resolve().parent.parent
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return environment | {
        "HOME": str(workdir),
        "TMPDIR": str(workdir),
        "PYTHONPATH": str(root),
        "PYTHONSAFEPATH": "1",  # the work folder holds an upload: nothing is imported from there
        "PYTHONHASHSEED": "0",  # the same inputs give the same bytes
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "" if gpu is None else str(gpu),
    }


def output_tail(logs: Sequence[BinaryIO], workdir: Path) -> str:
    """The end of what the child printed, standard error last, without the names of this machine's folders."""
    parts = []
    for log in logs:
        descriptor = log.fileno()
        end = os.fstat(descriptor).st_size
        parts.append(os.pread(descriptor, TAIL_BYTES, max(0, end - TAIL_BYTES)).decode("utf-8", "replace"))
    return "".join(parts).replace(str(workdir), "…")
