"""A dataset that is streamed is the same, bit for bit, as when it is held in memory."""

from __future__ import annotations

import gzip
import io
import struct
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.comparison import sample_inputs
from core.data import rows as rows_module
from core.data.datasets import Dataset, in_memory, load_dataset
from core.data.rows import Held, Stored
from core.data.source import Images, Source
from core.data.threads import in_order
from core.errors import DatasetTooLarge, DatasetUnreadable
from core.job import DatasetInput, DatasetOptions, Preprocess, Room, Splits
from core.training_settings import Augmentation

Load = Callable[..., Dataset]
Npz = Callable[..., Path]
MakeZip = Callable[[dict[str, bytes]], Path]
NO_MEMORY = Room(memory_bytes=0)
AUGMENT = Augmentation(crop=True, flip=True, rotate=10, erase=0.2, noise=0.05)


def is_streamed(data: Dataset) -> bool:
    return all(isinstance(split.rows, Stored) for split in data.splits.values())


def assert_same(held: Dataset, streamed: Dataset) -> None:
    """Summaries, and batches of every kind."""
    assert all(isinstance(split.rows, Held) for split in held.splits.values())
    assert is_streamed(streamed)
    assert streamed.summary() == held.summary()
    for name in held.splits:
        for options in (
            {},
            {"shuffle": True, "seed": 3, "epoch": 2},
            {"shuffle": True, "seed": 3, "epoch": 2, "start": 1, "augment": AUGMENT},
        ):
            ours = list(streamed.batches(name, 4, **options))
            theirs = list(held.batches(name, 4, **options))
            assert len(ours) == len(theirs)
            for (x, y), (expected_x, expected_y) in zip(ours, theirs, strict=True):
                assert torch.equal(x, expected_x)
                assert torch.equal(y, expected_y)
        assert torch.equal(sample_inputs(streamed, name, 40), sample_inputs(held, name, 40))


ARRAYS = {
    "uint8": lambda x: x,
    "int64": lambda x: x.astype(np.int64),
    "big endian": lambda x: x.astype(">u2"),
    "float32": lambda x: x.astype(np.float32),
    "float16 in 0-1": lambda x: (x / 255).astype(np.float16),
    "float64 in 0-1": lambda x: x / 255,
    "inexact": lambda x: (x + 0.25).clip(0, 255).astype(np.float32),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(ARRAYS)),
    layout=st.sampled_from(["NHW", "NHWC", "NCHW"]),
    channels=st.sampled_from([None, "L", "RGB", "BGR"]),
    size=st.sampled_from([None, (5, 7), (9, 8)]),
    own_test=st.booleans(),
    classes=st.sampled_from([None, ("0", "2")]),
    seed=st.integers(0, 3),
)
def test_arrays(tmp_path: Path, kind: str, layout: str, channels: Any, size: Any, own_test: bool, classes: Any,
                seed: int) -> None:  # fmt: skip
    shape = {"NHW": (8, 6), "NHWC": (8, 6, 3), "NCHW": (3, 8, 6)}[layout]
    x = ARRAYS[kind](np.random.default_rng(seed).integers(0, 256, (60, *shape), dtype=np.uint8))
    y = np.arange(60) % 3
    path = tmp_path / "arrays.npz"
    parts = {"x_train": x[:45], "y_train": y[:45], "x_test": x[45:], "y_test": y[45:]}
    np.savez_compressed(path, **(parts if own_test else {"x_train": x, "y_train": y}))
    options = DatasetOptions(
        preprocess=Preprocess(channels=channels, size=size, mean=(0.4,), std=(0.2,)),
        splits=Splits(seed=seed, classes=classes),
    )
    given = DatasetInput(path=path, sha256=None, format="npz", options=options)
    assert_same(load_dataset(given), load_dataset(given, NO_MEMORY, tmp_path / "images"))
    assert list((tmp_path / "images").iterdir()) == []  # gone with the dataset


def test_idx(load: Load, make_zip: MakeZip) -> None:
    def idx(array: np.ndarray, kind: int) -> bytes:
        return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()

    x = np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
    y = (np.arange(40) % 2).astype(np.uint8)
    for images in (
        {"train-images-idx3-ubyte": idx(x, 8)},
        {"train-images-idx3-ubyte.gz": gzip.compress(idx(x, 8))},
        {"train-images-idx3-int": idx(x.astype(">i4"), 0x0C)},
        {"train-images-idx3-float.gz": gzip.compress(idx((x / 255).astype(">f4"), 0x0D))},
    ):
        path = make_zip({**images, "train-labels-idx1-ubyte": idx(y, 8)})
        assert_same(load(path, "image_folder"), load(path, "image_folder", room=NO_MEMORY))


