"""Is a file a PNG within bounds? Told by its chunks alone: nothing that a child left is decoded here.

Format: ISO/IEC 15948. Only what a contact sheet needs is taken: IHDR, IDAT and IEND, 8 bits, grey or RGB.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

MAX_BYTES = 16 * 2**20
MAX_SIDE = 4096
"""Pixels. A sheet of the largest cells is about 1200 by 2100."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2


class NotPng(ValueError):
    """What is wrong, as the end of a sentence."""


def check_png(path: Path) -> tuple[int, int]:
    """Width and height of the PNG at `path`. Raises `NotPng`."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise NotPng(f"is larger than {MAX_BYTES} bytes")
    with path.open("rb") as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            raise NotPng("is no PNG")
        header = _header(file)
        kinds = [*_chunks(file, size)]
    if kinds[:1] != [b"IDAT"] or kinds[-1] != b"IEND" or set(kinds[:-1]) != {b"IDAT"}:
        raise NotPng("is not a PNG of pixels alone")
    return header


def _header(file: IO[bytes]) -> tuple[int, int]:
    """Width and height, from the chunk that comes first."""
    chunk = file.read(25)  # length, IHDR, its 13 bytes, CRC
    if len(chunk) < 25 or chunk[:8] != b"\x00\x00\x00\rIHDR" or chunk[21:] != zlib.crc32(chunk[4:21]).to_bytes(4):
        raise NotPng("does not begin with a PNG's header")
    width, height, depth, colour, compression, filters, interlace = struct.unpack(">IIBBBBB", chunk[8:21])
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise NotPng(f"is {width}×{height} pixels; at most {MAX_SIDE}×{MAX_SIDE} are taken")
    if depth != 8 or colour not in (GREY, RGB) or (compression, filters, interlace) != (0, 0, 0):
        raise NotPng("is not of 8 bits, grey or RGB")
    return width, height


def _chunks(file: IO[bytes], size: int) -> Iterator[bytes]:
    """The kinds of the chunks that follow, up to the end of the file."""
    while (here := file.tell()) < size:
        head = file.read(8)
        length = int.from_bytes(head[:4])
        if len(head) < 8 or here + 12 + length > size:
            raise NotPng("is cut short")
        file.seek(length + 4, 1)
        yield head[4:]
