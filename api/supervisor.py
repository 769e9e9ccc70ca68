"""Keeps the processes of an embedded server running: starts them, restarts what dies, ends all of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import structlog

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
STEADY_SECONDS = 60.0  # a process that ran for so long starts again at once
STOP_SECONDS = 25.0  # from SIGTERM to SIGKILL
MAX_LOG_BYTES = 50 * 2**20
POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1

log = structlog.get_logger()


@dataclass
class Child:
    """A process that is to be running. `command` is what follows `python -m`."""

    name: str
    command: Sequence[str]
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    wait: float = 0.0
    start_at: float = 0.0


@dataclass
class Supervisor:
    """Runs `children` with their output in the folder `logs`, None for this process's own standard error. For the main
    thread of a process without other threads."""

    children: Sequence[Child]
    environment: Mapping[str, str]
    logs: Path | None
    stopping: bool = field(default=False, init=False)

    def run(self, every_round: Callable[[], None]) -> None:
        """Keep the children running until `stop` is called; then end them. `every_round` is called all the while."""
        try:
            while not self.stopping:
                for child in self.children:
                    self._look_after(child)
                    if self.logs is not None:
                        _rotate(self.logs / f"{child.name}.log")
                every_round()
                time.sleep(POLL_SECONDS)
        finally:
            self._end_all()

    def stop(self) -> None:
        """Have `run` end. Safe in a signal handler."""
        self.stopping = True

    def _look_after(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.start_at:
                self._start(child)
            return
        status = child.process.poll()
        if status is None:
            return
        steady = now - child.started > STEADY_SECONDS
        child.wait = 0.0 if steady else min(max(FIRST_WAIT_SECONDS, 2 * child.wait), LONGEST_WAIT_SECONDS)
        child.start_at = now + child.wait
        child.process = None
        log.error("a process ended and is started again", name=child.name, status=status, in_seconds=child.wait)

    def _start(self, child: Child) -> None:
        with contextlib.ExitStack() as stack:
            output: IO[Any] = sys.stderr
            if self.logs is not None:
                output = stack.enter_context((self.logs / f"{child.name}.log").open("ab"))
            child.process = subprocess.Popen(  # noqa: S603  # our own modules
                [sys.executable, "-m", *child.command],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=child.pass_fds,
                process_group=0,  # Ctrl-C in a terminal is for this process, which tells the others in order
                preexec_fn=_die_with(os.getpid()),  # no other thread is running here
            )
        child.started = time.monotonic()
        log.info("started", name=child.name, pid=child.process.pid)

    def _end_all(self) -> None:
        running = [(child, child.process) for child in self.children if child.process is not None]
        for _, process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for child, process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("a process did not stop and is killed", name=child.name)
                process.kill()
                process.wait()
            child.process = None


def _rotate(path: Path) -> None:
    """Keep the log below twice `MAX_LOG_BYTES`: what there is goes to `.log.1`, in place of what was there.

    The process that writes has the file open, at its end wherever that is, so it is copied and emptied rather than
    renamed. A line that is written just between the two is lost.
    """
    try:
        if path.stat().st_size <= MAX_LOG_BYTES:
            return
    except FileNotFoundError:
        return
    try:
        shutil.copyfile(path, path.with_suffix(".log.1"))
    except OSError as error:  # the disk is full, perhaps of this log
        log.error("a log cannot be kept and is emptied", name=path.name, reason=error.strerror)
        path.with_suffix(".log.1").unlink(missing_ok=True)
    os.truncate(path, 0)


def _die_with(parent: int) -> Callable[[], None] | None:
    """What a new process does first: ask to be told (SIGTERM) when this one dies, however it dies. Linux only."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return ask
