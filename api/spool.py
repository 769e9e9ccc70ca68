"""Where uploads lie until they are complete: temporary files that are bounded in memory, threads and disk together.

A file is hashed and written in a thread while its next bytes come in. It is locked for as long as its upload lives: the
kernel drops the lock with the process, so what a killed server left is told from what another one is receiving.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import ParamSpec, TypeVar

import anyio
from anyio import to_thread

from api.bodies import too_large
from api.errors import Refused
from store.artifacts import ArtifactStore
from store.settings import Settings

BATCH_BYTES = 2**20  # what is hashed and written in one go; another such batch comes in meanwhile
SMALLEST_BATCH_BYTES = 2**16
BUFFER_BYTES = 64 * 2**20  # of all uploads together, as far as batches of the smallest size allow
SMALL_BYTES = 2**14  # pieces smaller than this are put together: each would cost memory of its own
WRITERS = 8  # threads that hash and write
STORERS = 4  # threads that put complete files into the storage; to S3, each holds a few parts in memory
SPACE_BYTES = 64 * 2**20  # how often the free space is looked at
FLUSH_BYTES = 16 * 2**20  # how often the disk is told to begin writing

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Spool:
    """The temporary files of one server process."""

    def __init__(self, settings: Settings, artifacts: ArtifactStore) -> None:
        self.settings = settings
        self._artifacts = artifacts
        self._open: set[SpoolFile] = set()
        self._writers = anyio.CapacityLimiter(WRITERS)
        self._storers = anyio.CapacityLimiter(STORERS)

    @asynccontextmanager
    async def file(self, announced: int) -> AsyncIterator[SpoolFile]:
        """A new file that lives as long as the block, unless it is moved away. `announced`: its length in bytes as far
        as it is known, else 0.

        Raises `Refused` (`storage_full`).
        """
        await to_thread.run_sync(self._prepare, limiter=self._writers)
        file = SpoolFile(self, announced)
        self._open.add(file)  # from here on to the next `await` nothing else is let in on the space that this one needs
        try:
            self.check_space()
            file.create(self.settings.uploads_dir)
            yield file
        finally:
            self._open.remove(file)
            with anyio.CancelScope(shield=True):
                await file.close()

    async def store(self, action: Callable[Given, Result], *given: Given.args, **more: Given.kwargs) -> Result:
        """The result of an action that puts a complete file into the storage, in one of the few threads for that: a
        storage that is slow, or away, holds up uploads and nothing else."""
        return await to_thread.run_sync(lambda: action(*given, **more), limiter=self._storers)

    async def write(self, action: Callable[[], None]) -> None:
        await to_thread.run_sync(action, limiter=self._writers)

    @property
    def batch_bytes(self) -> int:
        """The more uploads at once, the smaller their batches. Two for each are in memory at most."""
        return max(SMALLEST_BATCH_BYTES, min(BATCH_BYTES, BUFFER_BYTES // (2 * max(1, len(self._open)))))

    def check_space(self) -> None:
        """Raises `Refused` (`storage_full`) unless there is room for what is still to come of all uploads together, and
        for the copies of them in the storage where that is a folder which files cannot be moved into."""
        files = list(self._open)
        coming = sum(max(0, file.announced - file.size) for file in files)
        needed = {self.settings.uploads_dir: coming}
        folder = self._artifacts.folder
        if folder is not None and not self.moves:
            copies = sum(max(file.announced, file.size) for file in files)
            if folder.stat().st_dev == self.settings.uploads_dir.stat().st_dev:
                needed[self.settings.uploads_dir] += copies
            else:
                needed[folder] = copies
        for place, bytes_ in needed.items():
            free = shutil.disk_usage(place).free
            if free - bytes_ < self.settings.min_free_bytes:
                raise Refused(
                    "storage_full",
                    f"this server has not enough free space: {free / 2**20:.0f} MiB are free, this upload and those "
                    f"under way need {bytes_ / 2**20:.0f} MiB more, and {self.settings.min_free_bytes / 2**20:.0f} MiB "
                    "must stay free (BILLHOOK_MIN_FREE_BYTES)",
                )

    @cached_property
    def moves(self) -> bool:
        """Whether files are moved from here into the storage instead of copied: both lie in one file system.

        It is tried: two mounts of one file system look alike, and are not.
        """
        if self._artifacts.folder is None:
            return False
        name = f".move-{secrets.token_hex(8)}"
        here, there = self.settings.uploads_dir / name, self._artifacts.folder / name
        try:
            here.touch()
            here.replace(there)
        except OSError:
            return False
        finally:
            for path in (here, there):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        return True

    def remove_abandoned(self) -> int:
        """Remove what killed servers left of their uploads; returns how many files."""
        removed = 0
        for path in self.settings.uploads_dir.glob("upload-*"):
            with contextlib.suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by its upload as long as that lives
                path.unlink()
                removed += 1
        return removed

    def _prepare(self) -> None:
        try:
            self.settings.uploads_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise _unwritable() from error
        _ = self.moves  # not on the event loop: a disk may be slow


class SpoolFile:
    """One upload's file. `take` and `flush` are called by turns, by one task."""

    def __init__(self, spool: Spool, announced: int) -> None:
        self.announced = announced
        self.size = 0
        self.path: Path
        self._spool = spool
        self._handle: int | None = None
        self._sha256 = hashlib.sha256()
        self._batch: list[bytes | bytearray | memoryview] = []
        self._batched = 0
        self._written = 0
        self._flushed = 0
        self._writing: asyncio.Task[None] | None = None

    def create(self, folder: Path) -> None:
        """Make the file and lock it. Raises `Refused` (`storage_full`)."""
        try:
            while self._handle is None:
                self.path = folder / f"upload-{secrets.token_hex(8)}"
                # the folder keeps others out; in the storage, where it may be moved to, whoever the umask lets in reads
                self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                fcntl.flock(self._handle, fcntl.LOCK_EX)
                if not self.path.exists():  # another server looked for abandoned files just then
                    os.close(self._handle)
                    self._handle = None
        except OSError as error:
            raise _unwritable() from error

    def take(self, data: bytes | memoryview) -> None:
        """More of the file. `flush` soon. Raises `Refused` (`body_too_large`)."""
        self.size += len(data)
        if self.size > self._spool.settings.max_upload_bytes:
            raise too_large(self._spool.settings.max_upload_bytes)
        self._batched += len(data)
        if len(data) >= SMALL_BYTES:
            self._batch.append(data)
        elif self._batch and isinstance(last := self._batch[-1], bytearray):
            last += data
        else:
            self._batch.append(bytearray(data))

    async def flush(self) -> None:
        """Hand over what has come in if it is a batch, once the batch before is on the disk. Raises `Refused`
        (`storage_full`)."""
        if self._batched >= self._spool.batch_bytes:
            await self._hand_over()

    async def finish(self) -> str:
        """Write the rest; returns the sha256 of the file. Raises `Refused` (`storage_full`)."""
        await self._hand_over()
        await self._settle()
        return self._sha256.hexdigest()

    async def close(self) -> None:
        """Give up the file: whatever is still written goes first."""
        with contextlib.suppress(Exception):
            await self._settle()
        await self._spool.write(self._remove)

    async def _hand_over(self) -> None:
        await self._settle()
        batch, self._batch, self._batched = self._batch, [], 0
        if batch:
            if self._written // SPACE_BYTES != self.size // SPACE_BYTES:  # the length may not have been announced
                self._spool.check_space()
            self._writing = asyncio.create_task(self._spool.write(lambda: self._write(batch)))

    async def _settle(self) -> None:
        if self._writing is not None:
            await asyncio.wait({self._writing})  # a request that is cancelled here leaves the thread its file
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, batch: list[bytes | bytearray | memoryview]) -> None:
        assert self._handle is not None
        for piece in batch:
            self._sha256.update(piece)
        try:
            while batch:
                sent = os.writev(self._handle, batch)
                self._written += sent
                while batch and sent >= len(batch[0]):
                    sent -= len(batch.pop(0))
                if sent:
                    batch[0] = memoryview(batch[0])[sent:]
        except OSError as error:
            raise _unwritable() from error
        if self._spool.moves and self._written - self._flushed >= FLUSH_BYTES:
            # it must be on the disk before it is stored: the disk begins now, and not when all is there
            os.posix_fadvise(self._handle, self._flushed, self._written - self._flushed, os.POSIX_FADV_DONTNEED)
            self._flushed = self._written

    def _remove(self) -> None:
        if self._handle is not None:
            self.path.unlink(missing_ok=True)  # before the lock goes
            os.close(self._handle)
            self._handle = None


def _unwritable() -> Refused:
    return Refused("storage_full", "the upload could not be written to this server's disk")
