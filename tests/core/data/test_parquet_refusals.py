"""Parquet that is refused, or may not hurt."""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data import parquet, parquet_files
from core.data.datasets import load_dataset
from core.data.parquet import read_parquet
from core.data.rows import Stored
from core.data.shelf import Shelf
from core.errors import DatasetRefused, DatasetTooLarge, DatasetUnreadable, DatasetUnsuitable
from core.job import Columns, DatasetInput, Preprocess, Room
from tests.core.data.conftest import encode
from tests.core.data.test_parquet import Png, load, packed, refusal, some, table, write


def test_few_unreadable_images_are_left_out_and_listed(tmp_path: Path, png: Png) -> None:
    images: list[bytes | None] = [png(number) for number in range(300)]
    images[5], images[7], images[11] = png(5)[:-30], b"no image", None
    files = {"train_0": table(images, [0, 1] * 150), "test_0": some(png, 6, seed=9)}
    data = load(packed(tmp_path / "d.zip", **files))
    assert sum(len(split) for split in data.splits.values()) == 303
    found = dict(data.summary()["unreadable"]["files"])
    assert set(found) == {f"train-0.parquet row {number}" for number in (5, 7, 11)}
    assert "only its path" in found["train-0.parquet row 11"]
    assert any("3 image(s) could not be read" in warning for warning in data.warnings)


def test_many_unreadable_images_are_refused(tmp_path: Path, png: Png) -> None:
    images = [png(number) for number in range(50)]
    images[3] = b"no image"
    faults = refusal(write(tmp_path / "d.parquet", table(images, [0, 1] * 25)), DatasetUnreadable)
    assert faults[0] == ("/file", "1 of 50 images cannot be read")
    assert faults[1][0] == "/file/row 3"


def test_paths_instead_of_images_are_refused(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    made = pa.table({"image": pa.array([{"bytes": None, "path": "a.png"}] * 10, kind), "label": [0, 1] * 5})
    faults = refusal(write(tmp_path / "d.parquet", made), DatasetUnreadable)
    assert "only its path is" in faults[1][1]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, -1] * 6, "below 0"),
        ([0, None] * 6, "no label"),
        ([0, 2] * 6, "has no training images"),
        ([0.0, 1.0] * 6, "column 'label' is double"),
        ([[0], [1]] * 6, "column 'label' is list"),
        ([0, 10**15] * 6, "a label 1000000000000000"),
        (pa.array([0, 2**64 - 1] * 6, pa.uint64()), "a label 4611686018427387904"),
        (["a", "b" * 2000] * 6, "a label of 2000 characters"),
        ([0] * 12, "only the class '0'"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, png: Png, labels: list[Any], says: str) -> None:
    path = write(tmp_path / "d.parquet", table([png(n) for n in range(12)], labels))
    with pytest.raises(DatasetRefused) as caught:
        load(path)
    assert says in str([fault.message for fault in caught.value.faults]), caught.value.faults


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", pa.table({"text": ["a"], "score": [1.5]}))
    faults = refusal(path, DatasetUnsuitable)
    assert [pointer for pointer, _ in faults] == ["/columns/image", "/columns/label"]
    assert all("the columns are text (string), score (double)" in message for _, message in faults)
    nothing = write(tmp_path / "n.parquet", table([], pa.array([], pa.int64())))
    assert refusal(nothing, DatasetUnsuitable) == [("/file", "no rows")]


def test_files_of_a_zip_that_do_not_belong_together(tmp_path: Path, png: Png) -> None:
    files = {"train_0": some(png, 6), "test_0": some(png, 6, 1).rename_columns(["img", "label"])}
    ((pointer, _),) = refusal(packed(tmp_path / "a.zip", **files), DatasetUnsuitable)
    assert pointer == "/file/train-0.parquet"  # the second in order of names
    files = {"train_0": some(png, 6), "more": some(png, 6, 1)}
    assert refusal(packed(tmp_path / "b.zip", **files), DatasetUnsuitable)[0][0] == "/file/more.parquet"
    files = {"test_0": some(png, 6)}
    assert refusal(packed(tmp_path / "c.zip", **files), DatasetUnsuitable)[0][1] == "images of test only"
    files = {"train_0": some(png, 6).append_column("split", pa.array(["test"] * 6))}
    faults = refusal(packed(tmp_path / "d.zip", **files), DatasetUnsuitable, columns=Columns(split="split"))
    assert faults[0][0] == "/columns/split"
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    assert refusal(tmp_path / "e.zip", DatasetUnsuitable) == [("/file", "no .parquet file in it")]


def test_a_pixel_bomb_is_refused_by_its_header(tmp_path: Path, png: Png) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">LLBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path = write(tmp_path / "d.parquet", table([png(1), bomb], [0, 1]))
    assert refusal(path, DatasetTooLarge)[0][0] == "/file/row 1"


def test_more_than_there_is_room_for_is_refused_before_it_is_taken(tmp_path: Path, png: Png) -> None:
    path, room = write(tmp_path / "d.parquet", some(png, 16)), Room(memory_bytes=1000, disk_bytes=1000)
    assert refusal(path, DatasetTooLarge, room)[0][0] == "/preprocess/size"


