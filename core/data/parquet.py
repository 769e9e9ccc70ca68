"""Parquet with a column of encoded images and one of labels, as Hugging Face's datasets come: into splits of images.

Two passes, as over an image folder: the first reads labels and opens each image as far as its header, so that memory or
disk is taken once and bombs are found before anything is decoded; the second decodes each image into its place.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from core.data.arrays import MAX_CLASSES
from core.data.decoding import (
    GREY_MODES,
    UNREADABLE_SHARE,
    Unreadable,
    check_share,
    common_size,
    decode,
    decoded_bytes,
    image_warnings,
    read_header,
)
from core.data.parquet_files import (
    MAX_ROWS,
    SPLITS,
    File,
    Table,
    arrow_errors,
    batches,
    open_table,
    parquet_files,
)
from core.data.pixels import resize
from core.data.shelf import Shelf
from core.data.source import SPLIT_NAMES, Images, Source, SplitName, pointer
from core.data.threads import in_order, torch_threads
from core.errors import DatasetTooLarge, DatasetUnreadable, DatasetUnsuitable, Fault
from core.job import Columns, Preprocess

MAX_NAME = 1_000  # characters of a class's name
_HIGHEST = 2**62  # far past any class


@dataclass
class _Scan:
    """What the first pass found. `label`, `split`, `readable`: of each row of all files, in order."""

    label: array[int] = field(default_factory=lambda: array("q"))
    split: bytearray = field(default_factory=bytearray)  # positions in SPLIT_NAMES
    readable: bytearray = field(default_factory=bytearray)
    names: dict[str, int] = field(default_factory=dict)  # of labels that are strings: their numbers here
    class_names: tuple[str, ...] | None = None  # of labels that are integers, where the file names them
    odd_splits: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    transparent: int = 0
    unreadable: dict[tuple[str, ...], str] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    textual: bool = False


def read_parquet(
    path: Path | None, preprocess: Preprocess, shelf: Shelf | None = None, *, columns: Columns | None = None
) -> Source:
    """The images as a source, in `shelf`. `columns`: those that are named; the others are found.

    Raises `DatasetUnreadable`, `DatasetTooLarge` or `DatasetUnsuitable` with the faults.
    """
    if path is None:
        fault = Fault("/file", "no file was given", "a .parquet file, or a zip of some")
        raise DatasetUnreadable("parquet needs a file", faults=[fault])
    shelf = shelf or Shelf()
    with parquet_files(path, shelf) as (files, others):
        scan = _Scan()
        total = _count(files, columns or Columns(), scan)
        for file in files:
            with open_table(file, scan.columns) as table:
                _scan(table, file, scan, total)
        classes = _number_classes(scan)
        size = preprocess.size or common_size(scan.sizes)
        grey = preprocess.channels == "L" or all(mode in GREY_MODES for mode in scan.modes)
        shape = (1 if grey else 3, *size)
        images = sum(scan.readable)
        what = f"{images} images of {size[0]}×{size[1]}×{shape[0]}"
        shelf.reserve(images * math.prod(shape), pointer="/preprocess/size", what=what)
        splits = _decode(files, scan, shape, shelf)
        _check(scan, total)
    details: dict[str, Any] = {
        "format": "parquet",
        "unreadable": {
            "count": len(scan.unreadable),
            "files": [[" ".join(parts), why] for parts, why in list(scan.unreadable.items())[:100]],
        },
        "modes": dict(scan.modes),
        "columns": scan.columns.model_dump(),
    }
    left_out = [" ".join(parts) for parts in scan.unreadable]
    warnings = image_warnings(left_out, scan.transparent, splits, classes)
    if others:
        warnings.append(f"{len(others)} file(s) that are no Parquet files were left out: {', '.join(others[:10])}")
    return Source(splits, classes, details, warnings)


def _count(files: list[File], asked: Columns, scan: _Scan) -> int:
    """The rows of all files, whose columns must be the same. Nothing but their descriptions is read."""
    total = 0
    for number, file in enumerate(files):
        with open_table(file, asked) as table:
            total += table.rows
            label = table.file.schema_arrow.field(str(table.columns.label)).type
            textual = not pa.types.is_integer(label)
            if number == 0:
                scan.columns, scan.textual, scan.class_names = table.columns, textual, table.class_names
            elif (table.columns, textual, table.class_names) != (scan.columns, scan.textual, scan.class_names):
                fault = Fault(file.where(), "its columns or class names are not those of the other files", "the same")
                raise DatasetUnsuitable("the Parquet files do not belong together", faults=[fault])
    if total > MAX_ROWS:
        raise DatasetTooLarge("too many rows", faults=[Fault("/file", f"{total} rows", f"at most {MAX_ROWS}")])
    if total == 0:
        raise DatasetUnsuitable("there are no images", faults=[Fault("/file", "no rows", "images and labels")])
    return total


# --- the first pass --------------------------------------------------------------------------------------------------


def _scan(table: Table, file: File, scan: _Scan, total: int) -> None:
    columns = table.columns
    wanted = [table.image, str(columns.label), *([] if columns.split is None else [columns.split])]
    row = 0
    for batch in batches(table, file, wanted):
        with arrow_errors(file):
            scan.label.extend(_labels(batch.column(str(columns.label)), scan, file, row))
            scan.split.extend(_splits(batch, columns.split, file, scan))
        for data in _images(batch.column(str(columns.image)), file):
            parts = (*(() if file.name is None else (file.name,)), f"row {row}")
            try:
                header = read_header(_bytes(data), pointer("file", *parts))
            except Unreadable as error:
                scan.unreadable[parts] = str(error)
                scan.readable.append(0)
            else:
                scan.readable.append(1)
                scan.sizes[header.size] += 1
                scan.modes[header.mode] += 1
                scan.transparent += header.transparent
            row += 1
        if len(scan.unreadable) > UNREADABLE_SHARE * total:
            _check(scan, total)


def _images(column: pa.Array, file: File) -> Iterator[bytes | None]:
    """Of each row of a batch the bytes, None where there are none."""
    with arrow_errors(file):
        # a struct of which only one leaf was read; `flatten` keeps what is missing in the struct itself missing
        values = column.flatten()[0] if pa.types.is_struct(column.type) else column
        count = len(values)
    for number in range(count):
        with arrow_errors(file):
            data = values[number].as_py()
        yield data


def _bytes(data: bytes | None) -> bytes:
    if data is None:
        raise Unreadable("no bytes (the image is not in the file, or only its path is)")
    return data


def _labels(column: pa.Array, scan: _Scan, file: File, row: int) -> list[int]:
    """Integers as they are, strings by their numbers in `scan.names`."""
    if column.null_count:
        missing = next(number for number in range(len(column)) if not column[number].is_valid)
        fault = Fault(file.where(f"row {row + missing}"), "no label", "a label for each image")
        raise DatasetUnsuitable("some images have no label", faults=[fault])
    if not scan.textual:
        return [min(int(label), _HIGHEST) for label in column.to_pylist()]
    numbers = []
    for name in _values(column):
        if len(name) > MAX_NAME:
            fault = Fault(file.where(), f"a label of {len(name)} characters", f"at most {MAX_NAME}")
            raise DatasetTooLarge("a label is too long", faults=[fault])
        numbers.append(scan.names.setdefault(name, len(scan.names)))
    if len(scan.names) > MAX_CLASSES:
        raise _too_many_classes(f"more than {MAX_CLASSES} different labels")
    return [numbers[index] for index in _indices(column)]


def _splits(batch: pa.RecordBatch, name: str | None, file: File, scan: _Scan) -> bytes:
    if name is None:
        return bytes([SPLIT_NAMES.index(file.split or "train")]) * int(batch.num_rows)
    column = batch.column(name)
    positions = []
    for value in _values(column):
        split = SPLITS.get(value.strip().lower())
        if split is None:
            scan.odd_splits[value[:100]] += 1
        positions.append(SPLIT_NAMES.index(split or "train"))
    if column.null_count:
        scan.odd_splits["nothing"] += 1
        positions.append(0)
    if scan.odd_splits:
        found = ", ".join(repr(value) for value in list(scan.odd_splits)[:10])
        fault = Fault("/columns/split", f"column {name!r} says {found}", f"one of {', '.join(SPLITS)}")
        raise DatasetUnsuitable("the column of splits says other things", faults=[fault])
    return bytes(positions[index] for index in _indices(column))


def _values(column: pa.DictionaryArray) -> list[str]:
    return [value or "" for value in column.dictionary.to_pylist()]


def _indices(column: pa.DictionaryArray) -> list[int]:
    return [int(index) for index in column.indices.to_pylist()]


def _number_classes(scan: _Scan) -> tuple[str, ...]:
    """The names of the classes; `scan.label` then holds their positions. Raises `DatasetUnsuitable`."""
    if scan.textual:
        classes = tuple(sorted(scan.names))
        position = {name: number for number, name in enumerate(classes)}
        numbers = [position[name] for name in scan.names]  # in the order of their first appearance
        scan.label = array("q", (numbers[label] for label in scan.label))
        return classes
    lowest, highest = min(scan.label), max(scan.label)
    most = MAX_CLASSES if scan.class_names is None else len(scan.class_names)
    twice = [name for name, count in Counter(scan.class_names or ()).items() if count > 1]
    if twice:
        message = f"its class names hold {', '.join(repr(name[:60]) for name in twice[:10])} more than once"
        raise _labels_fault(scan, message, "each name once: one class, one name")
    if lowest < 0:
        count = sum(label < 0 for label in scan.label)
        message = f"{count} label(s) below 0, such as {lowest} (images without a label?)"
        raise _labels_fault(scan, message, "integers 0..K-1")
    if highest >= most:
        if scan.class_names is None:
            raise _too_many_classes(f"a label {highest}")
        raise _labels_fault(scan, f"a label {highest} of {most} named classes", f"integers 0..{most - 1}")
    return scan.class_names or tuple(map(str, range(highest + 1)))


def _labels_fault(scan: _Scan, message: str, expected: str) -> DatasetUnsuitable:
    fault = Fault("/columns/label", f"column {scan.columns.label!r}: {message}", expected)
    return DatasetUnsuitable("the labels are not those of classes", faults=[fault])


def _too_many_classes(message: str) -> DatasetTooLarge:
    fault = Fault("/columns/label", message, f"at most {MAX_CLASSES} classes, integers 0..K-1 or names")
    return DatasetTooLarge("too many classes", faults=[fault])


# --- the second pass -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A row to be decoded. `parts`: its place, for a pointer."""

    data: bytes | None
    parts: tuple[str, ...]
    split: int
    label: int


