"""Zip archives of strangers: every member is checked before a byte of it is unpacked, and nothing is written to disk.

Threats (see also CVE-2007-4559, CVE-2026-27905): names that climb out, links, encrypted members, bombs by ratio, by
number of members, by overlapping members, by a central directory that is larger than memory.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from core.data.source import pointer
from core.errors import DatasetTooLarge, DatasetUnreadable, Fault

GIB = 1 << 30
MIB = 1 << 20
MAX_FAULTS = 20


@dataclass(frozen=True)
class Limits:
    """Caps on an archive. The ratio (unpacked over packed) counts only past `ratio_floor_bytes`: small flat images and
    constant arrays pack very well. `members_hint` ends the sentence that refuses an archive of too many members."""

    members: int = 5_000_000
    member_bytes: int = 256 * MIB
    total_bytes: int = 64 * GIB
    ratio: float = 200.0
    ratio_floor_bytes: int = 16 * MIB
    members_hint: str = ""


_END = struct.Struct("<4s4H2LH")  # end of central directory
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_DIRECTORY_BYTES_PER_MEMBER = 1024  # 46 and the name; names of real files stay far below
_opening = threading.Lock()  # zipfile counts the members that are open, but not atomically; its reads have a lock
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@contextmanager
def open_archive(path: Path, limits: Limits) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """The archive and its members, folders included, all of them checked.

    Raises `DatasetUnreadable` (no zip, truncated, unsafe members) or `DatasetTooLarge` (past a cap), with the faults.
    """
    try:
        _check_directory(path, limits)
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, struct.error, EOFError, ValueError, NotImplementedError, UnicodeError):
        fault = Fault("/file", "no zip archive, or a truncated one", "a complete zip file")
        raise DatasetUnreadable("the file is not a readable zip archive", faults=[fault]) from None
    with archive:
        members = archive.infolist()
        _check_members(members, path.stat().st_size, limits)
        yield archive, members


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The member's bytes, of the size that was checked. Several threads may do this with one archive: they unpack at
    the same time. Raises `DatasetUnreadable` where they do not unpack to that size."""
    try:
        with _opening:
            stream = archive.open(member)
        try:
            return read_exactly(stream, member.file_size)
        finally:
            with _opening:
                stream.close()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        fault = Fault(pointer("file", member.filename), f"does not unpack: {error}", "an undamaged archive")
        raise DatasetUnreadable("a member of the archive is damaged", faults=[fault]) from None


def read_exactly(stream: IO[bytes], size: int) -> bytes:
    """`size` bytes and the end of the stream after them. Raises `EOFError` or `ValueError`."""
    data = stream.read(size)
    if len(data) != size:
        raise EOFError(f"{len(data)} of {size} bytes")
    if stream.read(1):
        raise ValueError(f"more than the {size} bytes declared")
    return data


def _check_directory(path: Path, limits: Limits) -> None:
    """Refuse a central directory past the caps before `zipfile` reads all of it into memory."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        tail_start = max(0, size - _END.size - 0xFFFF)
        file.seek(tail_start)
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0:
            raise zipfile.BadZipFile
        _, _, _, _, members, directory_bytes, _, _ = _END.unpack_from(tail, at)
        locator = tail_start + at - _END64_LOCATOR.size
        if locator >= 0:
            file.seek(locator)
            signature, _, end64, _ = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
            if signature == b"PK\x06\x07":
                file.seek(end64)
                record = _END64.unpack(file.read(_END64.size))
                members, directory_bytes = record[7], record[8]
    if members > limits.members or directory_bytes > limits.members * _DIRECTORY_BYTES_PER_MEMBER:
        fault = Fault("/file", f"{members} members in a directory of {directory_bytes} bytes",
                      f"at most {limits.members} members{limits.members_hint}")  # fmt: skip
        raise DatasetTooLarge("the archive has too many members", faults=[fault])


def _check_members(members: list[zipfile.ZipInfo], packed: int, limits: Limits) -> None:
    unsafe: list[Fault] = []
    large: list[Fault] = []
    seen: set[str] = set()
    for member in members:
        name = member.orig_filename
        where = pointer("file", _CONTROL.sub("?", name))
        problem = _unsafe(member)
        if name in seen:
            problem = ("named twice", "each name once")
        seen.add(name)
        if problem is not None:
            unsafe.append(Fault(where, *problem))
        if member.file_size > limits.member_bytes:
            large.append(Fault(where, f"{member.file_size} bytes unpacked", f"at most {limits.member_bytes} bytes"))
        elif member.file_size > max(limits.ratio_floor_bytes, limits.ratio * member.compress_size):
            message = f"unpacks from {member.compress_size} to {member.file_size} bytes"
            large.append(Fault(where, message, f"at most {limits.ratio:g} times its packed size"))
    total = sum(member.file_size for member in members)
    if len(members) > limits.members:
        large.append(Fault("/file", f"{len(members)} members", f"at most {limits.members}{limits.members_hint}"))
    if total > limits.total_bytes:
        large.append(Fault("/file", f"{total} bytes unpacked", f"at most {limits.total_bytes} bytes"))
    elif total > max(limits.ratio_floor_bytes, limits.ratio * packed):
        # overlapping members share packed bytes: each is within the ratio, the archive is not
        expected = f"at most {limits.ratio:g} times its packed size"
        large.append(Fault("/file", f"unpacks from {packed} to {total} bytes", expected))
    if unsafe:
        raise DatasetUnreadable("the archive has members that are not taken", faults=first_faults(unsafe + large))
    if large:
        raise DatasetTooLarge("the archive unpacks to too much", faults=first_faults(large))


def _unsafe(member: zipfile.ZipInfo) -> tuple[str, str] | None:
    """What is wrong with a member and what would be right, or None."""
    # the name as it is in the archive: ZipInfo.filename is already cut at a NUL
    name = member.orig_filename
    parts = name.rstrip("/").split("/")
    if _CONTROL.search(name):
        return "control characters in the name", "a printable name"
    if "\\" in name or re.match(r"^([/~]|[A-Za-z]:)", name) or not all(parts) or {".", ".."} & set(parts):
        return "not a plain relative name", "names like train/cat/1.png, without .., drives or backslashes"
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or a special file", "files and folders only"
    if member.flag_bits & 0x1:
        return "encrypted", "no password"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {member.compress_type}", "stored or deflated"
    return None


def first_faults(faults: list[Fault]) -> list[Fault]:
    """The first faults, and one that counts the rest."""
    if len(faults) <= MAX_FAULTS:
        return faults
    return [*faults[:MAX_FAULTS], Fault("/file", f"{len(faults) - MAX_FAULTS} more of the same kinds")]
