"""Files by their content: every artifact, model and dataset lies in the storage under its sha256.

obstore underneath: a local folder, S3, Google or Azure, chosen by the URL. Writes are atomic there; what comes back is
hashed again, so that a damaged object is an error and never an input.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from store.errors import ArtifactCorrupt, ArtifactMissing, StorageUnavailable

CHUNK = 4 * 2**20
FRESH = timedelta(minutes=30)  # an object younger than this is not written again
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ArtifactStore:
    """The storage at `storage_url` (`file:///folder`, `s3://bucket/prefix`, …). Cheap to make; safe across threads."""

    def __init__(self, storage_url: str) -> None:
        parts = urlsplit(storage_url)
        self._objects: Any
        self._folder: Path | None = None
        if parts.scheme == "file":
            self._folder = Path(parts.path)
            self._objects = LocalStore(self._folder, mkdir=True)
        else:
            self._objects = from_url(storage_url)

    def put_file(self, path: Path) -> tuple[str, int]:
        """Store a file; returns its sha256 and size in bytes. Storing the same content again is harmless.

        Raises `StorageUnavailable`.
        """
        digest, size = hash_file(path)
        self.put_hashed(path, digest, size)
        return digest, size

    def put_hashed(self, path: Path, sha256: str, size: int) -> None:
        """`put_file` for a file whose hash was computed while it was written. Raises `StorageUnavailable`."""
        key = _key(sha256)
        with _storage_errors(sha256):
            try:
                found = obstore.head(self._objects, key)
            except (FileNotFoundError, BaseError):
                found = None
            # an old object that nothing refers to may be swept away at any moment: only a young one is relied on
            young = found is not None and datetime.now(UTC) - found["last_modified"] < FRESH
            if found is None or found["size"] != size or not young:
                obstore.put(self._objects, key, path)
                if self._folder is not None:
                    _sync(self._folder / key)

    def get_file(self, sha256: str, path: Path) -> int:
        """Fetch an object into `path` (by a temporary file beside it) and return its size in bytes.

        Raises `ArtifactMissing`, `ArtifactCorrupt` if the content has another hash, `StorageUnavailable`.
        """
        digest, size = hashlib.sha256(), 0
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".fetch-")
        try:
            with os.fdopen(handle, "wb") as file, _storage_errors(sha256):
                for chunk in obstore.get(self._objects, _key(sha256)).stream(CHUNK):
                    data = memoryview(chunk)
                    digest.update(data)
                    size += file.write(data)
            if digest.hexdigest() != sha256:
                raise ArtifactCorrupt(f"the stored object {sha256[:12]}… is damaged: its content has another hash")
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
            raise ArtifactCorrupt(f"the stored object {sha256[:12]}… is damaged: its content has another hash")
        return content

    async def stream(self, sha256: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`, in chunks. Raises as `get_file`.

        A reader who takes the whole can check the hash: it is the name.
        """
        with _storage_errors(sha256):
            if start >= end:
                return
            found = await obstore.get_async(self._objects, _key(sha256), options={"range": (start, end)})
            async for chunk in found.stream(CHUNK):
                yield bytes(chunk)

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

        obstore writes `<sha256>#<number>` and renames it; object storages drop what was not completed themselves.
        """
        removed = 0
        for path in () if self._folder is None else self._folder.glob("sha256/*/*#*"):
            with contextlib.suppress(FileNotFoundError):  # completed, or removed by another sweep
                if datetime.fromtimestamp(path.stat().st_mtime, UTC) < before:
                    path.unlink()
                    removed += 1
        return removed

    def ping(self) -> None:
        """Raises `StorageUnavailable` unless the storage can be written."""
        with _storage_errors(""):
            obstore.put(self._objects, "ready", b"ready\n")


def hash_file(path: Path) -> tuple[str, int]:
    """The sha256 and size in bytes of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _sync(path: Path) -> None:
    """Have a new file, and its name, survive a power cut: a record may refer to it from now on."""
    for part in (path, path.parent, path.parent.parent):
        handle = os.open(part, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _key(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):  # never let anything else become a path
        raise ArtifactMissing("that is not the name of a stored object")
    return f"sha256/{sha256[:2]}/{sha256}"


@contextmanager
def _storage_errors(sha256: str) -> Iterator[None]:
    """obstore's errors as ours; their messages hold paths and URLs, which go no further than the cause."""
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactMissing(f"the storage has no object {sha256[:12]}…") from error
    except (BaseError, OSError) as error:
        raise StorageUnavailable("the artifact storage cannot be reached or written") from error
