"""A zip of class folders, or of IDX files: its names say which."""

from __future__ import annotations

from pathlib import Path

from core.data.archive import Limits, open_archive
from core.data.arrays import MAX_BYTES
from core.data.idx import holds_idx, read_idx
from core.data.image_folder import read_image_folder
from core.data.shelf import Shelf
from core.data.source import Source
from core.job import Preprocess

LIMITS = Limits(member_bytes=MAX_BYTES, total_bytes=2 * MAX_BYTES)
"""For a look at the names: each reader has its own."""


def read_zip(path: Path | None, preprocess: Preprocess, shelf: Shelf | None = None) -> Source:
    """The images as a source, in `shelf`. Raises as `read_image_folder` and `read_idx` do."""
    if path is not None:
        with open_archive(path, LIMITS) as (_, members):
            is_idx = holds_idx(member.filename for member in members)
        if is_idx:
            return read_idx(path, preprocess, shelf)
    return read_image_folder(path, preprocess, shelf)
