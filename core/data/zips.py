"""A zip of class folders, of IDX files or of Parquet files: its names say which."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from core.data.archive import Limits, open_archive
from core.data.arrays import MAX_BYTES
from core.data.folders import SUFFIXES
from core.data.idx import holds_idx, read_idx
from core.data.image_folder import read_image_folder
from core.data.parquet import read_parquet
from core.data.parquet_files import is_parquet
from core.data.shelf import Shelf
from core.data.source import Source
from core.job import Preprocess

LIMITS = Limits(member_bytes=MAX_BYTES, total_bytes=2 * MAX_BYTES)
"""For a look at the names: each reader has its own."""


def read_zip(path: Path | None, preprocess: Preprocess, shelf: Shelf | None = None) -> Source:
    """The images as a source, in `shelf`. Raises as `read_image_folder`, `read_idx` and `read_parquet` do."""
    if path is not None:
        with open_archive(path, LIMITS) as (_, members):
            names = [member.filename for member in members]
        if holds_idx(names):
            return read_idx(path, preprocess, shelf)
        if is_parquet(names) and not any(PurePosixPath(name).suffix.lower() in SUFFIXES for name in names):
            return read_parquet(path, preprocess, shelf)
    return read_image_folder(path, preprocess, shelf)