def _rows(files: list[File], scan: _Scan) -> Iterator[_Row]:
    """Those whose header is good, in order."""
    place = 0
    for file in files:
        with open_table(file, scan.columns) as table:
            row = 0
            for batch in batches(table, file, [table.image]):
                for data in _images(batch.column(str(table.columns.image)), file):
                    if scan.readable[place]:
                        parts = (*(() if file.name is None else (file.name,)), f"row {row}")
                        yield _Row(data, parts, scan.split[place], scan.label[place])
                    place, row = place + 1, row + 1


def _decode(files: list[File], scan: _Scan, shape: tuple[int, int, int], shelf: Shelf) -> dict[SplitName, Images]:
    """Decode each into its place; places of rows that fail now (their headers were good) are cut off at the end."""
    counts = Counter(split for split, good in zip(scan.split, scan.readable, strict=True) if good)
    pixels = {split: shelf.rows(count, shape, torch.uint8) for split, count in counts.items()}
    labels: dict[int, list[int]] = {split: [] for split in counts}
    largest = decoded_bytes(max(scan.sizes, key=math.prod))

    def placed(row: _Row) -> tuple[_Row, Tensor | str]:
        try:
            image = decode(_bytes(row.data), pointer("file", *row.parts), shape[0])
        except Unreadable as error:
            return row, str(error)
        return row, resize(image[None], shape[1:])

    def cost(row: _Row) -> int:
        return len(row.data or b"") + largest

    found_rows = in_order(placed, _rows(files, scan), threads=torch_threads(), cost=cost, most=shelf.in_flight_bytes)
    with closing(found_rows):
        for row, image in found_rows:
            if isinstance(image, str):
                scan.unreadable[row.parts] = image
            else:
                pixels[row.split].write(len(labels[row.split]), image)
                labels[row.split].append(row.label)
    found: dict[SplitName, Images] = {}
    for split, name in enumerate(SPLIT_NAMES):
        if labels.get(split):
            kept = torch.tensor(labels[split], dtype=torch.int64)
            found[name] = Images(pixels[split].finish(len(kept)), kept)
    if "train" not in found:
        said = ", ".join(found) or "nothing"
        raise DatasetUnsuitable("no images to train on", faults=[Fault("/file", f"images of {said} only", "of train")])
    return found


def _check(scan: _Scan, total: int) -> None:
    check_share({pointer("file", *parts): message for parts, message in scan.unreadable.items()}, total)
