"""Zips of IDX files, as MNIST and Fashion-MNIST are handed out, and what is wrong with others."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.data.datasets import Dataset
from core.errors import DatasetRefused, DatasetTooLarge, DatasetUnreadable, DatasetUnsuitable

Load = Callable[..., Dataset]
MakeZip = Callable[[Mapping[str, bytes]], Path]
GENERATOR = np.random.default_rng(0)
X = GENERATOR.integers(0, 256, (30, 6, 5), dtype=np.uint8)
Y = (np.arange(30) % 3).astype(np.uint8)
KINDS = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array: Any) -> bytes:
    array = np.asarray(array)
    header = struct.pack(f">HBB{array.ndim}I", 0, KINDS[array.dtype.str[1:]], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def mnist(**changes: bytes | None) -> dict[str, bytes]:
    """The four files, with some of them changed or (None) left out; `_` stands for `-` in names."""
    files = {
        "train-images-idx3-ubyte": idx(X[:20]), "train-labels-idx1-ubyte": idx(Y[:20]),
        "t10k-images-idx3-ubyte": idx(X[20:]), "t10k-labels-idx1-ubyte": idx(Y[20:]),
    }  # fmt: skip
    given = {**files, **{name.replace("_", "-"): data for name, data in changes.items()}}
    return {name: data for name, data in given.items() if data is not None}


def test_what_macos_puts_into_zips_is_left_alone(load: Load, make_zip: MakeZip) -> None:
    litter = {f"__MACOSX/._{name}": b"\0\5\x16\7 and so on" for name in mnist()} | {".DS_Store": b"x"}
    data = load(make_zip(mnist() | litter), "image_folder")
    assert len(data.splits["test"]) == 10
    assert data.warnings == load(make_zip(mnist()), "image_folder").warnings


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("folder", ["", "data/fashion/"])
def test_four_files_are_a_dataset_with_a_test_split(load: Load, make_zip: MakeZip, packed: bool, folder: str) -> None:
    files = {
        f"{folder}{name}{'.gz' if packed else ''}": gzip.compress(data) if packed else data
        for name, data in mnist().items()
    }
    data = load(make_zip(files), "image_folder")
    assert data.image_shape == (1, 6, 5)
    assert data.splits["test"].given
    assert torch.equal(data.splits["test"].x[:, 0], torch.from_numpy(X[20:]))
    assert data.splits["test"].y.tolist() == Y[20:].tolist()
    assert sum(len(data.splits[name]) for name in ("train", "validation")) == 20
    assert data.classes == ("0", "1", "2")
    assert data.warnings == ()
    assert data.summary()["format"] == "idx"


@pytest.mark.parametrize(
    "names",
    [
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
        ("emnist-digits-train-images-idx3-ubyte", "emnist-digits-train-labels-idx1-ubyte"),
    ],
)
def test_other_ways_to_name_them(load: Load, make_zip: MakeZip, names: tuple[str, str]) -> None:
    data = load(make_zip({names[0]: idx(X), names[1]: idx(Y)}), "image_folder")
    assert sum(map(len, data.splits.values())) == 30


@pytest.mark.parametrize("kind", ["i2", "i4", "f4", "f8"])
def test_numbers_of_other_types_are_read_highest_byte_first(load: Load, make_zip: MakeZip, kind: str) -> None:
    files = {"train-images-idx3-x": idx(X.astype(kind)), "train-labels-idx1-x": idx(Y.astype("i4"))}
    data = load(make_zip(files), "image_folder")
    found = torch.cat([split.x for split in data.splits.values()])
    assert found.dtype == torch.uint8
    assert sorted(found.flatten().tolist()) == sorted(X.flatten().tolist())


def test_colour_images_and_what_else_lies_in_the_zip(load: Load, make_zip: MakeZip) -> None:
    images = GENERATOR.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
    files = {"train-images-idx4-ubyte": idx(images), "train-labels-idx1-ubyte": idx(Y), "README.md": b"hello"}
    data = load(make_zip(files), "image_folder")
    assert data.image_shape == (3, 6, 5)
    assert any("README.md" in warning for warning in data.warnings)


HUGE = struct.pack(">HBB3I", 0, 8, 3, 60_000, 4_000, 4_000)
CUT = idx(X[:20])
BAD: dict[str, tuple[dict[str, bytes], type[DatasetRefused], str, str]] = {
    "no labels": (mnist(train_labels_idx1_ubyte=None), DatasetUnsuitable, "/file/train-labels-idx1-ubyte",
                  "is missing"),
    "twice": ({**mnist(), "train-images.idx3-ubyte": idx(X[:20])}, DatasetUnreadable, "/file/train-images.idx3-ubyte",
              "of the same split"),
    "another number of labels": (mnist(train_labels_idx1_ubyte=idx(Y[:19])), DatasetUnsuitable,
                                 "/file/train-labels-idx1-ubyte", "train-images-idx3-ubyte is 20×6×5"),
    "an unknown label": (mnist(t10k_labels_idx1_ubyte=idx(Y[20:] + 7)), DatasetUnsuitable,
                         "/file/t10k-labels-idx1-ubyte", "are not in train-labels-idx1-ubyte"),
    "no magic": (mnist(train_images_idx3_ubyte=b"\x89PNG" + bytes(40)), DatasetUnreadable,
                 "/file/train-images-idx3-ubyte", "does not begin as an IDX file does"),
    "empty": (mnist(train_images_idx3_ubyte=b""), DatasetUnreadable, "/file/train-images-idx3-ubyte", "no IDX file"),
    "too many dimensions": (mnist(train_images_idx3_ubyte=struct.pack(">HBB", 0, 8, 9) + bytes(99)), DatasetUnreadable,
                            "/file/train-images-idx3-ubyte", "9 dimensions"),
    "truncated": (mnist(train_images_idx3_ubyte=CUT[:-5]), DatasetUnreadable, "/file/train-images-idx3-ubyte",
                  "the header says 20×6×5, 600 bytes; there are 595"),
    "too long": (mnist(train_images_idx3_ubyte=CUT + b"x"), DatasetUnreadable, "/file/train-images-idx3-ubyte",
                 "there are 601"),
    "truncated, packed": ({"train-images-idx3-ubyte.gz": gzip.compress(CUT[:-5])}, DatasetUnreadable,
                          "/file/train-images-idx3-ubyte.gz", "it ends before"),
    "too long, packed": ({"train-images-idx3-ubyte.gz": gzip.compress(CUT + b"x")}, DatasetUnreadable,
                         "/file/train-images-idx3-ubyte.gz", "more than the 600 bytes"),
    "no gzip": ({"train-images-idx3-ubyte.gz": CUT}, DatasetUnreadable, "/file/train-images-idx3-ubyte.gz", "damaged"),
    "a bomb, packed": ({"train-images-idx3-ubyte.gz": gzip.compress(HUGE + bytes(1 << 20))}, DatasetTooLarge,
                       "/file/train-images-idx3-ubyte.gz", "960000000000 bytes unpacked"),
    "another shape": (mnist(t10k_images_idx3_ubyte=idx(X[20:, :4])), DatasetUnsuitable, "/file", "different shapes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_ones_are_refused(load: Load, make_zip: MakeZip, case: str) -> None:
    files, error, pointer, words = BAD[case]
    with pytest.raises(error) as caught:
        load(make_zip(files), "image_folder")
    fault = next(fault for fault in caught.value.faults if fault.pointer == pointer)
    assert words in fault.message
