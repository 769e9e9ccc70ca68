"""What the worker takes as a PNG without decoding it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from worker import png
from worker.png import NotPng, check_png


def encoded(mode: str = "RGB", size: tuple[int, int] = (3, 2), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG", **options)
    return buffer.getvalue()


def header(width: int = 3, height: int = 2, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return png.SIGNATURE + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


REST = encoded()[33:]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_what_pillow_writes_is_taken(tmp_path: Path, mode: str) -> None:
    (tmp_path / "x").write_bytes(encoded(mode, (30, 20)))
    assert check_png(tmp_path / "x") == (30, 20)


def text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "<script>")
    return info


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no PNG"),
        (b"<svg/>" * 20, "no PNG"),
        (png.SIGNATURE, "begin with a PNG's header"),
        (header()[:-1] + b"x" + REST, "begin with a PNG's header"),
        (header(), "pixels alone"),
        (header(width=4097) + REST, "4097×2 pixels"),
        (header(height=0) + REST, "3×0 pixels"),
        (header(height=2**31) + REST, "pixels; at most"),
        (header(depth=16) + REST, "8 bits"),
        (header(colour=3) + REST, "8 bits"),
        (header(interlace=1) + REST, "8 bits"),
        (encoded("RGBA"), "8 bits"),
        (header() + REST[:-1], "cut short"),
        (header() + REST[:-20], "cut short"),
        (header() + REST[:-12], "pixels alone"),
        (header() + REST + b"more after the end", "cut short"),
        (header() + REST + REST[-12:], "pixels alone"),
        (encoded(pnginfo=text()), "pixels alone"),
    ],
)  # fmt: skip
def test_what_is_not_a_plain_png(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(NotPng, match=says):
        check_png(tmp_path / "x")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "MAX_BYTES", 10)
    (tmp_path / "x").write_bytes(encoded())
    with pytest.raises(NotPng, match="larger than 10 bytes"):
        check_png(tmp_path / "x")