def picture(seed: int, size: tuple[int, int], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(make_zip: MakeZip) -> Path:
    """250 images of several sizes and formats, one whose pixels and one whose header is damaged."""
    files = {
        f"{name}/{number:03}.{suffix}": picture(1000 * start + number, (9 + number % 5, 12), kind)
        for start, (name, suffix, kind) in enumerate([("cat", "png", "PNG"), ("dog", "jpg", "JPEG")])
        for number in range(125)
    }
    files["cat/077.png"] = files["cat/077.png"][:-30]
    files["dog/003.jpg"] = b"no image"
    return make_zip(files)


@pytest.mark.parametrize("channels", [None, "L", "BGR"])
def test_image_folders(load: Load, folder: Path, channels: Any) -> None:
    held = load(folder, "image_folder", size=(8, 8), channels=channels)
    assert_same(held, load(folder, "image_folder", size=(8, 8), channels=channels, room=NO_MEMORY))
    assert [name for name, _ in held.details["unreadable"]["files"]] == ["dog/003.jpg", "cat/077.png"]


@pytest.mark.parametrize("room", [None, NO_MEMORY])
def test_threads_change_nothing(load: Load, folder: Path, room: Room | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in (1, 4):
        monkeypatch.setattr("core.data.image_folder.torch_threads", lambda threads=threads: threads)
        found.append(load(folder, "image_folder", size=(8, 8), room=room).summary())
    assert found[0] == found[1]


def test_the_budget_is_of_all_splits_together(load: Load, make_npz: Npz) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
    path = make_npz(x_train=x[:30], y_train=np.arange(30) % 2, x_test=x[30:], y_test=np.arange(10) % 2)
    assert not is_streamed(load(path, "npz", room=Room(memory_bytes=1200)))
    assert is_streamed(load(path, "npz", room=Room(memory_bytes=1199)))


def test_floats_that_are_small_as_uint8_are_held_in_memory(load: Load, make_npz: Npz, tmp_path: Path) -> None:
    """They are unpacked to disk, as float64 they are too large, and then need no file any more."""
    x = np.random.default_rng(0).integers(0, 256, (40, 6, 5)) / 255
    path = make_npz(x_train=x, y_train=np.arange(40) % 2)
    data = load(path, "npz", room=Room(memory_bytes=1200))
    assert not is_streamed(data)
    assert data.summary() == load(path, "npz").summary()
    assert list((tmp_path / "images").iterdir()) == []


def test_disk_that_does_not_do_is_told_with_figures(load: Load, make_npz: Npz) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
    path = make_npz(x_train=x.astype(np.float32), y_train=np.arange(40) % 2)
    for disk, needed in ((4799, "takes 4800 bytes"), (4800 + 1199, "take 1200 bytes")):
        with pytest.raises(DatasetTooLarge) as caught:
            load(path, "npz", room=Room(memory_bytes=10, disk_bytes=disk))
        (fault,) = caught.value.faults
        assert needed in fault.message
        assert "BILLHOOK_DISK_LIMIT_BYTES" in fault.expected
    assert is_streamed(load(path, "npz", room=Room(memory_bytes=10, disk_bytes=6000)))
    as_they_are = make_npz(x_train=x, y_train=np.arange(40) % 2)
    assert is_streamed(load(as_they_are, "npz", room=Room(memory_bytes=10, disk_bytes=1200)))


def test_fortran_order_is_refused_where_it_would_have_to_be_streamed(load: Load, make_npz: Npz) -> None:
    x = np.asfortranarray(np.zeros((40, 6, 5), dtype=np.uint8))
    with pytest.raises(DatasetUnreadable) as caught:
        load(make_npz(x_train=x, y_train=np.arange(40) % 2), "npz", room=NO_MEMORY)
    assert "Fortran order" in caught.value.faults[0].message


def test_a_damaged_archive_is_told_alike(load: Load, make_npz: Npz, tmp_path: Path) -> None:
    path = make_npz(x_train=np.random.default_rng(0).integers(0, 256, (40, 60, 50), dtype=np.uint8),
                    y_train=np.arange(40) % 2)  # fmt: skip
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("x_train.npy").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 5000 : offset + 5100] = bytes(100)
    path.write_bytes(content)
    found = []
    for room in (None, NO_MEMORY):
        with pytest.raises(DatasetUnreadable) as caught:
            load(path, "npz", room=room)
        found.append([(fault.pointer, fault.message) for fault in caught.value.faults])
    assert found[0] == found[1] == [("/file/x_train.npy", "damaged, or no .npy array")]
    assert list((tmp_path / "images").iterdir()) == []


def test_a_consumer_that_goes_away_leaves_no_thread(load: Load, make_npz: Npz) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
    data = load(make_npz(x_train=x, y_train=np.arange(40) % 2), "npz", room=NO_MEMORY)
    for _ in data.batches("train", 4, shuffle=True):
        break
    next(data.batches("train", 4))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("billhook-data")]


