"""`.npz` files: x_train, y_train and, where they are there, x_val, y_val, x_test, y_test. Nothing is ever unpickled.

See `core/data/arrays.py` for what they hold. Each array's header is checked against its size in the archive before
memory is taken.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

from numpy.lib import format as npy

from core.data.archive import Limits, open_archive
from core.data.arrays import MAX_BYTES, array_names, source_of, text_of
from core.data.scratch import of_the_disk
from core.data.shelf import Shelf
from core.data.source import Source, pointer
from core.data.unpacked import Array, read_array
from core.errors import DatasetTooLarge, DatasetUnreadable, Fault
from core.job import Preprocess

_ZIP = "an image folder is a .zip"
LIMITS = Limits(members=64, member_bytes=MAX_BYTES, total_bytes=2 * MAX_BYTES, members_hint=f" of an .npz; {_ZIP}")
_ALLOWED = ", ".join(array_names())


def read_npz(path: Path | None, preprocess: Preprocess, shelf: Shelf | None = None) -> Source:
    """The arrays as a source, in `shelf`.

    Raises `DatasetUnreadable`, `DatasetTooLarge` or `DatasetUnsuitable`, with the faults.
    """
    if path is None:
        raise DatasetUnreadable("npz needs a file", faults=[Fault("/file", "no file was given", "an .npz file")])
    shelf = shelf or Shelf()
    return source_of(_read_arrays(path, shelf), {}, preprocess, shelf)


def _read_arrays(path: Path, shelf: Shelf) -> dict[str, Array]:
    with open_archive(path, LIMITS) as (archive, members):
        if members and not any(member.filename.endswith(".npy") for member in members):
            fault = Fault("/file", "no .npy members", f"the arrays {_ALLOWED}; {_ZIP}")
            raise DatasetUnreadable("the file holds no arrays", faults=[fault])
        unknown = [member for member in members if member.filename not in {f"{name}.npy" for name in array_names()}]
        if unknown:
            faults = [Fault(pointer("file", member.filename), "not an array that is known", _ALLOWED)
                      for member in unknown]  # fmt: skip
            raise DatasetUnreadable("the file holds other things than the arrays of a dataset", faults=faults)
        images = sum(member.file_size for member in members if member.filename[0] == "x")
        unpack = shelf if images > shelf.room.memory_bytes else None
        arrays: dict[str, Array] = {}
        faults = []
        for member in members:
            try:
                arrays[member.filename.removesuffix(".npy")] = _read_array(archive, member, unpack)
            except _Refused as refused:
                faults.append(Fault(pointer("file", member.filename), refused.message, refused.expected))
            except (MemoryError, DatasetTooLarge):
                raise
            except Exception as error:  # zipfile and numpy's parser of a header raise a dozen kinds on hostile bytes
                if of_the_disk(error):
                    raise
                where = pointer("file", member.filename)
                faults.append(Fault(where, "damaged, or no .npy array", "an undamaged array"))
        if faults:
            raise DatasetUnreadable("arrays of the file cannot be read", faults=faults)
    return arrays


class _Refused(Exception):
    def __init__(self, message: str, expected: str) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, unpack: Shelf | None) -> Array:
    """`unpack`: where images go that are too large for memory."""
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise _Refused(f".npy version {version[0]}.{version[1]}", "version 1.0 or 2.0")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read_header(stream)
        if dtype.hasobject:
            raise _Refused("an array of Python objects, which would have to be unpickled", "an array of numbers")
        if dtype.kind not in "uif":
            raise _Refused(f"type {dtype}", "uint8, or another integer or float type")
        size = math.prod(shape) * dtype.itemsize
        held = member.file_size - stream.tell()
        if min(shape, default=0) < 0 or size != held:
            message = f"the header says {text_of(shape)} {dtype}, {size} bytes; there are {held}"
            raise _Refused(message, "as many bytes as the header says")
        file = None
        if unpack and member.filename[0] == "x":
            if fortran_order and len(shape) > 1:
                message = f"{text_of(shape)} in Fortran order, each image all over the array, is too large for memory"
                raise _Refused(message, "C order: numpy.ascontiguousarray")
            where = pointer("file", member.filename)
            file = unpack.file(size, pointer=where, what=f"{text_of(shape)} {dtype} unpacked")
        array = read_array(stream, shape, dtype, file, "F" if fortran_order else "C")
        stream.read(1)  # reaching the end checks the CRC
        return array
