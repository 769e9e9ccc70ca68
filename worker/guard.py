"""Watches a child while it runs: its memory, disk, time, and whether it is still wanted. Ends it when it is not.

A thread of its own that touches neither database nor network, so that a slow one cannot keep a child alive that
should be dead. The first reason to end the child is the one that counts.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import structlog

from core.errors import BillhookError
from store.logs import ContextThread

TICK_SECONDS = 0.5
DISK_SECONDS = 2.0
EXIT_SECONDS = 15.0  # from its last line to its end

# what the supervisor is told from outside: the job was cancelled, the worker stops, the lease is no longer ours
Order = Literal["cancelled", "stopped", "lost"]
Cause = Literal["cancelled", "stopped", "lost", "limit", "lingers"]

log = structlog.get_logger("billhook.worker")


class LimitReached(BillhookError):
    """The job reached one of its limits. `code` says which."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """What a child may use. Times in seconds; `line_…`, `lines` and `pipe_bytes` bound what it says on the pipe.
    `time_setting`: the setting that `run_seconds` comes from.

    `files` counts folders too; `depth` is how deep they may lie in each other.
    """

    run_seconds: float
    memory_bytes: int
    disk_bytes: int
    time_setting: str = "BILLHOOK_RUN_SECONDS_LIMIT"
    files: int = 100_000
    depth: int = 64
    open_files: int = 1_024
    grace_seconds: float = 5.0
    line_bytes: int = 8 * 2**20  # a dataset's summary names each of up to 100,000 classes four times
    line_values: int = 500_000
    line_depth: int = 64
    lines: int = 1_000_000
    pipe_bytes: int = 2**30

    @property
    def cpu_seconds(self) -> int:
        """Of all threads together: a backstop behind `run_seconds`, which is watched."""
        return int(self.run_seconds * (os.cpu_count() or 1)) + 60


class Guard(ContextThread):
    """Ends the process group `group` (its leader is the child) when `order()` says so or a limit is reached.

    The caller must call `close` before it reaps the leader, so that the group's number cannot have been given to
    another.
    """

    def __init__(self, group: int, workdir: Path, limits: Limits, order: Callable[[], Order | None]) -> None:
        super().__init__(name=f"guard-{group}")
        self.cause: Cause | None = None
        self.reached: LimitReached | None = None
        self.peak_memory_bytes = 0
        self._group = group
        self._workdir = workdir
        self._limits = limits
        self._order = order
        self._began = time.monotonic()
        self._disk_at = 0.0
        self._kill_at: float | None = None
        self._exit_by: float | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()

    @property
    def lost(self) -> bool:
        """Whether the lease is gone: nothing more may be written."""
        return self.cause == "lost"

    def limit(self, code: str, message: str) -> None:
        """End the child: it reached a limit. It is past arguing, so it is killed at once."""
        with self._lock:
            if self.cause is None:
                self.reached = LimitReached(code, message)
        self._end("limit", at_once=True)

    def expect_exit(self) -> None:
        """The child has said its last line; it must be gone soon."""
        self._exit_by = time.monotonic() + EXIT_SECONDS

    def close(self) -> None:
        """Stop watching, and kill what is left of the group."""
        self._closed.set()
        if self.is_alive():
            self.join()
        self._signal(signal.SIGKILL)

    def work(self) -> None:
        failed = False
        while not self._closed.wait(TICK_SECONDS):
            try:
                self._tick()
            except Exception:  # a child that nobody watches would have no limits any more
                if not failed:
                    log.exception("the guard failed; the child is ended", group=self._group)
                failed = True
                self.limit("internal_error", "the worker could not watch over the job; its log has the details")

    def _tick(self) -> None:
        now = time.monotonic()
        order = self._order()
        if order is not None:
            self._end(order, at_once=order == "lost")
        if self._kill_at is not None and now >= self._kill_at:
            self._signal(signal.SIGKILL)
        if self._exit_by is not None and now >= self._exit_by:
            self._end("lingers", at_once=True)
        if now - self._began > self._limits.run_seconds:
            left, setting = max(0, self._limits.run_seconds), self._limits.time_setting
            self.limit("time_limit", f"its time is over: {left:.0f} s were left to it ({setting})")
        self._watch_memory()
        if now >= self._disk_at:
            self._disk_at = now + DISK_SECONDS
            self._watch_disk()

    def _watch_memory(self) -> None:
        used, allowed = session_memory_bytes(self._group), self._limits.memory_bytes
        self.peak_memory_bytes = max(self.peak_memory_bytes, used)
        if used > allowed:
            self.limit(
                "memory_limit",
                f"the job used {_mib(used)} of memory; it may use {_mib(allowed)} (BILLHOOK_MEMORY_LIMIT_BYTES)",
            )

    def _watch_disk(self) -> None:
        limits = self._limits
        use = folder_use(self._workdir, files=limits.files, depth=limits.depth)
        if use.bytes > limits.disk_bytes:
            allowed = f"{_mib(limits.disk_bytes)} (BILLHOOK_DISK_LIMIT_BYTES)"
            self.limit("disk_limit", f"the job's files take {_mib(use.bytes)}; they may take {allowed}")
        elif use.files > limits.files:
            self.limit("disk_limit", f"the job has more than {limits.files} files")
        elif use.depth > limits.depth:
            self.limit("disk_limit", f"the job's folders lie more than {limits.depth} deep in each other")

    def _end(self, cause: Cause, *, at_once: bool) -> None:
        with self._lock:
            if self.cause is None or cause == "lost":  # a lost lease outranks all: it forbids every further write
                self.cause = cause
        if at_once:
            self._kill_at = 0.0
            self._signal(signal.SIGKILL)
        elif self._kill_at is None:
            self._kill_at = time.monotonic() + self._limits.grace_seconds
            self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, number)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def session_memory_bytes(session: int) -> int:
    """Resident bytes of all processes of a session. Pages that they share are counted once for each."""
    total = 0
    for pid in psutil.pids():
        with suppress(ProcessLookupError, psutil.Error):
            if os.getsid(pid) == session:
                total += psutil.Process(pid).memory_info().rss
    return total


@dataclass
class FolderUse:
    """Bytes on the disk, files and folders, and how deep the folders lie in each other."""

    bytes: int = 0
    files: int = 0
    depth: int = 0


def folder_use(folder: Path, *, files: int, depth: int) -> FolderUse:
    """What a folder holds, links not followed. Counting ends once there is more than `files` or deeper than `depth`."""
    use = FolderUse()
    left = [(os.fspath(folder), 1)]
    while left and use.files <= files and use.depth <= depth:
        path, level = left.pop()
        use.depth = max(use.depth, level)
        with suppress(OSError), os.scandir(path) as entries:  # the child may remove any of it meanwhile
            for entry in entries:
                use.files += 1
                if use.files > files:
                    break
                try:
                    use.bytes += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        left.append((entry.path, level + 1))
                except OSError as error:
                    if error.errno == errno.ENAMETOOLONG:  # what lies there cannot be counted
                        use.depth = depth + 1
    return use
