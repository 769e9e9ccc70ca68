"""Parquet files of strangers: which files there are, and which columns hold images, labels and splits.

Alone, or several in a zip, named as Hugging Face's are (train-00000-of-00002.parquet, test-…, validation-…, or
train/0000.parquet). What a file says of itself (rows, sizes, nesting) is held against the caps before a page is read;
then row after row is read in small batches, dictionaries as such: a value that a million rows name is held once.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.data.archive import GIB, MIB, Limits, open_archive
from core.data.arrays import MAX_BYTES
from core.data.folders import SPLIT_FOLDERS, is_litter
from core.data.shelf import Shelf
from core.data.source import SplitName, pointer
from core.errors import BillhookError, DatasetTooLarge, DatasetUnreadable, DatasetUnsuitable, Fault
from core.job import Columns

ZIP_LIMITS = Limits(members=10_000, member_bytes=MAX_BYTES, total_bytes=2 * MAX_BYTES)
MAX_ROWS = 5_000_000
MAX_COLUMNS = 10_000
MAX_DEPTH = 32
MAX_FOOTER_BYTES = 64 * MIB
MAX_TOTAL_BYTES = 64 * GIB
RATIO, RATIO_FLOOR_BYTES = 200.0, 16 * MIB  # as for archives
BATCH_BYTES = 32 * MIB
MAX_BATCH_ROWS = 1_024
READ_BYTES = MIB

IMAGE_NAMES = ("image", "img", "images", "picture", "photo")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "class_label", "target", "category", "y")
SPLIT_NAME = "split"
SPLITS: Mapping[str, SplitName] = {**SPLIT_FOLDERS, "training": "train", "dev": "validation"}
_SPLIT_FILE = re.compile(rf"({'|'.join(SPLITS)})(?:[-_.].*)?\.parquet", re.IGNORECASE)
_EXPECTED_IMAGE = "encoded images as binary, or as a struct {bytes, path}"
_EXPECTED_LABEL = "integers 0..K-1, or strings"


@dataclass(frozen=True)
class File:
    """One Parquet file. `name`: in the zip, None where it is alone. `split`: as its name says, None if it does not."""

    name: str | None
    split: SplitName | None
    open: Callable[[], IO[bytes]]

    def where(self, *parts: str | int) -> str:
        """A JSON pointer into it."""
        return pointer("file", *([] if self.name is None else [self.name]), *parts)


@dataclass(frozen=True)
class Table:
    """An open file and what its columns are. `image`: the path of the leaf that holds the bytes."""

    file: pq.ParquetFile
    columns: Columns
    image: str
    class_names: tuple[str, ...] | None

    @property
    def rows(self) -> int:
        return int(self.file.metadata.num_rows)


def is_parquet(names: Sequence[str]) -> bool:
    """Whether a zip of files of these names is one of Parquet files."""
    return any(name.lower().endswith(".parquet") and not is_litter(name) for name in names)


@contextmanager
def parquet_files(path: Path, shelf: Shelf) -> Iterator[tuple[list[File], list[str]]]:
    """The Parquet files in the file `path`, a zip or one of them; and the names of what else is in the zip.

    Those of a zip are unpacked, each once, into room of `shelf` that is given back at the end.

    Raises `DatasetRefused` with the faults.
    """
    with path.open("rb") as file:
        packed = file.read(4) == b"PK\x03\x04"
    if not packed:
        yield [File(None, None, lambda: path.open("rb"))], []
        return
    with open_archive(path, ZIP_LIMITS) as (archive, members), ExitStack() as held:
        files = [member for member in members if not member.is_dir() and not is_litter(member.filename)]
        named = [member for member in files if member.filename.lower().endswith(".parquet")]
        if not named:
            fault = Fault("/file", "no .parquet file in it", "files such as train-00000.parquet and test-00000.parquet")
            raise DatasetUnsuitable("the archive holds no Parquet files", faults=[fault])
        size = sum(member.file_size for member in named)
        folder = held.enter_context(
            shelf.unpacked(size, pointer="/file", what=f"{len(named)} Parquet file(s), unpacked,")
        )
        found = [
            File(member.filename, _split_of(member.filename), partial(_unpacked, archive, member, folder / str(n)))
            for n, member in enumerate(sorted(named, key=lambda member: member.filename))
        ]
        unclear = [file for file in found if file.split is None]
        if unclear and len(unclear) < len(found):
            faults = [Fault(file.where(), "its name says no split, others' do", "train-….parquet") for file in unclear]
            raise DatasetUnsuitable("some files belong to no split", faults=faults[:20])
        yield found, [member.filename for member in files if member not in named]


def _split_of(name: str) -> SplitName | None:
    path = PurePosixPath(name)
    if match := _SPLIT_FILE.fullmatch(path.name):
        return SPLITS[match[1].lower()]
    return SPLITS.get(path.parent.name.lower())


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> IO[bytes]:
    """The member as a file that can be read in any order: its end says where all else is. Unpacked once."""
    if not target.exists():
        where = pointer("file", member.filename)
        try:
            with archive.open(member) as stream, target.open("wb") as file:
                while data := stream.read(READ_BYTES):
                    file.write(data)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            raise _unreadable(where, f"does not unpack: {error}") from None
        if target.stat().st_size != member.file_size:
            raise _unreadable(where, "does not unpack to the size that the archive says")
    return target.open("rb")


@contextmanager
def open_table(file: File, columns: Columns) -> Iterator[Table]:
    """The file, opened and held against the caps, its columns found. Raises `DatasetRefused` with the faults."""
    with file.open() as stream:
        with arrow_errors(file):
            _check_footer(stream, file)
            opened = pq.ParquetFile(
                stream, pre_buffer=False, buffer_size=READ_BYTES, schema_depth_limit=MAX_DEPTH,
                thrift_string_size_limit=MAX_FOOTER_BYTES, thrift_container_size_limit=1_000_000,
                arrow_extensions_enabled=False,
            )  # fmt: skip
            _check_sizes(opened.metadata, stream, file)
            schema = opened.schema_arrow
            features = _features(schema)
            found = _find_columns(schema, features, columns, file)
            image = _leaf(schema, found)
        names = _class_names(features.get(str(found.label)))
        # values of strings and images are read as a dictionary each: repeated ones must not become as many copies
        again = [image, *(name for name in (found.label, found.split) if name and _is_text(schema.field(name).type))]
        with arrow_errors(file):
            stream.seek(0)
            opened = pq.ParquetFile(
                stream, metadata=opened.metadata, read_dictionary=again, pre_buffer=False, buffer_size=READ_BYTES,
                schema_depth_limit=MAX_DEPTH, arrow_extensions_enabled=False,
            )  # fmt: skip
        yield Table(opened, found, image, names)


@contextmanager
def arrow_errors(file: File) -> Iterator[None]:
    """What pyarrow raises on damaged files as `DatasetUnreadable`; its messages may hold bytes of the file."""
    try:
        yield
    except (BillhookError, MemoryError):
        raise
    except Exception as error:  # pyarrow raises a dozen kinds on hostile bytes
        raise _unreadable(file.where(), f"damaged, or no Parquet file ({type(error).__name__})") from error


def batches(table: Table, file: File, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of `columns` (paths of leaves), in order, some at a time."""
    metadata = table.file.metadata
    seen = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        row_bytes = sum(
            column.total_uncompressed_size
            for column in map(group.column, range(group.num_columns))
            if column.path_in_schema in columns
        ) // max(1, group.num_rows)
        size = max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // max(1, row_bytes)))
        reader = table.file.iter_batches(size, row_groups=[number], columns=list(columns), use_threads=False)
        while True:
            with arrow_errors(file):
                batch = next(reader, None)
            if batch is None:
                break
            seen += batch.num_rows
            yield batch
    if seen != metadata.num_rows:
        raise _unreadable(file.where(), f"it says {metadata.num_rows} rows and has {seen}")


