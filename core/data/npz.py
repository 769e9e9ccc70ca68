"""`.npz` files: x_train, y_train and, where they are there, x_val, y_val, x_test, y_test. Nothing is ever unpickled.

See `core/data/arrays.py` for what they hold. Each array's header is checked against its size in the archive before
memory is taken.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from core.data.archive import Limits, open_archive
from core.data.arrays import MAX_BYTES, READ_BYTES, Array, array_names, source_of, text_of
from core.data.source import Source, pointer
from core.errors import DatasetUnreadable, Fault
from core.job import Preprocess

_ZIP = "an image folder is a .zip"
LIMITS = Limits(members=64, member_bytes=MAX_BYTES, total_bytes=2 * MAX_BYTES, members_hint=f" of an .npz; {_ZIP}")
_ALLOWED = ", ".join(array_names())


def read_npz(path: Path | None, preprocess: Preprocess) -> Source:
    """The arrays as a source. Raises `DatasetUnreadable`, `DatasetTooLarge` or `DatasetUnsuitable` with the faults."""
    if path is None:
        raise DatasetUnreadable("npz needs a file", faults=[Fault("/file", "no file was given", "an .npz file")])
    return source_of(_read_arrays(path), {}, preprocess)


def _read_arrays(path: Path) -> dict[str, Array]:
    with open_archive(path, LIMITS) as (archive, members):
        if members and not any(member.filename.endswith(".npy") for member in members):
            fault = Fault("/file", "no .npy members", f"the arrays {_ALLOWED}; {_ZIP}")
            raise DatasetUnreadable("the file holds no arrays", faults=[fault])
        unknown = [member for member in members if member.filename not in {f"{name}.npy" for name in array_names()}]
        if unknown:
            faults = [Fault(pointer("file", member.filename), "not an array that is known", _ALLOWED)
                      for member in unknown]  # fmt: skip
            raise DatasetUnreadable("the file holds other things than the arrays of a dataset", faults=faults)
        arrays: dict[str, Array] = {}
        faults = []
        for member in members:
            try:
                arrays[member.filename.removesuffix(".npy")] = _read_array(archive, member)
            except _Refused as refused:
                faults.append(Fault(pointer("file", member.filename), refused.message, refused.expected))
            except MemoryError:
                raise
            except Exception:  # zipfile and numpy's parser of a header raise a dozen kinds on hostile bytes
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


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
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
        flat = np.empty(math.prod(shape), dtype)
        # no memoryview of an empty array can be cast to bytes
        rest = flat.view(np.uint8).data if flat.size else memoryview(b"")
        while rest:
            data = stream.read(min(len(rest), READ_BYTES))
            if not data:
                raise EOFError
            rest[: len(data)] = data
            rest = rest[len(data) :]
        stream.read(1)  # reaching the end checks the CRC
        return flat.reshape(shape, order="F" if fortran_order else "C")
