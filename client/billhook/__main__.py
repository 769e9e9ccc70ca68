"""The way in: `billhook`, or `python -m billhook`."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run() -> None:
    """The console script. SIGTERM is taken as Ctrl-C, as build servers send it."""
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        from billhook.cli.app import main  # loading it takes a while: an interruption may come meanwhile

        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()
