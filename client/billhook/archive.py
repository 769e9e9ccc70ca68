"""Local files on their way to a server: their hash, and a folder of images as one zip with a stable hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from billhook.errors import InputInvalid
from billhook.steps import CHUNK_BYTES

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"})  # what the server reads
SHOWN = 10
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can hold


@dataclass(frozen=True)
class LocalFile:
    """A file to upload."""

    path: Path
    sha256: str
    size: int


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
    """All that is below `folder` as the zip `target`, the same bytes for the same names and contents.

    Sorted names, no times, no owners, no compression (images are compressed already, and zlib's output differs
    between versions). Only hidden files and what systems leave behind are left out: what else does not belong there,
    the server says. Links are followed. Raises `InputInvalid` where there is no image at all (a wrong folder), where a
    class has none, or where a link leads round in a circle.
    """
    names, bare = _names(folder)
    if not any(map(_is_image, names)):
        raise InputInvalid(
            f"{folder} holds no images: expected one folder per class (or train/, val/, test/ with these inside)"
        )
    if bare:
        more = f", and {len(bare) - SHOWN} more" if len(bare) > SHOWN else ""
        raise InputInvalid(
            f"there are no images in {', '.join(bare[:SHOWN])}{more}: every folder in {folder} that holds no others "
            "stands for a class; put images there, or take it away"
        )
    try:
        write_zip(folder, names, target)
    except OSError as error:
        raise InputInvalid(f"{folder} cannot be zipped: {error.strerror or error}") from None
    return local_file(target)


def write_zip(folder: Path, names: Sequence[str], target: Path) -> None:
    """`names` in `folder` as a zip: in this order, no times, no owners, no compression. Raises `OSError`."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, _EARLIEST)
            entry.create_system = 3  # the same on every system
            entry.external_attr = 0o100644 << 16
            entry.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as reader, archive.open(entry, "w") as writer:
                shutil.copyfileobj(reader, writer, CHUNK_BYTES)


def _names(folder: Path) -> tuple[list[str], list[str]]:
    """Names of all files relative to `folder`, sorted, with forward slashes; and the leaf folders without images."""
    names: list[str] = []
    bare: list[str] = []
    above: dict[str, frozenset[str]] = {str(folder): frozenset({os.path.realpath(folder)})}
    for where, subfolders, files in os.walk(folder, followlinks=True):
        parents = above.pop(where)
        subfolders[:] = [name for name in subfolders if not _is_litter(name)]
        files = [name for name in files if not _is_litter(name)]
        for name in subfolders:
            below = str(Path(where, name))
            if (real := os.path.realpath(below)) in parents:
                raise InputInvalid(f"{below} is a link to a folder above it")
            above[below] = parents | {real}
        names += [Path(where, name).relative_to(folder).as_posix() for name in files]
        if not subfolders and not any(map(_is_image, files)):
            bare.append(str(Path(where)))
    return sorted(names), sorted(bare)


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")
