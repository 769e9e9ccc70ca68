"""A file or a folder of this machine, below a root that the operator allows. No link is followed below the root, and
nothing that is not a plain file is opened.

A folder is packed as `billhook` packs one (`client/billhook/archive.py`), into the same bytes: they are kept, so that
every later job has them on whatever machine it runs, and a folder that changes meanwhile changes no dataset.
"""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from store.sources import SourceUri
from worker.sources.errors import SourceNotFound, SourceRefused, SourceTooLarge
from worker.sources.transfer import Sink

CHUNK = 2**20
MAX_FILES = 5_000_000
MAX_DEPTH = 64
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can hold
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def copy_path(source: SourceUri, roots: Sequence[Path], sink: Sink, *, folders: bool) -> bool:
    """The file that `source` names into `sink`, or the folder as a zip, where `folders` are taken; whether it was one.

    Raises `SourceRefused`, `SourceNotFound`, `SourceTooLarge`, `Stopped`.
    """
    with _opened(source, roots) as (descriptor, kind):
        if stat.S_ISREG(kind):
            with os.fdopen(os.dup(descriptor), "rb") as file:
                sink.announce(os.fstat(descriptor).st_size)
                while data := file.read(CHUNK):
                    sink.take(data)
            return False
        if not folders:
            raise SourceRefused(f"{source.path} is a folder; this format is one file")
        _pack(descriptor, source, sink)
        return True


@contextmanager
def _opened(source: SourceUri, roots: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """What is at the path, opened from its root downwards, and its mode."""
    path = os.path.realpath(source.path)
    for root in roots:
        base = os.path.realpath(root)
        if PurePosixPath(path).is_relative_to(base) and path != base:
            break
    else:
        # links were followed to know: what lies elsewhere is not told apart from what is not there
        raise SourceRefused(f"{source.path} is not below a folder that the operator allows (BILLHOOK_DATASET_ROOTS)")
    parts = PurePosixPath(path).relative_to(base).parts
    try:
        descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        for number, part in enumerate(parts):
            above = descriptor
            try:
                if number == len(parts) - 1 and not _is_plain(_stat(part, above).st_mode):
                    # some do things when they are opened
                    raise SourceRefused(f"{source.path} is neither a file nor a folder")
                # a path without links by now: one that appears since is refused
                descriptor = os.open(part, _FILE if number == len(parts) - 1 else _FOLDER, dir_fd=above)
            finally:
                os.close(above)
    except FileNotFoundError:
        raise SourceNotFound(f"there is no file or folder {source.path}") from None
    except OSError as error:
        raise SourceRefused(f"{source.path} cannot be opened: {error.strerror}") from None
    try:
        yield descriptor, os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)


def _is_plain(kind: int) -> bool:
    return stat.S_ISREG(kind) or stat.S_ISDIR(kind)


def _pack(folder: int, source: SourceUri, sink: Sink) -> None:
    names = sorted(_names(folder, source, sink))
    if not names:
        raise SourceRefused(f"{source.path} is an empty folder")
    with zipfile.ZipFile(cast(IO[bytes], _Watched(sink)), "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            with _plain_file(folder, name, source) as file:
                entry = zipfile.ZipInfo(name, _EARLIEST)
                entry.create_system = 3
                entry.external_attr = 0o100644 << 16
                entry.file_size = os.fstat(file.fileno()).st_size
                with archive.open(entry, "w") as writer:
                    shutil.copyfileobj(file, writer, CHUNK)
    sink.adopt()


def _names(folder: int, source: SourceUri, sink: Sink) -> list[str]:
    """Of all plain files below, with forward slashes, those left out that systems leave behind."""
    names: list[str] = []
    total = 0
    for where, folders, files, descriptor in os.fwalk(".", dir_fd=folder, follow_symlinks=False, onerror=_raise):
        sink.rules.check()
        inside = PurePosixPath(where)
        if len(inside.parts) > MAX_DEPTH:
            raise SourceRefused(f"{source.path} has folders more than {MAX_DEPTH} deep in each other")
        folders[:] = sorted(name for name in folders if not _is_litter(name))
        links = [name for name in folders if stat.S_ISLNK(_stat(name, descriptor).st_mode)]
        for name in links + [name for name in files if not _is_litter(name)]:
            found = _stat(name, descriptor)
            shown = str(inside / name).encode("utf-8", "replace").decode()
            if not stat.S_ISREG(found.st_mode):
                what = "a link" if stat.S_ISLNK(found.st_mode) else "no plain file"
                raise SourceRefused(f"{shown} in {source.path} is {what}: only plain files are taken")
            if shown != str(inside / name):
                raise SourceRefused(f"{shown} in {source.path} has a name that is no UTF-8")
            names.append(shown)
            total += found.st_size
        if len(names) > MAX_FILES:
            raise SourceTooLarge(f"{source.path} has more than {MAX_FILES} files")
        sink.announce(total)
    return names


def _stat(name: str, folder: int) -> os.stat_result:
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def _raise(error: OSError) -> None:
    raise SourceRefused(f"a folder cannot be read: {error.strerror}") from None


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


@contextmanager
def _plain_file(folder: int, name: str, source: SourceUri) -> Iterator[IO[bytes]]:
    """Opened from the folder downwards: what became a link since it was listed is refused."""
    *above, last = PurePosixPath(name).parts
    descriptor = os.dup(folder)
    try:
        for number, part in enumerate((*above, last)):
            outer = descriptor
            try:
                descriptor = os.open(part, _FILE if number == len(above) else _FOLDER, dir_fd=outer)
            finally:
                os.close(outer)
    except OSError as error:
        raise SourceRefused(f"{name} in {source.path} cannot be opened: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SourceRefused(f"{name} in {source.path} is no plain file any more")
        yield file


class _Watched:
    """The sink's file as an archive writes it, forwards and back; held to the sink's rules."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.seek, self.tell, self.flush = sink.file.seek, sink.file.tell, sink.file.flush

    def write(self, data: bytes) -> int:
        self._sink.rules.check()
        if self._sink.file.tell() + len(data) > self._sink.rules.max_bytes:
            self._sink.announce(self._sink.file.tell() + len(data))
        return self._sink.file.write(data)
