"""The folder that a child works in: made for one attempt, removed after it, or by the next worker after a crash."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import BillhookError, CheckpointUnusable

OUTPUT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
CHECKPOINT_NAME = re.compile(r"state/[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_OUTPUTS = 100


class OutputRefused(BillhookError):
    """What the child left in `out/` is not what is taken from there: plain files with plain names."""

    code = "output_refused"


@contextmanager
def work_directory(root: Path, name: str) -> Iterator[Path]:
    """A fresh folder `root/name` with `inputs/`, `state/` and `out/`, gone afterwards.

    A lock beside it, which the kernel drops when this process dies, tells `remove_abandoned` that it is in use.
    """
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    path, lock = root / name, root / f"{name}.lock"
    with lock.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            for part in ("", "inputs", "state", "out"):
                (path / part).mkdir(mode=0o700)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            lock.unlink(missing_ok=True)


def remove_abandoned(root: Path) -> list[str]:
    """Remove the folders whose worker died without doing so; returns their names."""
    removed = []
    for lock in root.glob("*.lock"):
        with lock.open("rb") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # its worker lives
                continue
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
            removed.append(lock.stem)
    return removed


def outputs(workdir: Path) -> list[Path]:
    """The files in `out/`, by name. Raises `OutputRefused` for a link, a folder, a name that is not plain, too many."""
    entries = sorted(os.scandir(workdir / "out"), key=lambda entry: entry.name)
    if len(entries) > MAX_OUTPUTS:
        raise OutputRefused(f"the job left {len(entries)} files; at most {MAX_OUTPUTS} are taken")
    for entry in entries:
        if not entry.is_file(follow_symlinks=False) or not OUTPUT_NAME.fullmatch(entry.name):
            raise OutputRefused(f"the job left something that is not a plain file with a plain name: {entry.name!r}")
    return [Path(entry.path) for entry in entries]


@contextmanager
def held_checkpoint(workdir: Path, file: object) -> Iterator[Path]:
    """A second name for the checkpoint `file` (`state/…`): the child replaces it at any time, this one stays.

    Raises `CheckpointUnusable` if there is no such plain file.
    """
    if not isinstance(file, str) or not CHECKPOINT_NAME.fullmatch(file):
        raise CheckpointUnusable("a checkpoint is a file state/<name>")
    held = workdir / "checkpoint.held"
    try:
        os.link(workdir / file, held, follow_symlinks=False)
    except OSError as error:
        raise CheckpointUnusable("the checkpoint that was announced is not there") from error
    try:
        if held.is_symlink() or not held.is_file():
            raise CheckpointUnusable("the checkpoint is not a plain file")
        yield held
    finally:
        held.unlink(missing_ok=True)
