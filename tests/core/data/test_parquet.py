"""Parquet: alone and in zips, as Hugging Face writes it and otherwise; the same as a zip of folders; bombs."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from core.data import parquet, parquet_files
from core.data.datasets import Dataset, load_dataset
from core.data.parquet import read_parquet
from core.data.rows import Stored
from core.data.shelf import Shelf
from core.errors import DatasetRefused, DatasetTooLarge, DatasetUnreadable, DatasetUnsuitable
from core.job import Columns, DatasetInput, DatasetOptions, Preprocess, Room
from tests.core.data.conftest import encode

Png = Callable[..., bytes]


def load(
    path: Path, columns: Columns | None = None, kind: str = "parquet", *, room: Room | None = None, **preprocess: Any
) -> Dataset:
    options = DatasetOptions(
        format=kind, preprocess=Preprocess(**preprocess), columns=columns or Columns()
    )  # fmt: skip
    return load_dataset(DatasetInput(path=path, sha256=None, format=kind, options=options), room)


def table(images: Sequence[bytes | None], labels: Sequence[Any], nested: bool = True, **more: Any) -> pa.Table:
    column = [None if data is None else {"bytes": data, "path": None} for data in images] if nested else list(images)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if nested else pa.binary()
    return pa.table({"image": pa.array(column, kind), "label": labels, **more})


def named_by_hugging_face(made: pa.Table, **features: Any) -> pa.Table:
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path: Path, made: pa.Table, **options: Any) -> Path:
    pq.write_table(made, path, **options)
    return path


def packed(path: Path, **files: pa.Table) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, made in files.items():
            buffer = io.BytesIO()
            pq.write_table(made, buffer)
            archive.writestr(name.replace("__", "/").replace("_", "-") + ".parquet", buffer.getvalue())
    return path


def some(png: Png, count: int, seed: int = 0, classes: int = 2) -> pa.Table:
    return table([png(100 * seed + number) for number in range(count)], [n % classes for n in range(count)])


def refusal(
    path: Path, kind: type[DatasetRefused], room: Room | None = None, columns: Columns | None = None
) -> list[tuple[str, str]]:
    with pytest.raises(kind) as caught:
        load(path, columns, room=room)
    assert type(caught.value) is kind
    return [(fault.pointer, fault.message) for fault in caught.value.faults]


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [True, False], ids=["struct", "binary"])
@pytest.mark.parametrize("rows", [3, 1_000], ids=["many groups", "one group"])
def test_images_and_labels(tmp_path: Path, png: Png, nested: bool, rows: int) -> None:
    images = [png(number) for number in range(20)]
    made = table(images, [number % 2 for number in range(20)], nested)
    data = load(write(tmp_path / "d.parquet", made, row_group_size=rows))
    assert (data.classes, data.image_shape) == (("0", "1"), (3, 6, 5))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 14, "validation": 2, "test": 4}
    expected = {np.array(Image.open(io.BytesIO(image))).transpose(2, 0, 1).tobytes(): n % 2
                for n, image in enumerate(images)}  # fmt: skip
    found = {row.numpy().tobytes(): label for split in data.splits.values()
             for row, label in zip(split.x, split.y.tolist(), strict=True)}  # fmt: skip
    assert found == expected
    summary = data.summary()
    assert summary["columns"] == {"image": "image", "label": "label", "split": None}
    assert (summary["format"], summary["unreadable"]["count"], summary["warnings"]) == ("parquet", 0, [])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_labels_that_are_names(tmp_path: Path, png: Png, kind: pa.DataType) -> None:
    made = table([png(n) for n in range(12)], pa.array(["zebra", "ant", "zebra"] * 4, pa.string()).cast(kind))
    data = load(write(tmp_path / "d.parquet", made))
    assert data.classes == ("ant", "zebra")
    assert sum(int((split.y == 1).sum()) for split in data.splits.values()) == 8


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int16(), pa.uint64()], ids=str)
def test_labels_of_any_integer_type(tmp_path: Path, png: Png, kind: pa.DataType) -> None:
    made = table([png(n) for n in range(12)], pa.array([0, 1, 2] * 4, kind))
    assert load(write(tmp_path / "d.parquet", made)).classes == ("0", "1", "2")


def test_names_of_classes_are_those_of_hugging_face(tmp_path: Path, png: Png) -> None:
    label = {"names": ["dog", "cat"], "_type": "ClassLabel"}
    made = named_by_hugging_face(some(png, 12), image={"_type": "Image"}, label=label)
    data = load(write(tmp_path / "d.parquet", made))
    assert data.classes == ("dog", "cat")
    odd = named_by_hugging_face(some(png, 12), label={"names": ["dog"], "_type": "ClassLabel"})
    faults = refusal(write(tmp_path / "odd.parquet", odd), DatasetUnsuitable)
    assert faults == [("/columns/label", "column 'label': a label 1 of 1 named classes")]


def test_a_class_name_that_is_there_twice_is_refused(tmp_path: Path, png: Png) -> None:
    label = {"names": ["a", "a", "b", "b", "c"], "_type": "ClassLabel"}
    made = named_by_hugging_face(some(png, 12, classes=5), label=label)
    faults = refusal(write(tmp_path / "d.parquet", made), DatasetUnsuitable)
    assert faults == [("/columns/label", "column 'label': its class names hold 'a', 'b' more than once")]


@pytest.mark.parametrize(
    "metadata", [b"\xff", b"[", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}']
)
def test_odd_metadata_is_none(tmp_path: Path, png: Png, metadata: bytes) -> None:
    made = some(png, 12).replace_schema_metadata({b"huggingface": metadata})
    assert load(write(tmp_path / "d.parquet", made)).classes == ("0", "1")


def test_a_column_of_splits(tmp_path: Path, png: Png) -> None:
    splits = ["train"] * 8 + ["Validation"] * 2 + ["test"] * 4
    made = some(png, 14).append_column("split", pa.array(splits))
    data = load(write(tmp_path / "d.parquet", made, row_group_size=5))
    assert {name: (len(split), split.given) for name, split in data.splits.items()} == {
        "train": (8, True), "validation": (2, True), "test": (4, True),
    }  # fmt: skip
    made = some(png, 14).append_column("split", pa.array(["extra", None] * 7))
    ((pointer, message),) = refusal(write(tmp_path / "odd.parquet", made), DatasetUnsuitable)
    assert pointer == "/columns/split"
    assert "'extra', 'nothing'" in message


@pytest.mark.parametrize("kind", ["parquet", "image_folder"])
@pytest.mark.parametrize(
    "names",
    [
        ("train_00000_of_00002", "train_00001_of_00002", "validation_0", "test_0"),
        ("data__train_0", "data__train_1", "data__valid_0", "data__test_0"),
        ("plain__train__0000", "plain__train__0001", "plain__validation__0000", "plain__test__0000"),
    ],
)
def test_a_zip_of_several_as_hugging_face_names_them(
    tmp_path: Path, png: Png, kind: str, names: tuple[str, ...]
) -> None:
    files = {name: some(png, 6, seed) for seed, name in enumerate(names)}
    data = load(packed(tmp_path / "d.zip", **files), kind=kind)
    assert {name: (len(split), split.given) for name, split in data.splits.items()} == {
        "train": (12, True), "validation": (6, True), "test": (6, True),
    }  # fmt: skip
    assert data.summary()["format"] == "parquet"


def test_other_files_of_a_zip_are_left_out_and_told(tmp_path: Path, png: Png) -> None:
    path = packed(tmp_path / "d.zip", train_0=some(png, 6), test_0=some(png, 6, 1))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.md", "hello")
        archive.writestr("__MACOSX/._train-0.parquet", "litter")
    data = load(path, kind="image_folder")
    assert data.warnings == ("1 file(s) that are no Parquet files were left out: README.md",)


def test_columns_of_other_names(tmp_path: Path, png: Png) -> None:
    made = some(png, 12).rename_columns(["jpg", "coarse_label"]).append_column("fine_label", pa.array(range(12)))
    path = write(tmp_path / "d.parquet", made)
    data = load(path, Columns(label="coarse_label"))  # the one column that can hold images is found
    assert data.classes == ("0", "1")
    assert data.summary()["columns"] == {"image": "jpg", "label": "coarse_label", "split": None}
    faults = refusal(path, DatasetUnsuitable, columns=Columns(image="no", label="jpg"))
    listed = "jpg (struct<bytes: binary, path: string>), coarse_label (int64), fine_label (int64)"
    assert faults == [
        ("/columns/image", f"no column 'no'; the columns are {listed}"),
        ("/columns/label", "column 'jpg' is struct<bytes: binary, path: string>"),
    ]


def test_grey_resized_and_transparent_images(tmp_path: Path, png: Png) -> None:
    grey = table([png(n, channels=1) for n in range(12)], [0, 1] * 6)
    assert load(write(tmp_path / "g.parquet", grey)).image_shape == (1, 6, 5)
    mixed = table([png(n, size=(6 + n, 5), channels=3 + n % 2) for n in range(12)], [0, 1] * 6)
    path = write(tmp_path / "m.parquet", mixed)
    assert refusal(path, DatasetUnsuitable)[0][0] == "/preprocess/size"
    data = load(path, size=(4, 4))
    assert data.image_shape == (3, 4, 4)
    assert "6 image(s) have transparency, which was dropped" in data.warnings


ROWS = st.lists(
    st.tuples(st.sampled_from(["PNG", "JPEG", "BMP"]), st.sampled_from([1, 3, 4]), st.integers(0, 10_000)),
    min_size=9, max_size=24, unique=True,
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, group=st.integers(1, 30), nested=st.booleans(), textual=st.booleans(), grey=st.booleans())
def test_the_same_as_a_zip_of_folders(
    tmp_path: Path, rows: list[tuple[str, int, int]], group: int, nested: bool, textual: bool, grey: bool
) -> None:
    classes = ["ant", "bee", "cow"]
    images, labels = [], []
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for number, (kind, channels, seed) in enumerate(rows):
            shape = (7, 6) if channels == 1 or grey else (7, 6, 3 if kind != "PNG" else channels)
            image = encode(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), kind)
            label = number % 3
            archive.writestr(f"{classes[label]}/{number:03}.{kind.lower()}", image)
            images.append(image)
            labels.append(label)
    made = table(images, [classes[label] for label in labels] if textual else labels, nested)
    if not textual:
        made = named_by_hugging_face(made, label={"names": classes, "_type": "ClassLabel"})
    ours = load(write(tmp_path / "d.parquet", made, row_group_size=group))
    theirs = load(tmp_path / "d.zip", kind="image_folder")
    assert ours.classes == theirs.classes
    for name, split in theirs.splits.items():
        assert torch.equal(ours.splits[name].x, split.x)
        assert torch.equal(ours.splits[name].y, split.y)
    expected = theirs.summary()
    assert {**ours.summary(), "format": "image_folder", "columns": None} == {**expected, "columns": None}


# --- refusals --------------------------------------------------------------------------------------------------------


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
