"""Files by their content: every artifact, model and dataset lies in the storage under its sha256.

obstore underneath: a local folder, S3, Google or Azure, chosen by the URL. Writes are atomic there; what comes back is
hashed again, so that a damaged object is an error and never an input. No transfer takes more memory than a few parts,
however large the object is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError

from store.errors import ArtifactCorrupt, ArtifactMissing, StorageUnavailable
from store.storages import PARTS_SECONDS, PROBE_SECONDS, folder_of, open_storage

CHUNK = 4 * 2**20  # of what is read: each piece is a request of its own, so that a slow reader holds no connection
PART_BYTES = 8 * 2**20  # of what is written to S3, where all parts but the last have at least 5 MiB
PARTS_AT_ONCE = 4
MAX_PARTS = 10_000
FRESH = timedelta(minutes=30)  # an object younger than this is not written again
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ArtifactStore:
    """The storage at `storage_url` (`file:///folder`, `s3://bucket/prefix`, …). Cheap to make; safe across threads."""

    def __init__(self, storage_url: str) -> None:
        self.folder = folder_of(storage_url)
        """Of a storage that lies on a disk of this machine; None otherwise."""
        self._objects: Any = open_storage(storage_url)
        self._in_parts: Any = open_storage(storage_url, seconds=PARTS_SECONDS)
        self._probe: Any = open_storage(storage_url, seconds=PROBE_SECONDS, retries=0)

    def put_file(self, path: Path) -> tuple[str, int]:
        """Store a file; returns its sha256 and size in bytes. Storing the same content again is harmless.

        Raises `StorageUnavailable`.
        """
        digest, size = hash_file(path)
        self.put_hashed(path, digest, size)
        return digest, size

    def put_hashed(self, path: Path, sha256: str, size: int) -> None:
        """`put_file` for a file whose hash was computed while it was written. Raises `StorageUnavailable`."""
        with _storage_errors(sha256):
            if not self._relied_on(sha256, size):
                self._put(path, sha256, size)

    def take_over(self, path: Path, sha256: str, size: int) -> None:
        """`put_hashed` for a file that nobody needs any more: on the disk of the storage it is moved, not copied.

        Raises `StorageUnavailable`; the file is then still where it was.
        """
        with _storage_errors(sha256):
            if not self._relied_on(sha256, size) and not self._move(path, sha256):
                self._put(path, sha256, size)

    def _relied_on(self, sha256: str, size: int) -> bool:
        """Whether the object is there already, and young: an old one that nothing names may be swept at any moment."""
        try:
            found = obstore.head(self._objects, _key(sha256))
        except (FileNotFoundError, PermissionDeniedError):  # S3 says the latter to whoever may not list the bucket
            return False
        return found["size"] == size and datetime.now(UTC) - found["last_modified"] < FRESH

    def _put(self, path: Path, sha256: str, size: int) -> None:
        """In parts, each with its checksum, where it is large; parts of what fails are removed again by obstore."""
        part = max(PART_BYTES, -(-size // MAX_PARTS))
        key = _key(sha256)
        objects = self._in_parts if size > part else self._objects
        obstore.put(objects, key, path, chunk_size=part, max_concurrency=PARTS_AT_ONCE)
        if self.folder is not None:
            _sync(self.folder / key)
            _sync_folders(self.folder / key)

    def _move(self, path: Path, sha256: str) -> bool:
        """Whether the file could be moved: it is then under its name for good, power cut or not."""
        if self.folder is None:
            return False
        target = self.folder / _key(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sync(path)  # its bytes before its name
        os.utime(path)  # its last byte may have come long ago, and an old object may be swept
        try:
            path.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return False
        _sync_folders(target)
        return True

    def get_file(self, sha256: str, path: Path) -> int:
        """Fetch an object into `path` (by a temporary file beside it) and return its size in bytes.

        Raises `ArtifactMissing`, `ArtifactCorrupt` if the content has another hash, `StorageUnavailable`.
        """
        digest, size = hashlib.sha256(), 0
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".fetch-")
        try:
            with os.fdopen(handle, "wb") as file, _storage_errors(sha256):
                total = obstore.head(self._objects, _key(sha256))["size"]
                while size < total:
                    end = min(size + CHUNK, total)
                    data = memoryview(obstore.get_range(self._objects, _key(sha256), start=size, end=end))
                    digest.update(data)
                    size += file.write(data)
            if digest.hexdigest() != sha256:
                raise _corrupt(sha256)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return size

    def read_bytes(self, sha256: str) -> bytes:
        """A whole small object, such as a report. Raises as `get_file`."""
        with _storage_errors(sha256):
            content = bytes(obstore.get(self._objects, _key(sha256)).bytes())
        if hashlib.sha256(content).hexdigest() != sha256:
            raise _corrupt(sha256)
        return content

    async def stream(self, sha256: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`, in chunks. Raises as `get_file`.

        A reader who takes the whole can check the hash: it is the name.
        """
        with _storage_errors(sha256):
            while start < end:
                until = min(start + CHUNK, end)
                data = bytes(await obstore.get_range_async(self._objects, _key(sha256), start=start, end=until))
                if len(data) != until - start:
                    raise _corrupt(sha256)
                yield data
                start = until

    def exists(self, sha256: str) -> bool:
        """Whether the object is there. Raises `StorageUnavailable`."""
        return self.written(sha256) is not None

    def written(self, sha256: str) -> datetime | None:
        """When the object was last written; None if it is not there. Raises `StorageUnavailable`."""
        try:
            with _storage_errors(sha256):
                return obstore.head(self._objects, _key(sha256))["last_modified"]
        except ArtifactMissing:
            return None

    def list_hashes(self) -> Iterator[tuple[str, datetime]]:
        """Every object's sha256 and when it was last written."""
        with _storage_errors(""):
            for batch in obstore.list(self._objects, prefix="sha256"):
                for item in batch:
                    name = item["path"].rpartition("/")[2]
                    if _SHA256.fullmatch(name):
                        yield name, item["last_modified"]

    def delete(self, sha256: str) -> None:
        """Remove an object; one that is gone already is no error. Raises `StorageUnavailable`."""
        try:
            with _storage_errors(sha256):
                obstore.delete(self._objects, _key(sha256))
        except ArtifactMissing:
            return

    def remove_partial(self, before: datetime) -> int:
        """Remove what processes that were killed while storing left in a local folder; returns how many files.

        obstore writes `<sha256>#<number>` and renames it. S3 keeps the parts of an upload until a lifecycle rule of the
        bucket removes them; obstore cannot list them (docs/storage.md).
        """
        removed = 0
        for path in () if self.folder is None else self.folder.glob("sha256/*/*#*"):
            with contextlib.suppress(FileNotFoundError):  # completed, or removed by another sweep
                if datetime.fromtimestamp(path.stat().st_mtime, UTC) < before:
                    path.unlink()
                    removed += 1
        return removed

    def ping(self) -> None:
        """Raises `StorageUnavailable` unless the storage can be written, within a few seconds."""
        with _storage_errors(""):
            obstore.put(self._probe, "ready", b"ready\n")


def hash_file(path: Path) -> tuple[str, int]:
    """The sha256 and size in bytes of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _sync(path: Path) -> None:
    """Have what was written to a file or folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folders(path: Path) -> None:
    """Have the name of a new object survive a power cut: a record may refer to it from now on."""
    for part in list(path.parents)[:3]:
        _sync(part)


def _key(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):  # never let anything else become a path
        raise ArtifactMissing("that is not the name of a stored object")
    return f"sha256/{sha256[:2]}/{sha256}"


def _corrupt(sha256: str) -> ArtifactCorrupt:
    return ArtifactCorrupt(f"the stored object {sha256[:12]}… is damaged: its content has another hash")


@contextmanager
def _storage_errors(sha256: str) -> Iterator[None]:
    """obstore's errors as ours; their messages hold paths and URLs, which go no further than the cause."""
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactMissing(f"the storage has no object {sha256[:12]}…") from error
    except (BaseError, OSError) as error:
        raise StorageUnavailable("the artifact storage cannot be reached or written") from error
