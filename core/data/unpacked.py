"""Arrays out of an archive: in memory, or in a file where they are too large for that."""

from __future__ import annotations

import math
from typing import IO, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from core.data.rows import Stored
from core.data.scratch import Scratch

READ_BYTES = 1 << 20
"""At a time, from an archive: of larger pieces the allocator keeps some 20 MiB when they are freed."""


class Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Unpacked:
    """An array in a file, in C order: slices along its first axis are read when they are asked for.

    stored: the type as it is in the file, of either byte order; what is read has this machine's.
    """

    def __init__(self, file: Scratch, shape: tuple[int, ...], stored: np.dtype[Any]) -> None:
        self.file = file
        self.shape = shape
        self.dtype = stored.newbyteorder("=")
        self._stored = stored

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        first, last, _ = rows.indices(len(self))
        part = np.empty((last - first, *self.shape[1:]), self._stored)
        row = math.prod(self.shape[1:]) * self._stored.itemsize
        self.file.read_into(part.reshape(-1).view(np.uint8).data, first * row)
        return part.astype(self.dtype, copy=False)

    def as_rows(self, shape: tuple[int, int, int], dtype: torch.dtype) -> Stored:
        """The file as it is, as images of `shape` (C, H, W)."""
        return Stored(self.file, shape, dtype, np.arange(len(self)))


Array = NDArray[Any] | Unpacked


def read_array(
    stream: Stream | IO[bytes],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    file: Scratch | None,
    order: Literal["C", "F"] = "C",
) -> Array:
    """The numbers of an array from where `stream` stands, into `file` or, without one, into memory.

    What goes to a file is in C order. Raises `EOFError` where there are too few.
    """
    size = math.prod(shape) * dtype.itemsize
    flat = np.empty(0 if file else math.prod(shape), dtype)
    # no memoryview of an empty array can be cast to bytes
    held = flat.view(np.uint8).data if flat.size else memoryview(b"")
    done = 0
    while done < size:
        data = stream.read(min(size - done, READ_BYTES))
        if not data:
            raise EOFError
        if file:
            file.write(data, done)
        else:
            held[done : done + len(data)] = data
        done += len(data)
    if file:
        return Unpacked(file, shape, dtype)
    return flat.reshape(shape, order=order).astype(dtype.newbyteorder("="), copy=False)
