"""Parquet: alone and in zips, as Hugging Face writes it and otherwise; the same as a zip of folders; bombs."""

from __future__ import annotations

import io
import json
import zipfile
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

from core.data.datasets import Dataset, load_dataset
from core.errors import DatasetRefused, DatasetUnsuitable
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
