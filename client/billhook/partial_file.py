"""A download in the making: a temporary file beside its target, which goes on where a broken connection left it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from billhook.errors import ChecksumMismatch, InputInvalid
from billhook.results import Download

_STRONG_SHA256 = re.compile(r'"([0-9a-f]{64})"')


class PartialFile:
    """Implements `steps.Sink`. Use `open`, then `finish` or `discard`."""

    def __init__(self, target: Path, advance: Callable[[int, int | None], None]) -> None:
        """`advance` is called with the bytes held and the bytes in all (None = unknown). It may raise to stop."""
        self._target = target
        self._advance = advance
        self._path = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
        try:
            self._file = self._path.open("xb")
        except OSError as error:
            raise InputInvalid(f"{target} cannot be written: {error.strerror}") from None
        self._hash = hashlib.sha256()
        self._etag: str | None = None
        self._total: int | None = None
        self._offset = 0

    @property
    def offset(self) -> int:
        return self._offset

    def headers(self) -> dict[str, str]:
        """Ask for the rest only, and only of the same content."""
        plain = {"Accept-Encoding": "identity"}  # compressed bytes have another hash
        if self._offset and self._etag is not None:
            return {**plain, "Range": f"bytes={self._offset}-", "If-Range": self._etag}
        return plain

    def begin(self, status: int, headers: Mapping[str, str]) -> bool:
        if status == 206:
            start = re.match(r"bytes (\d+)-", headers.get("content-range", ""))
            if headers.get("etag") != self._etag or start is None or int(start[1]) != self._offset:
                raise ChecksumMismatch(f"{self._target.name} changed on the server while it was downloaded")
            return True
        if status == 200:
            self._file.seek(0)
            self._file.truncate()
            self._hash, self._offset = hashlib.sha256(), 0
            self._etag = headers.get("etag")
            length = headers.get("content-length", "")
            self._total = int(length) if length.isdigit() else None
            return True
        return False

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)
        self._offset += len(chunk)
        self._advance(self._offset, self._total)

    def finish(self) -> Download:
        """Move the file to its target, once its hash is the one in the strong ETag. Raises `ChecksumMismatch`."""
        promised = _STRONG_SHA256.fullmatch(self._etag or "")
        if promised is None:
            raise ChecksumMismatch(
                f"{self._target.name} cannot be verified: the answer has no sha256 ETag (does a proxy rewrite it?)"
            )
        found = self._hash.hexdigest()
        if found != promised[1]:
            raise ChecksumMismatch(
                f"{self._target.name} arrived damaged: its sha256 is {found}, the server promised {promised[1]}"
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.replace(self._target)
        return Download(self._target, found, self._offset)

    def discard(self) -> None:
        """Remove what is left of it; nothing after `finish`."""
        self._file.close()
        self._path.unlink(missing_ok=True)
