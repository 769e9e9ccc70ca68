"""A file for one process's own use, gone when nobody needs it any more."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from pathlib import Path

Buffer = bytes | memoryview


class Scratch:
    """A file of `size` bytes in `folder`, its blocks taken at once, so that a full disk is found now and not later.

    Read by pread, never mapped: pages of a mapped file count as memory of the process, those of the page cache do not.
    Any number of threads may read it. It is removed when this object goes. Raises `OSError` where the disk is full.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.descriptor, name = tempfile.mkstemp(prefix="images-", dir=folder)
        self.size = size
        self.remove = weakref.finalize(self, _remove, self.descriptor, name)
        if size:
            os.posix_fallocate(self.descriptor, 0, size)

    def write(self, data: Buffer, offset: int) -> None:
        """All of `data` from `offset` on."""
        rest = memoryview(data).cast("B")
        while rest:
            written = os.pwrite(self.descriptor, rest, offset)
            rest, offset = rest[written:], offset + written

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills `buffer` (bytes) from `offset` on. Raises `OSError` where the file ends before that."""
        while buffer:
            found = os.preadv(self.descriptor, [buffer], offset)
            if not found:
                raise OSError(errno.EIO, "a file of images is shorter than it was")
            buffer, offset = buffer[found:], offset + found

    def truncate(self, size: int) -> None:
        """Gives back what is beyond `size` bytes."""
        os.ftruncate(self.descriptor, size)
        self.size = size


def of_the_disk(error: BaseException) -> bool:
    """Whether an error says something of the disk, and not of an upload."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _remove(descriptor: int, name: str) -> None:
    os.close(descriptor)
    Path(name).unlink(missing_ok=True)
