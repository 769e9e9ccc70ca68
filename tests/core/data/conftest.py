"""Archives, good and bad, made as small as they can be."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.data.datasets import Dataset, load_dataset
from core.job import DatasetInput, DatasetOptions, Preprocess, Room, Splits

Files = Mapping[str, bytes]


def encode(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def png() -> Callable[..., bytes]:
    """png(seed, size=(h, w), channels=3): a PNG of random pixels."""

    def make(seed: int, size: tuple[int, int] = (6, 5), channels: int = 3) -> bytes:
        shape = size if channels == 1 else (*size, channels)
        return encode(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))

    return make


@pytest.fixture
def class_files(png: Callable[..., bytes]) -> Callable[..., dict[str, bytes]]:
    """class_files("train/", cat=4, dog=3, seed=0): names and PNGs of class folders."""

    def make(prefix: str = "", *, seed: int = 0, **counts: int) -> dict[str, bytes]:
        names = [f"{prefix}{name}/{number}.png" for name, count in counts.items() for number in range(count)]
        return {name: png(1000 * seed + number) for number, name in enumerate(names)}

    return make


@pytest.fixture
def make_zip(tmp_path: Path) -> Callable[[Files], Path]:
    def make(files: Files) -> Path:
        path = tmp_path / "images.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path

    return make


@pytest.fixture
def make_npz(tmp_path: Path) -> Callable[..., Path]:
    def make(**arrays: Any) -> Path:
        path = tmp_path / "arrays.npz"
        np.savez_compressed(path, **arrays)
        return path

    return make


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    """load(path, format, splits={…}, room=Room(…), **preprocess)"""

    def make(
        path: Path | None,
        kind: str,
        *,
        splits: Mapping[str, Any] | None = None,
        room: Room | None = None,
        **preprocess: Any,
    ) -> Dataset:
        options = DatasetOptions(preprocess=Preprocess(**preprocess), splits=Splits(**(splits or {})))
        return load_dataset(
            DatasetInput(path=path, sha256=None, format=kind, options=options), room, tmp_path / "images"
        )

    return make
