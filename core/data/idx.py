"""IDX files in a zip, named as MNIST's are: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte
and so on, each as it is or packed by gzip (.gz).

The format (Y. LeCun): two zero bytes, the type of the numbers, how many dimensions, their sizes as 32-bit integers,
highest byte first, then the numbers in that byte order. Each header is checked against the caps before memory is taken.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from core.data.archive import Limits, open_archive
from core.data.arrays import MAX_BYTES, source_of, text_of
from core.data.folders import is_litter
from core.data.scratch import of_the_disk
from core.data.shelf import Shelf
from core.data.source import Source, pointer
from core.data.unpacked import Array, read_array
from core.errors import DatasetTooLarge, DatasetUnreadable, Fault
from core.job import Preprocess

LIMITS = Limits(members=64, member_bytes=MAX_BYTES, total_bytes=2 * MAX_BYTES)
TYPES: Mapping[int, str] = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
USUAL: Mapping[str, str] = {
    f"{kind}_{split}": f"{name}-{what}-ubyte"
    for split, name in (("train", "train"), ("val", "val"), ("test", "t10k"))
    for kind, what in (("x", "images-idx3"), ("y", "labels-idx1"))
}
"""What each array's file is called."""

_SUFFIXES: Mapping[str, str] = {"train": "train", "val": "val", "validation": "val", "test": "test", "t10k": "test"}
_NAME = re.compile(r"(?:.*[-_.])?(train|val|validation|test|t10k)[-_.](images|labels)[-_.]idx\d-\w+(?:\.gz)?")


_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, struct.error, NotImplementedError, RuntimeError)


class _Refused(Exception):
    """One member is not taken: what is wrong with it, and what would be right."""


def read_idx(path: Path | None, preprocess: Preprocess, shelf: Shelf | None = None) -> Source:
    """The images and labels as a source, in `shelf`.

    Members may lie in folders; other files are left out, with a warning.

    Raises `DatasetUnreadable`, `DatasetTooLarge` or `DatasetUnsuitable` with the faults.
    """
    if path is None:
        raise DatasetUnreadable("idx needs a file", faults=[Fault("/file", "no file was given", "a zip of IDX files")])
    shelf = shelf or Shelf()
    with open_archive(path, LIMITS) as (archive, members):
        files = [member for member in members if not member.is_dir() and not is_litter(member.filename)]
        named = {member.filename: found for member in files if (found := _array_of(member.filename)) is not None}
        faults: list[Fault] = []
        for name, array in named.items():
            twin = next(other for other, item in named.items() if item == array)
            if twin != name:
                faults.append(Fault(pointer("file", name), f"{twin} is of the same split", "one file of each"))
        arrays: dict[str, Array] = {}
        images = [member for member in files if named.get(member.filename, "y")[0] == "x"]
        large = sum(_claimed(archive, member) for member in images) > shelf.room.memory_bytes
        for member in files if not faults else []:
            if member.filename in named:
                unpack = shelf if large and member in images else None
                try:
                    arrays[named[member.filename]] = _read(archive, member, unpack)
                except _Refused as refused:
                    faults.append(Fault(pointer("file", member.filename), *refused.args))
    if faults:
        raise DatasetUnreadable(f"the IDX files have {len(faults)} fault(s)", faults=faults)
    source = source_of(arrays, {**USUAL, **{array: name for name, array in named.items()}}, preprocess, shelf)
    source.details["format"] = "idx"
    others = [member.filename for member in files if member.filename not in named]
    if others:
        source.warnings.append(f"{len(others)} file(s) that are no IDX files were left out: {', '.join(others[:10])}")
    return source


def holds_idx(names: Iterable[str]) -> bool:
    """Whether files of these names are IDX files: one is named as they are."""
    return any(_array_of(name) is not None for name in names)


def _array_of(name: str) -> str | None:
    """ "x_train" of "fashion/train-images-idx3-ubyte.gz"; None of what is not named as IDX files are."""
    if is_litter(name):
        return None
    match = _NAME.fullmatch(PurePosixPath(name).name)
    return None if match is None else f"{'x' if match[2] == 'images' else 'y'}_{_SUFFIXES[match[1]]}"


def _claimed(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Bytes of numbers that a file says it has; 0 where that cannot be read, which `_read` will tell."""
    try:
        with archive.open(member) as packed:
            stream = gzip.GzipFile(fileobj=packed) if member.filename.endswith(".gz") else packed
            shape, dtype = _header(stream)
            return math.prod(shape) * dtype.itemsize
    except (_Refused, *_DAMAGED):
        return 0


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, unpack: Shelf | None) -> Array:
    """`unpack`: where to, if not into memory."""
    try:
        with archive.open(member) as packed:
            if member.filename.endswith(".gz"):
                # packed once more: what the zip says of its size says nothing of the numbers in it
                most = max(LIMITS.ratio_floor_bytes, int(LIMITS.ratio * member.compress_size))
                with gzip.GzipFile(fileobj=packed) as stream:
                    return _parse(stream, member, unpack, most=most, held=None)
            return _parse(packed, member, unpack, most=member.file_size, held=member.file_size)
    except _DAMAGED as error:
        if of_the_disk(error):
            raise
        raise _Refused("damaged, or no IDX file", "an undamaged file") from None


def _header(stream: IO[bytes] | gzip.GzipFile) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the numbers that follow."""
    zeros, kind, rank = struct.unpack(">HBB", stream.read(4))
    if zeros or kind not in TYPES:
        raise _Refused("it does not begin as an IDX file does", "two zero bytes, then the type of its numbers")
    if not 1 <= rank <= 4:
        raise _Refused(f"{rank} dimensions", "1 of labels, 3 or 4 of images")
    shape = struct.unpack(f">{rank}I", stream.read(4 * rank))
    return shape, np.dtype(TYPES[kind])


def _parse(
    stream: IO[bytes] | gzip.GzipFile,
    member: zipfile.ZipInfo,
    unpack: Shelf | None,
    *,
    most: int,
    held: int | None,
) -> Array:
    """`most`: bytes that are taken. `held`: bytes there are, where that is known."""
    shape, dtype = _header(stream)
    rank = len(shape)
    size = math.prod(shape) * dtype.itemsize
    if held is not None and size != held - 4 - 4 * rank:
        message = f"the header says {text_of(shape)}, {size} bytes; there are {held - 4 - 4 * rank}"
        raise _Refused(message, "as many bytes as the header says")
    if size > min(most, MAX_BYTES):
        fault = Fault(pointer("file", member.filename), f"{text_of(shape)}, {size} bytes unpacked",
                      f"at most {min(most, MAX_BYTES)} bytes")  # fmt: skip
        raise DatasetTooLarge("an IDX file unpacks to too much", faults=[fault])
    where = pointer("file", member.filename)
    file = unpack.file(size, pointer=where, what=f"{text_of(shape)} {dtype} unpacked") if unpack else None
    try:
        array = read_array(stream, shape, dtype, file)
    except EOFError:
        raise _Refused(f"it ends before the {size} bytes of {text_of(shape)}", "an undamaged file") from None
    if stream.read(1):
        raise _Refused(f"more than the {size} bytes of {text_of(shape)}", "as many bytes as the header says")
    return array
