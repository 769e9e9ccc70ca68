"""The folder that a child works in: made for one attempt, removed after it, or by the next worker after a crash."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import structlog

from core.errors import CheckpointUnusable
from worker.answers import OutputRefused

OUTPUT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
KEPT_NAME = re.compile(r"out/checkpoint_step[0-9]{1,2}_epoch[0-9]{4,5}\.onnx")
CHECKPOINT_NAME = re.compile(r"state/[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_OUTPUTS = 300

log = structlog.get_logger("billhook.worker")


@contextmanager
def work_directory(root: Path, name: str) -> Iterator[Path]:
    """A fresh folder `root/name` with `inputs/`, `state/` and `out/`, gone afterwards.

    A lock beside it, which the kernel drops when this process dies, tells `remove_abandoned` that it is in use.
    """
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    path, lock = root / name, root / f"{name}.lock"
    with _locked(lock):
        try:
            for part in ("", "inputs", "state", "out"):
                (path / part).mkdir(mode=0o700)
            yield path
        finally:
            _remove(path, lock)


def remove_abandoned(root: Path) -> list[str]:
    """Remove the folders whose worker died without doing so; returns their names. What fails is logged."""
    removed = []
    for lock in root.glob("*.lock"):
        try:
            with lock.open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _names(lock, held) and _remove(lock.with_suffix(""), lock):
                    removed.append(lock.stem)
        except (BlockingIOError, FileNotFoundError):  # its worker lives, or removed it just now
            continue
        except OSError as error:
            log.warning("an abandoned work folder cannot be removed", name=lock.stem, error=str(error))
    return removed


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Holds the lock file, made anew if somebody removed it between opening and locking."""
    while True:
        with lock.open("wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if _names(lock, held):
                yield
                return


def _names(path: Path, file: IO[bytes]) -> bool:
    """Whether `path` still is the name of the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _remove(path: Path, lock: Path) -> bool:
    """Remove a work folder and then its lock, which stays where the folder does: the next worker tries again.

    By `rm`, since a child may nest folders deeper than recursion, or a path's length, goes.
    """
    done = subprocess.run(  # noqa: S603 no shell, and the name is ours
        ["rm", "-rf", "--", os.fspath(path)], stdin=subprocess.DEVNULL, capture_output=True, text=True  # noqa: S607
    )  # fmt: skip
    if done.returncode != 0:
        log.warning("a work folder cannot be removed", name=path.name, error=done.stderr[:500])
        return False
    lock.unlink(missing_ok=True)
    return True


@contextmanager
def held_outputs(workdir: Path) -> Iterator[dict[str, Path]]:
    """The files in `out/` by name, each as a path to the open file: what is checked is what is stored.

    Raises `OutputRefused` for a link, a folder, a pipe, a name that is not plain, or too many.
    """
    try:
        names = sorted(path.name for path in (workdir / "out").iterdir())
    except OSError as error:
        raise OutputRefused("the job left no folder of outputs") from error
    if len(names) > MAX_OUTPUTS:
        raise OutputRefused(f"the job left {len(names)} files; at most {MAX_OUTPUTS} are taken")
    with ExitStack() as stack:
        files = {}
        for name in names:
            message = f"the job left something that is not a plain file with a plain name: {name[:100]!r}"
            if not OUTPUT_NAME.fullmatch(name):
                raise OutputRefused(message)
            try:
                files[name] = stack.enter_context(_held(workdir, "out", name))
            except OSError as error:
                raise OutputRefused(message) from error
        yield files


@contextmanager
def held_output(workdir: Path, file: object) -> Iterator[Path]:
    """The checkpoint that a `train` step was told to keep, `file` (`out/…`), as a path to the open file.

    Raises `OutputRefused` if there is no such plain file, or it has a name of another kind of file.
    """
    if not isinstance(file, str) or not KEPT_NAME.fullmatch(file):
        raise OutputRefused("the job announced a file that is no checkpoint to be kept")
    with ExitStack() as stack:
        try:
            held = stack.enter_context(_held(workdir, *file.split("/")))
        except OSError as error:
            raise OutputRefused("a file that the job announced is not there, or no plain file") from error
        yield held


@contextmanager
def held_checkpoint(workdir: Path, file: object) -> Iterator[Path]:
    """The checkpoint `file` (`state/…`) as a path to the open file: the child replaces it at any time, this one stays.

    Raises `CheckpointUnusable` if there is no such plain file.
    """
    if not isinstance(file, str) or not CHECKPOINT_NAME.fullmatch(file):
        raise CheckpointUnusable("a checkpoint is a file state/<name>")
    with ExitStack() as stack:
        try:
            held = stack.enter_context(_held(workdir, *file.split("/")))
        except OSError as error:
            raise CheckpointUnusable("the checkpoint that was announced is not there, or no plain file") from error
        yield held


@contextmanager
def _held(workdir: Path, folder: str, name: str) -> Iterator[Path]:
    """A plain file, opened without following a link or waiting for a pipe. Raises `OSError` if it is none."""
    inside = os.open(workdir / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside)
    finally:
        os.close(inside)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
