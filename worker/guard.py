"""Watches a child while it runs: its memory, disk, time, and whether it is still wanted. Ends it when it is not.

A thread of its own that touches neither database nor network, so that a slow one cannot keep a child alive that
should be dead. The first reason to end the child is the one that counts.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from core.errors import BillhookError

TICK_SECONDS = 0.1
MEMORY_SECONDS = 0.25
DISK_SECONDS = 2.0
EXIT_SECONDS = 15.0  # from its last line to its end

# what the supervisor is told from outside: the job was cancelled, the worker stops, the lease is no longer ours
Order = Literal["cancelled", "stopped", "lost"]
Cause = Literal["cancelled", "stopped", "lost", "limit", "lingers"]


class LimitReached(BillhookError):
    """The job reached one of its limits. `code` says which."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """What a child may use. Times in seconds; `line_bytes`, `lines` and `pipe_bytes` bound what it says on the pipe."""

    run_seconds: float
    memory_bytes: int
    disk_bytes: int
    open_files: int = 1_024
    grace_seconds: float = 5.0
    line_bytes: int = 8 * 2**20
    lines: int = 1_000_000
    pipe_bytes: int = 2**30

    @property
    def cpu_seconds(self) -> int:
        """Of all threads together: a backstop behind `run_seconds`, which is watched."""
        return int(self.run_seconds * (os.cpu_count() or 1)) + 60


class Guard(threading.Thread):
    """Ends the process group `group` (its leader is the child) when `order()` says so or a limit is reached.

    The caller must call `close` before it reaps the leader, so that the group's number cannot have been given to
    another.
    """

    def __init__(self, group: int, workdir: Path, limits: Limits, order: Callable[[], Order | None]) -> None:
        super().__init__(name=f"guard-{group}", daemon=True)
        self.cause: Cause | None = None
        self.reached: LimitReached | None = None
        self.peak_memory_bytes = 0
        self._group = group
        self._workdir = workdir
        self._limits = limits
        self._order = order
        self._began = time.monotonic()
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

    def run(self) -> None:
        memory_at = disk_at = 0.0
        while not self._closed.wait(TICK_SECONDS):
            now = time.monotonic()
            order = self._order()
            if order is not None:
                self._end(order, at_once=order == "lost")
            if self._kill_at is not None and now >= self._kill_at:
                self._signal(signal.SIGKILL)
            if self._exit_by is not None and now >= self._exit_by:
                self._end("lingers", at_once=True)
            if now - self._began > self._limits.run_seconds:
                self.limit("time_limit", f"its time is over: {max(0, self._limits.run_seconds):.0f} s were left to it")
            if now >= memory_at:
                memory_at = now + MEMORY_SECONDS
                self._watch_memory()
            if now >= disk_at:
                disk_at = now + DISK_SECONDS
                self._watch_disk()

    def _watch_memory(self) -> None:
        used, allowed = session_memory_bytes(self._group), self._limits.memory_bytes
        self.peak_memory_bytes = max(self.peak_memory_bytes, used)
        if used > allowed:
            self.limit("memory_limit", f"the job used {used} bytes of memory; it may use {allowed}")

    def _watch_disk(self) -> None:
        used, allowed = folder_bytes(self._workdir), self._limits.disk_bytes
        if used > allowed:
            self.limit("disk_limit", f"the job's files take {used} bytes; they may take {allowed}")

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


def session_memory_bytes(session: int) -> int:
    """Resident bytes of all processes of a session. Pages that they share are counted once for each."""
    total = 0
    for pid in psutil.pids():
        with suppress(ProcessLookupError, psutil.Error):
            if os.getsid(pid) == session:
                total += psutil.Process(pid).memory_info().rss
    return total


def folder_bytes(folder: Path) -> int:
    """Bytes that a folder's files take up on the disk, links not followed."""
    return sum(_disk_bytes(os.fspath(folder)))


def _disk_bytes(folder: str) -> Iterator[int]:
    try:
        entries = list(os.scandir(folder))
    except OSError:  # the child removed it meanwhile
        return
    for entry in entries:
        with suppress(OSError):
            yield entry.stat(follow_symlinks=False).st_blocks * 512
            if entry.is_dir(follow_symlinks=False):
                yield from _disk_bytes(entry.path)