def test_a_file_that_has_shrunk_is_an_error_and_no_hang(load: Load, make_npz: Npz, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
    data = load(make_npz(x_train=x, y_train=np.arange(40) % 2), "npz", room=NO_MEMORY)
    (file,) = (tmp_path / "images").iterdir()
    with file.open("r+b") as opened:
        opened.truncate(100)
    with pytest.raises(OSError, match="shorter than it was"):
        list(data.batches("train", 4))


def test_only_some_batches_are_read_ahead(load: Load, make_npz: Npz, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).integers(0, 256, (400, 6, 5), dtype=np.uint8)
    data = load(make_npz(x_train=x, y_train=np.arange(400) % 2), "npz", room=NO_MEMORY)
    read: list[int] = []
    take = Stored.take
    monkeypatch.setattr(Stored, "take", lambda self, samples: read.append(len(samples)) or take(self, samples))
    for number, _ in enumerate(data.batches("train", 4, shuffle=True), 1):
        assert number <= len(read) <= number + rows_module.READ_AHEAD_BATCHES
    monkeypatch.setattr(rows_module, "READ_AHEAD_BYTES", 4 * 30)
    read.clear()
    for number, _ in enumerate(data.batches("train", 4, shuffle=True), 1):
        assert number <= len(read) <= number + 1


def test_reading_has_no_more_threads_than_the_job(load: Load, make_npz: Npz, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(rows_module, "in_order", lambda *a, threads, **b: asked.append(threads) or in_order(
        *a, threads=threads, **b))  # fmt: skip
    x = np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
    data = load(make_npz(x_train=x, y_train=np.arange(40) % 2), "npz", room=NO_MEMORY)
    for threads in (1, 2, 64):
        monkeypatch.setattr(rows_module, "torch_threads", lambda threads=threads: threads)
        list(data.batches("train", 16))
    assert asked == [1, 2, rows_module.READ_THREADS]


def test_what_is_streamed_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """Loading, summary and an epoch, by what numpy and Python allocate; torch's batches are small by construction."""
    x = np.random.default_rng(0).integers(0, 256, (3_000, 3, 64, 64), dtype=np.uint8)  # 37 MB
    path = tmp_path / "large.npz"
    np.savez(path, x_train=x.astype(np.uint16), y_train=np.arange(3_000) % 2)
    size = x.nbytes
    del x
    given = DatasetInput(path=path, sha256=None, format="npz")
    tracemalloc.start()
    data = load_dataset(given, Room(memory_bytes=size // 4), tmp_path)
    data.summary()
    for _ in data.batches("train", 16, shuffle=True):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert is_streamed(data)
    assert peak < size


def test_a_reader_that_knows_no_shelf_is_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path | None, preprocess: Preprocess) -> Source:
        x = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1).clone()
        return Source({"train": Images(x, torch.arange(40) % 2)}, ("a", "b"))

    monkeypatch.setitem(load_dataset.__globals__["READERS"], "npz", in_memory(read))
    data = load_dataset(DatasetInput(path=None, sha256=None, format="npz"), NO_MEMORY, tmp_path)
    assert not is_streamed(data)
    assert data.summary()["images"] == 40


def test_images_on_disk_have_no_tensor_of_all(load: Load, make_npz: Npz) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 6, 5), dtype=np.uint8)
    data = load(make_npz(x_train=x, y_train=np.arange(40) % 2), "npz", room=NO_MEMORY)
    with pytest.raises(TypeError, match="not in memory"):
        _ = data.splits["train"].x
