"""Downloading one file from the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from billhook.partial_file import PartialFile
from billhook.results import Download
from billhook.retries import Core, send
from billhook.steps import Call, Operation, blocking


def download_file(
    core: Core, path: str, target: Path, advance: Callable[[int, int | None], None], deadline: float | None
) -> Operation[Download]:
    """What is at `path` on the server, as the file `target`, which is replaced in one go once the checksum is right.

    Raises as `send` and `PartialFile`; nothing is left at the target then.
    """
    partial = PartialFile(target, advance)
    try:
        yield from send(core, Call("GET", path, sink=partial), deadline=deadline)
        return (yield from blocking(partial.finish))
    finally:
        partial.discard()
