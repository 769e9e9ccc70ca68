"""Where the images of a split are: held in memory, or stored in a file and read when they are wanted.

Whoever looks at images does it through `Rows`, piece by piece, and need not know which of the two it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.pixels import to_grey
from core.data.scratch import Scratch
from core.data.threads import in_order, torch_threads

CHUNK_BYTES = 16 << 20
READ_AHEAD_BATCHES = 4
READ_AHEAD_BYTES = 64 << 20
"""Of batches that lie ready or are being read, besides the one that is trained on: at most so many, and of so many
bytes, except that one is always read ahead."""
READ_THREADS = 4
"""At most. A thread copies a few GB/s from the page cache, so one would do; several requests keep a slow disk busy."""

Index = NDArray[np.int64]
Samples = Tensor | slice
"""Positions: int64 (B,) on the CPU, or a slice."""


class Rows(ABC):
    """Images in their order, (N, C, H, W), uint8, or float32 in 0-255 where uint8 would round."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)"""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @abstractmethod
    def take(self, samples: Samples) -> Tensor:
        """The images at `samples`, (B, C, H, W), on the CPU. Not to be written to: they may be those that are held."""

    @abstractmethod
    def select(self, index: Index | slice) -> Rows:
        """Only these images, in this order."""

    @abstractmethod
    def arranged(self, order: Index) -> Rows:
        """All images in another order, a permutation. In place where they are held: what was there before is used up,
        since a gathered copy would double the dataset's memory."""

    @abstractmethod
    def joined(self, other: Rows) -> Rows:
        """These images and those of `other`, which was selected from the same. Held ones are not copied where the
        others lie right behind them."""

    @abstractmethod
    def grey(self) -> Rows:
        """RGB images turned grey, see `to_grey`."""

    @abstractmethod
    def batches(self, wanted: Sequence[Samples], device: torch.device) -> Generator[Tensor]:
        """`take` of each of `wanted`, in order, on `device`."""

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Of one image."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def chunks(self, images: int | None = None) -> Iterator[Tensor]:
        """All of them in order, `images` at a time; by default as many as 16 MiB hold."""
        step = images or max(1, CHUNK_BYTES // self.row_bytes)
        for start in range(0, len(self), step):
            yield self.take(slice(start, min(start + step, len(self))))


class Held(Rows):
    """In memory, once. A batch in order is a view."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._on_device: dict[torch.device, Tensor] = {}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        images, channels, height, width = self.x.shape
        return images, channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def take(self, samples: Samples) -> Tensor:
        return self.x[samples]

    def select(self, index: Index | slice) -> Held:
        return Held(self.x[index if isinstance(index, slice) else torch.from_numpy(index)])

    def arranged(self, order: Index) -> Held:
        reorder(self.x.numpy(), order)
        return self

    def joined(self, other: Rows) -> Held:
        if not isinstance(other, Held):
            raise TypeError("images in memory are joined to such as are in memory")
        first, second = self.x, other.x
        behind = first.data_ptr() + first.nbytes == second.data_ptr()
        same = first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
        if same and behind and first.is_contiguous() and second.is_contiguous():
            size = (len(first) + len(second), *first.shape[1:])
            return Held(first.as_strided(size, first.stride(), first.storage_offset()))
        return Held(torch.cat([first, second]))

    def grey(self) -> Held:
        return Held(to_grey(self.x))

    def batches(self, wanted: Sequence[Samples], device: torch.device) -> Generator[Tensor]:
        """An accelerator gets all images once, and batches are made there."""
        x = self.x
        if device.type != "cpu":
            if device not in self._on_device:
                self._on_device[device] = self.x.to(device)
            x = self._on_device[device]
        for samples in wanted:
            yield x[samples if isinstance(samples, slice) else samples.to(device, non_blocking=True)]


class Stored(Rows):
    """In a file, one image after another. `shape`: (C, H, W) of one there; `index`: which of them these are."""

    def __init__(
        self, file: Scratch, shape: tuple[int, int, int], dtype: torch.dtype, index: Index, *, grey: bool = False
    ) -> None:
        self.file = file
        self._shape = shape
        self._dtype = dtype
        self._index = index
        self._grey = grey

    @property
    def shape(self) -> tuple[int, int, int, int]:
        channels, height, width = self._shape
        return len(self._index), 1 if self._grey else channels, height, width

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def take(self, samples: Samples) -> Tensor:
        positions = self._index[samples if isinstance(samples, slice) else samples.numpy()]
        images = torch.empty((len(positions), *self._shape), dtype=self._dtype)
        into = images.numpy().reshape(-1).view(np.uint8).data
        size = math.prod(self._shape) * self._dtype.itemsize
        # neighbours are read at once
        starts = np.flatnonzero(np.diff(positions, prepend=-2) != 1).tolist()
        for first, last in zip(starts, [*starts[1:], len(positions)], strict=True):
            self.file.read_into(into[first * size : last * size], int(positions[first]) * size)
        return to_grey(images) if self._grey else images

    def select(self, index: Index | slice) -> Stored:
        return Stored(self.file, self._shape, self._dtype, self._index[index], grey=self._grey)

    def arranged(self, order: Index) -> Stored:
        return self.select(order)

    def joined(self, other: Rows) -> Stored:
        if not isinstance(other, Stored) or other.file is not self.file:
            raise TypeError("images in a file are joined to such as are in the same file")
        index = np.concatenate([self._index, other._index])
        return Stored(self.file, self._shape, self._dtype, index, grey=self._grey)

    def grey(self) -> Stored:
        return Stored(self.file, self._shape, self._dtype, self._index, grey=True)

    def batches(self, wanted: Sequence[Samples], device: torch.device) -> Generator[Tensor]:
        """Read ahead by a few threads, as far as `READ_AHEAD_BATCHES` and `READ_AHEAD_BYTES` allow."""

        def read(samples: Samples) -> Tensor:
            batch = self.take(samples)
            return batch.pin_memory() if device.type == "cuda" else batch

        def size(samples: Samples) -> int:
            images = samples.stop - samples.start if isinstance(samples, slice) else len(samples)
            return max(images * self.row_bytes, READ_AHEAD_BYTES // READ_AHEAD_BATCHES)

        threads = min(READ_THREADS, torch_threads())
        with closing(in_order(read, wanted, threads=threads, cost=size, most=READ_AHEAD_BYTES)) as batches:
            for batch in batches:
                yield batch.to(device, non_blocking=True)


def reorder(rows: NDArray[np.generic], order: Index) -> None:
    """rows[:] = rows[order] along its cycles: in place, since a gathered copy would double the dataset's memory."""
    done = np.zeros(len(order), dtype=bool)
    source = array("q", order.astype(np.int64).tobytes())  # as quick to look at as a list, an eighth of its size
    for start in range(len(source)):
        if done[start] or source[start] == start:
            continue
        held = rows[start].copy()
        here = start
        while source[here] != start:
            done[here] = True
            rows[here] = rows[source[here]]
            here = source[here]
        done[here] = True
        rows[here] = held
