"""Local files on their way to a server: their hash, and a folder of images as one zip with a stable hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from billhook.errors import InputInvalid
from billhook.steps import CHUNK_BYTES

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can hold


@dataclass(frozen=True)
class LocalFile:
    """A file to upload."""

    path: Path
    sha256: str
    size: int
    skipped: int = 0
    """Files of a zipped folder that are no images."""


def local_file(path: Path) -> LocalFile:
    """`path` with its hash. Raises `InputInvalid` where it is no readable file."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return LocalFile(path, digest, file.tell())
    except FileNotFoundError:
        raise InputInvalid(f"there is no file {path}") from None
    except IsADirectoryError:
        raise InputInvalid(f"{path} is a folder, not a file") from None
    except OSError as error:
        raise InputInvalid(f"{path} cannot be read: {error.strerror}") from None


def zip_folder(folder: Path, target: Path) -> LocalFile:
    """The images below `folder` as the zip `target`, the same bytes for the same names and contents.

    Sorted names, no times, no owners, no compression (images are compressed already, and zlib's output differs
    between versions). Hidden files and files that are no images are left out and counted. Links are followed.
    Raises `InputInvalid` where there is no image, or where a link leads round in a circle.
    """
    names, skipped = _images(folder)
    if not names:
        raise InputInvalid(
            f"{folder} holds no images: expected one folder per class (or train/, validation/, test/ with these inside)"
        )
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, strict_timestamps=True) as archive:
            for name in names:
                source = folder / name
                entry = zipfile.ZipInfo(name, _EARLIEST)
                entry.create_system, entry.external_attr = 3, 0o100644 << 16  # the same on every system
                entry.file_size = source.stat().st_size
                with source.open("rb") as reader, archive.open(entry, "w") as writer:
                    shutil.copyfileobj(reader, writer, CHUNK_BYTES)
    except OSError as error:
        raise InputInvalid(f"{folder} cannot be zipped: {error.strerror or error}") from None
    zipped = local_file(target)
    return LocalFile(target, zipped.sha256, zipped.size, skipped)


def _images(folder: Path) -> tuple[list[str], int]:
    """Names relative to `folder` with forward slashes, sorted; and how many visible files are no images."""
    names: list[str] = []
    skipped = 0
    parents: dict[str, frozenset[str]] = {str(folder): frozenset({os.path.realpath(folder)})}
    for where, subfolders, files in os.walk(folder, followlinks=True):
        above = parents.pop(where)
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__MACOSX"))]
        for name in subfolders:
            below = str(Path(where, name))
            real = os.path.realpath(below)
            if real in above:
                raise InputInvalid(f"{below} is a link to a folder above it")
            parents[below] = above | {real}
        for name in files:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                names.append(Path(where, name).relative_to(folder).as_posix())
            else:
                skipped += 1
    return sorted(names), skipped
