"""Where a reader puts the images of a dataset: in memory where they fit, else in files, from which they are streamed.

A reader says once how much all its images take (`reserve`), then fills one `rows` for each split.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from core.data.rows import Held, Rows, Stored
from core.data.scratch import Scratch
from core.errors import DatasetTooLarge, Fault
from core.job import Room

IN_FLIGHT_LEAST, IN_FLIGHT_MOST = 32 << 20, 512 << 20
FREE_BYTES = 64 << 20
"""Left on the disk, whatever room there is."""


class Writer(Protocol):
    """Takes the images of a split, in order."""

    def write(self, position: int, images: Tensor) -> None:
        """images (B, C, H, W), from `position` on."""

    def finish(self, images: int) -> Rows:
        """The first `images` of them, when all are written."""


class Shelf:
    """Room for one dataset. `folder`: where files go; by default where Python puts temporary ones (TMPDIR)."""

    def __init__(self, room: Room | None = None, folder: Path | None = None) -> None:
        self.room = room or Room()
        self.in_memory = True
        self._folder = folder or Path(tempfile.gettempdir())
        self._on_disk = 0

    @property
    def in_flight_bytes(self) -> int:
        """How much of images may be in memory on their way to their places: an eighth of what they may take there, and
        enough for a few at a time."""
        return min(max(self.room.memory_bytes // 8, IN_FLIGHT_LEAST), IN_FLIGHT_MOST)

    def reserve(self, size: int, *, already: int = 0, pointer: str, what: str) -> None:
        """Decides where `size` bytes of images, all splits together, will be. `already`: of them in files by now.

        Raises `DatasetTooLarge`, at `pointer`, where there is room neither in memory nor on the disk.
        """
        self.in_memory = size <= self.room.memory_bytes
        if not self.in_memory:
            self._take(size - already, pointer=pointer, what=f"{what} take {size} bytes")

    def rows(self, images: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Writer:
        """For a split of `images` images of `shape` (C, H, W), where `reserve` has decided."""
        if self.in_memory:
            return _Memory(torch.empty((images, *shape), dtype=dtype))
        self._folder.mkdir(parents=True, exist_ok=True)
        return _File(Scratch(self._folder, images * math.prod(shape) * dtype.itemsize), shape, dtype)

    def file(self, size: int, *, pointer: str, what: str) -> Scratch:
        """A file for what is too large for memory before it is images. Raises `DatasetTooLarge`."""
        self._take(size, pointer=pointer, what=f"{what} takes {size} bytes")
        self._folder.mkdir(parents=True, exist_ok=True)
        return Scratch(self._folder, size)

    def give_back(self, file: Scratch) -> None:
        """Removes a file that is done with."""
        file.remove()
        self._on_disk -= file.size

    @contextmanager
    def unpacked(self, size: int, *, pointer: str, what: str) -> Iterator[Path]:
        """A folder for `size` bytes of files that are read, but are no images; at the end it goes, and its room is
        given back. Raises `DatasetTooLarge`."""
        self._take(size, pointer=pointer, what=f"{what} take {size} bytes", on_disk_only=True)
        try:
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                yield Path(folder)
        finally:
            self._on_disk -= size

    def _take(self, size: int, *, pointer: str, what: str, on_disk_only: bool = False) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        left = max(0, shutil.disk_usage(self._folder).free - FREE_BYTES)
        if self.room.disk_bytes is not None:
            left = min(left, self.room.disk_bytes - self._on_disk)
        if size > left:
            expected = "smaller or fewer images, or more room: BILLHOOK_DISK_LIMIT_BYTES"
            if on_disk_only:
                fault = Fault(pointer, f"{what} of disk, and {left} are left", expected)
                raise DatasetTooLarge("the dataset does not fit on disk", faults=[fault])
            memory = self.room.memory_bytes
            message = f"{what}: more than the {memory} of memory that a dataset may take, and {size} on disk, of {left}"
            fault = Fault(pointer, message, f"{expected}, or BILLHOOK_DATASET_MEMORY_BYTES")
            raise DatasetTooLarge("the images fit neither in memory nor on disk", faults=[fault])
        self._on_disk += size


class _Memory:
    def __init__(self, x: Tensor) -> None:
        self._x = x

    def write(self, position: int, images: Tensor) -> None:
        self._x[position : position + len(images)] = images

    def finish(self, images: int) -> Held:
        return Held(self._x[:images])


class _File:
    def __init__(self, file: Scratch, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        self._file = file
        self._shape = shape
        self._dtype = dtype
        self._row_bytes = math.prod(shape) * dtype.itemsize

    def write(self, position: int, images: Tensor) -> None:
        flat = np.ascontiguousarray(images.numpy()).reshape(-1).view(np.uint8)
        self._file.write(flat.data, position * self._row_bytes)

    def finish(self, images: int) -> Stored:
        self._file.truncate(images * self._row_bytes)
        return Stored(self._file, self._shape, self._dtype, np.arange(images))