def test_files_of_a_zip_are_unpacked_into_the_room_on_disk(tmp_path: Path, png: Png) -> None:
    path = packed(tmp_path / "d.zip", train_0=some(png, 16), test_0=some(png, 4, 1))
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    ((pointer, message),) = refusal(path, DatasetTooLarge, Room(disk_bytes=size - 1))
    assert pointer == "/file"
    assert message == f"2 Parquet file(s), unpacked, take {size} bytes of disk, and {size - 1} are left"
    assert load(path, room=Room(disk_bytes=size)).classes == ("0", "1")
    # the images come beside the files, as long as both are needed
    images = 20 * 3 * 6 * 5
    ((pointer, _),) = refusal(path, DatasetTooLarge, Room(memory_bytes=1, disk_bytes=size + images - 1))
    assert pointer == "/preprocess/size"
    assert isinstance(load(path, room=Room(memory_bytes=1, disk_bytes=size + images)).splits["train"].rows, Stored)


def test_room_of_unpacked_files_is_given_back(tmp_path: Path, png: Png) -> None:
    path = packed(tmp_path / "d.zip", train_0=some(png, 16))
    shelf = Shelf(Room(disk_bytes=100_000), tmp_path / "work")
    read_parquet(path, Preprocess(), shelf)
    assert list((tmp_path / "work").iterdir()) == []
    with shelf.unpacked(100_000, pointer="/file", what="all") as folder:  # the whole of it
        assert folder.parent == tmp_path / "work"
    with pytest.raises(DatasetUnsuitable):
        read_parquet(packed(tmp_path / "e.zip", test_0=some(png, 4)), Preprocess(), shelf)
    with shelf.unpacked(100_000, pointer="/file", what="all"):
        pass


def test_what_does_not_fit_memory_is_streamed(tmp_path: Path, png: Png) -> None:
    path = write(tmp_path / "d.parquet", some(png, 16))
    held, stored = (load(path, room=room) for room in (Room(), Room(memory_bytes=1000)))
    assert isinstance(stored.splits["train"].rows, Stored)
    assert held.summary() == stored.summary()


def test_a_dictionary_is_not_unfolded(tmp_path: Path) -> None:
    """One value of 1 MiB that 2,000 rows name: 2 GiB, were each row given its own. The file has 1 MiB."""
    value = encode(np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8))
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000, pa.int32()), pa.array([value], pa.binary()))
    made = pa.table({"image": column, "label": [0, 1] * 1_000})
    path = write(tmp_path / "d.parquet", made, dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 2 * 2**20
    room = Room(memory_bytes=2**30, disk_bytes=0)  # found by the headers, after all rows were looked at
    before = pa.default_memory_pool().max_memory()
    assert refusal(path, DatasetTooLarge, room)[0][0] == "/preprocess/size"
    assert pa.default_memory_pool().max_memory() - before < 64 * 2**20


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MAX_ROWS", 10, "20 rows"),
        ("MAX_COLUMNS", 2, "3 columns"),
        ("MAX_TOTAL_BYTES", 1_000, "bytes unpacked"),
        ("MAX_FOOTER_BYTES", 100, "a description of"),
    ],
)
def test_past_a_cap(
    tmp_path: Path, png: Png, monkeypatch: pytest.MonkeyPatch, name: str, value: int, says: str
) -> None:
    path = write(tmp_path / "d.parquet", some(png, 20))
    monkeypatch.setattr(parquet_files, name, value)
    assert says in refusal(path, DatasetTooLarge)[0][1]


def test_rows_of_all_files_count_together(tmp_path: Path, png: Png, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "d.zip", train_0=some(png, 8), test_0=some(png, 8, 1))
    monkeypatch.setattr(parquet, "MAX_ROWS", 10)
    assert refusal(path, DatasetTooLarge) == [("/file", "16 rows")]


def test_a_ratio_bomb(tmp_path: Path) -> None:
    zeros = [bytes(2**20 - number) for number in range(64)]
    made = table(zeros, [0, 1] * 32, nested=False)
    path = write(tmp_path / "d.parquet", made, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 2**18
    assert "unpacks from" in refusal(path, DatasetTooLarge)[0][1]


def test_deep_nesting_is_refused(tmp_path: Path, png: Png) -> None:
    kind: pa.DataType = pa.int64()
    for _ in range(200):
        kind = pa.struct([("a", kind)])
    made = some(png, 4).append_column("deep", pa.nulls(4, kind))
    ((_, message),) = refusal(write(tmp_path / "d.parquet", made), DatasetUnreadable)
    assert "no Parquet file" in message


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all", b"PAR1" + bytes(20) + b"PAR1", b"PK\x03\x04"])
def test_what_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(content)
    refusal(path, DatasetUnreadable)


def test_an_encrypted_file_says_so(tmp_path: Path, png: Png) -> None:
    path = write(tmp_path / "d.parquet", some(png, 4))
    path.write_bytes(path.read_bytes()[:-4] + b"PARE")
    assert refusal(path, DatasetUnreadable) == [("/file", "it is encrypted")]


def test_no_file_is_refused() -> None:
    with pytest.raises(DatasetUnreadable):
        load_dataset(DatasetInput(path=None, sha256=None, format="parquet"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(tmp_path: Path, png: Png, data: st.DataObject) -> None:
    path = tmp_path / "d.parquet"
    if not path.exists():
        write(path, some(png, 20), row_group_size=7)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[place] ^= data.draw(st.integers(1, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(content)
    with contextlib.suppress(DatasetRefused):
        load(damaged)