def _unreadable(where: str, message: str) -> DatasetUnreadable:
    fault = Fault(where, message, "an undamaged Parquet file")
    return DatasetUnreadable("a Parquet file cannot be read", faults=[fault])


def _check_footer(stream: IO[bytes], file: File) -> None:
    """Refuse a description past the cap before pyarrow reads all of it."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 8))
    tail = stream.read(8)
    stream.seek(0)
    if tail[4:] == b"PARE":
        raise _unreadable(file.where(), "it is encrypted")
    if size < 12 or tail[4:] != b"PAR1" or stream.read(4) != b"PAR1":
        raise _unreadable(file.where(), "it does not begin and end as a Parquet file does: no such file, or cut off")
    (length,) = struct.unpack("<I", tail[:4])
    if length > size - 12:
        raise _unreadable(file.where(), f"a description of {length} bytes in a file of {size}")
    if length > MAX_FOOTER_BYTES:
        raise _too_large(file, f"a description of {length} bytes", f"at most {MAX_FOOTER_BYTES}")
    stream.seek(0)


def _too_large(file: File, message: str, expected: str) -> DatasetTooLarge:
    return DatasetTooLarge("a Parquet file holds too much", faults=[Fault(file.where(), message, expected)])


def _check_sizes(metadata: pq.FileMetaData, stream: IO[bytes], file: File) -> None:
    if not 0 <= metadata.num_rows <= MAX_ROWS:
        raise _too_large(file, f"{metadata.num_rows} rows", f"at most {MAX_ROWS}")
    if metadata.num_columns > MAX_COLUMNS:
        raise _too_large(file, f"{metadata.num_columns} columns", f"at most {MAX_COLUMNS}")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    sizes = [group.column(number).total_uncompressed_size for group in groups for number in range(group.num_columns)]
    if any(group.num_rows < 0 for group in groups) or sum(group.num_rows for group in groups) != metadata.num_rows:
        raise _unreadable(file.where(), "the rows of its groups do not add up")
    if min(sizes, default=0) < 0:
        raise _unreadable(file.where(), "a column of less than no bytes")
    packed = os.fstat(stream.fileno()).st_size
    total = sum(sizes)
    if total > MAX_TOTAL_BYTES:
        raise _too_large(file, f"{total} bytes unpacked", f"at most {MAX_TOTAL_BYTES}")
    if total > max(RATIO_FLOOR_BYTES, RATIO * packed):
        raise _too_large(file, f"unpacks from {packed} to {total} bytes", f"at most {RATIO:g} times its size")


# --- columns ---------------------------------------------------------------------------------------------------------


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """What Hugging Face's library says of the columns; empty where it did not write the file."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a `ClassLabel`, in the order of its integers."""
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return tuple(names) if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def _find_columns(schema: pa.Schema, features: Mapping[str, Any], asked: Columns, file: File) -> Columns:
    """All three by name, of the type that they must be of; `split` None where there is none. Raises with the faults."""
    faults: list[Fault] = []
    listed = ", ".join(f"{field.name} ({_type_text(field.type)})" for field in list(schema)[:50]) or "none"

    def find(kind: str, usual: Sequence[str], fits: Callable[[pa.DataType], bool], expected: str) -> str | None:
        given = getattr(asked, kind)
        name = given or next((name for name in usual if name in schema.names), None)
        if name is None and kind != "split":
            marked = [key for key, value in features.items() if key in schema.names and _marked(value, kind)]
            fitting = marked or [field.name for field in schema if kind == "image" and fits(field.type)]
            name = fitting[0] if len(fitting) == 1 else None
        where = f"/columns/{kind}"
        if name is None or name not in schema.names:
            if given or kind != "split":
                called = f"no column {given!r}" if given else f"no column called {', '.join(usual)}"
                faults.append(Fault(where, f"{called}; the columns are {listed}", f"the name of one: {expected}"))
            return None
        if len(schema.get_all_field_indices(name)) > 1:
            faults.append(Fault(where, f"more than one column {name!r}", "each name once"))
        elif not fits(schema.field(name).type):
            if not given and kind == "split":
                return None
            faults.append(Fault(where, f"column {name!r} is {_type_text(schema.field(name).type)}", expected))
        return name

    image = find("image", IMAGE_NAMES, lambda kind: _bytes_in(kind) is not None, _EXPECTED_IMAGE)
    label = find("label", LABEL_NAMES, lambda kind: pa.types.is_integer(kind) or _is_text(kind), _EXPECTED_LABEL)
    split = None
    if file.split is None:
        split = find("split", (SPLIT_NAME,), _is_text, "strings: train, validation or test")
    elif asked.split is not None:
        faults.append(Fault("/columns/split", "the names of the files say the splits already", "no such column"))
    if faults:
        called = "" if file.name is None else f"{file.name}: "
        faults = [Fault(fault.pointer, f"{called}{fault.message}", fault.expected) for fault in faults]
        raise DatasetUnsuitable("the columns are not those of a dataset of images", faults=faults)
    return Columns(image=image, label=label, split=split)


def _marked(feature: Any, kind: str) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == {"image": "Image", "label": "ClassLabel"}[kind]


def _bytes_in(kind: pa.DataType) -> str | None:
    """Where in a column of this type the images' bytes are: "" itself, ".bytes" in a struct, None nowhere."""
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_binary(held) or pa.types.is_large_binary(held):
        return ""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _bytes_in(kind.field("bytes").type) == "":
        return ".bytes"
    return None


def _leaf(schema: pa.Schema, found: Columns) -> str:
    assert found.image is not None
    return f"{found.image}{_bytes_in(schema.field(found.image).type)}"


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _type_text(kind: pa.DataType) -> str:
    text = str(kind)
    return text if len(text) <= 100 else f"{text[:100]}…"
