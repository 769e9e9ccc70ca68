"""The way in: `billhook`, or `python -m billhook`."""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

INTERRUPTED = 130
ECHO_SECONDS = 1.0
"""For so long after an interruption others are its echoes: build servers signal a process and then its whole group, or
SIGINT and SIGTERM at once. Nobody means two interruptions by that."""


class _Interruption:
    """Handles SIGINT and SIGTERM: `KeyboardInterrupt`, at most once in `ECHO_SECONDS`."""

    def __init__(self) -> None:
        self._latest = -ECHO_SECONDS

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._latest >= ECHO_SECONDS:
            self._latest = now
            raise KeyboardInterrupt


def run() -> None:
    """The console script. SIGTERM is taken as Ctrl-C, as build servers send it."""
    heard = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]
    interruption = _Interruption()
    try:
        for each in heard:
            signal.signal(each, interruption)
        from billhook.cli.app import main  # loading it takes a while: an interruption may come meanwhile

        code = main()
        _ignore(heard)
    except KeyboardInterrupt:
        code = INTERRUPTED
        _ignore(heard)
    sys.exit(code)


def _ignore(heard: list[signal.Signals]) -> None:
    """The interpreter sets handlers back while it ends: a late signal would then kill, and hide the exit code."""
    for each in heard:
        signal.signal(each, signal.SIG_IGN)


if __name__ == "__main__":
    run()
