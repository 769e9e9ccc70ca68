"""What `torch.export.save` (torch 2.9 and up) writes, read without torch's own loader: a zip of stored records.

`torch.export.load` unpickles what the archive tells it to. Nothing is unpickled here: the graph is JSON
(`models/<name>.json`), weights and constants are raw numbers described by a JSON beside them, and an archive in which
any of them is a pickle is refused. `data/sample_inputs` is a pickle in every archive; it is never opened. Sizes, counts
and names are checked before anything is allocated.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from core.errors import ModelRefused, ModelTooLarge, ModelUnreadable
from core.graph.limits import MAX_FOLDED_ELEMENTS, MAX_RANK, MAX_TENSOR_ELEMENTS, MAX_WEIGHTS_BYTES
from core.graph.pt2_schema import DTYPES, SCHEMA_MAJOR, STRIDED, Payload, PayloadConfig, Program, TensorMeta

MAX_MEMBERS = 40_000
MAX_DIRECTORY_BYTES = 16 * 1024**2
MAX_JSON_BYTES = 64 * 1024**2
MAX_JSON_ITEMS = 6_000_000
"""Of braces, brackets and commas together: what a JSON takes in memory follows their number."""

RIGHT = "an archive as torch.export.save of torch 2.9 or newer writes it"
Document = TypeVar("Document", bound=BaseModel)
_OLD = ("serialized_exported_program.json", "serialized_state_dict.pt")


@dataclass(frozen=True)
class View:
    """Where the numbers of one weight lie: two names with one view are one tensor."""

    record: str
    dtype: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class Archive:
    """An opened archive: its program, and its tensors by name, each read when it is asked for.

    Raises `ModelUnreadable` for what is no such archive or is damaged, `ModelTooLarge` past a cap, `ModelRefused` for
    pickles, several models, and members that are compressed or lie outside.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._bytes_left = 2 * size + 4 * MAX_FOLDED_ELEMENTS
        _check_directory(file, size)
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            raise ModelUnreadable(f"the file is truncated, damaged or no zip archive; it should be {RIGHT}") from None
        self._members = _members(self._zip, size)
        if self._text("archive_format") != b"pt2" or self._text("byteorder", b"little").strip() != b"little":
            raise ModelUnreadable(f"the file is no little-endian .pt2 archive; it should be {RIGHT}")
        models = sorted(name for name in self._members if re.fullmatch(r"models/[^/]+\.json", name))
        if len(models) != 1:
            raise ModelRefused(f"the archive holds {len(models)} exported programs; one is taken")
        name = models[0].removeprefix("models/").removesuffix(".json")
        self.program: Program = _parsed(Program, self._json(models[0]), models[0])
        if self.program.schema_version.major != SCHEMA_MAJOR:
            version = self.program.schema_version
            raise ModelRefused(
                f"the archive is of schema {version.major}.{version.minor} (torch {self.program.torch_version[:40]}); "
                f"{SCHEMA_MAJOR}.x is taken, as torch 2.9 to 2.13 write it"
            )
        self._payloads = {
            **self._config(f"data/constants/{name}_constants_config.json", "constants"),
            **self._config(f"data/weights/{name}_weights_config.json", "weights"),
        }
        self._loaded: dict[View, Tensor] = {}

    def view(self, name: str) -> View:
        """Where the weight or constant `name` lies. Raises where it is missing, or not inside its record."""
        if name not in self._payloads:
            raise ModelRefused(f"the archive holds no weight or constant {name!r}, which its graph reads")
        folder, payload = self._payloads[name]
        record = f"data/{folder}/{payload.path_name}"
        assert payload.tensor_meta is not None, "checked when the configuration was read"
        return _view(name, record, payload.tensor_meta)

    def tensor(self, name: str) -> Tensor:
        """The weight or constant `name`: a contiguous copy, the same one for every name of the same view."""
        view = self.view(name)
        if view not in self._loaded:
            dtype = DTYPES[view.dtype][0]
            assert dtype is not None, "checked when the view was made"
            elements = math.prod(view.sizes)
            if record := self._members.get(view.record):
                width = dtype.itemsize
                reach = view.offset + 1 + sum(
                    (size - 1) * stride for size, stride in zip(view.sizes, view.strides, strict=True)
                ) if elements else 0  # fmt: skip
                if record.file_size % width or reach * width > record.file_size:
                    raise ModelRefused(
                        f"{name!r} reaches to number {reach} of the record {view.record!r}, "
                        f"which has {record.file_size} bytes"
                    )
            elif elements:
                raise ModelRefused(f"the record {view.record!r} of {name!r} is missing")
            self._bytes_left -= elements * dtype.itemsize
            if self._bytes_left < 0:
                raise ModelTooLarge(f"the weights take more memory than their records do, at {name!r}")
            data = self._read(view.record) if elements else b""
            flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
            strided = torch.as_strided(flat, view.sizes, view.strides, view.offset)
            self._loaded[view] = strided.clone(memory_format=torch.contiguous_format)
        return self._loaded[view]

    def close(self) -> None:
        self._zip.close()

    # --- records ------------------------------------------------------------------------------------------------

    def _text(self, name: str, default: bytes = b"") -> bytes:
        member = self._members.get(name)
        return default if member is None or member.file_size > 100 else self._read(name)

    def _json(self, name: str) -> bytes:
        if name not in self._members:
            raise ModelUnreadable(f"the archive has no {name!r}; it should be {RIGHT}")
        if self._members[name].file_size > MAX_JSON_BYTES:
            raise ModelTooLarge(
                f"{name!r} has {self._members[name].file_size} bytes; at most {MAX_JSON_BYTES} are taken"
            )
        data = self._read(name)
        if data.count(b"{") + data.count(b"[") + data.count(b",") > MAX_JSON_ITEMS:
            raise ModelTooLarge(f"{name!r} holds more than {MAX_JSON_ITEMS} items")
        return data

    def _read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._members[name])
        except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError, struct.error):
            raise ModelUnreadable(f"the record {name!r} is damaged") from None

    def _config(self, name: str, folder: str) -> dict[str, tuple[str, Payload]]:
        """The configuration of weights or constants, checked. Every pickle in it is refused, needed or not."""
        if name not in self._members and folder == "constants":
            return {}
        for legacy in (f"data/{folder}/{name.rpartition('/')[2].removesuffix(f'_{folder}_config.json')}.pt",):
            if legacy in self._members:
                raise ModelRefused(f"the {folder} are a pickle ({legacy}); save the model with torch 2.9 or newer")
        config: PayloadConfig = _parsed(PayloadConfig, self._json(name), name)
        for key, payload in config.config.items():
            record = f"data/{folder}/{payload.path_name}"
            if payload.use_pickle or payload.tensor_meta is None:
                raise ModelRefused(f"{key!r} in {name!r} is a pickle ({record!r}); nothing is unpickled here")
            if not re.fullmatch(r"[\w.-]+", payload.path_name, re.ASCII) or payload.path_name.startswith("."):
                raise ModelRefused(f"{key!r} in {name!r} lies at {payload.path_name[:100]!r}, which is no plain name")
        return {key: (folder, payload) for key, payload in config.config.items()}


def open_archive(path: Path) -> Archive:
    """Opens the archive at `path`; see `Archive`."""
    size = path.stat().st_size
    if size == 0:
        raise ModelUnreadable(f"the file is empty; it should be {RIGHT}")
    if size > MAX_WEIGHTS_BYTES:
        raise ModelTooLarge(f"the file has {size} bytes; at most {MAX_WEIGHTS_BYTES} are taken")
    return Archive(path.open("rb"), size)


def _parsed(kind: type[Document], data: bytes, name: str) -> Document:
    try:
        return kind.model_validate_json(data)
    except (ValidationError, ValueError, RecursionError) as error:
        where, what = "", "no JSON of the right form"
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            where, what = "/" + "/".join(str(part)[:60] for part in first["loc"]), first["msg"]
        raise ModelUnreadable(f"{name!r} is damaged at {where!r}: {what}") from None


def _check_directory(file: IO[bytes], size: int) -> None:
    """Bounds the zip's directory before Python's reader loads it: the end of the file says how long it is."""
    file.seek(max(0, size - 98))
    tail = file.read(98)
    end = tail[-22:]
    if not tail.endswith(b"\x00\x00") or end[:4] != b"PK\x05\x06" or end[20:] != b"\x00\x00":
        raise ModelUnreadable(f"the file is truncated, damaged or no zip archive; it should be {RIGHT}")
    count, length = struct.unpack("<H", end[10:12])[0], struct.unpack("<L", end[12:16])[0]
    if len(tail) == 98 and tail[56:60] == b"PK\x06\x07":  # zip64, which torch always writes
        if tail[:4] != b"PK\x06\x06":
            raise ModelUnreadable(f"the file's zip directory is damaged; it should be {RIGHT}")
        count, length = struct.unpack("<QQ", tail[32:48])
    if count > MAX_MEMBERS or length > MAX_DIRECTORY_BYTES:
        raise ModelTooLarge(f"the archive has {count} members; at most {MAX_MEMBERS} are taken")


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by their path below the archive's one folder. None may be compressed, named twice or lie outside."""
    found: dict[str, zipfile.ZipInfo] = {}
    items = archive.infolist()
    if len(items) > MAX_MEMBERS:
        raise ModelTooLarge(f"the archive has {len(items)} members; at most {MAX_MEMBERS} are taken")
    roots = set()
    for item in items:
        name = item.filename
        parts = name.split("/")
        if ".." in parts or name.startswith("/") or "\\" in item.orig_filename or "\x00" in item.orig_filename:
            raise ModelRefused(f"the archive's member {name[:100]!r} lies outside of it")
        if item.compress_type != zipfile.ZIP_STORED or item.file_size != item.compress_size or item.flag_bits & 0x1:
            raise ModelRefused(f"the archive's member {name[:100]!r} is compressed or encrypted; torch stores them")
        root, _, rest = name.partition("/")
        roots.add(root)
        if rest in found:
            raise ModelRefused(f"the archive's member {name[:100]!r} is there twice")
        found[rest] = item
    if sum(item.file_size for item in items) > size:
        raise ModelRefused("the archive's members overlap: together they are longer than the file")
    if any(old in found or old in roots for old in _OLD):
        raise ModelRefused(f"the archive was saved by torch 2.7 or older, with pickles; save it as {RIGHT}")
    if "data.pkl" in found:
        raise ModelRefused(f"the file is a pickle, as torch.save writes it; it should be {RIGHT}")
    if len(roots) != 1:
        raise ModelUnreadable(f"the archive's members are not in one folder; it should be {RIGHT}")
    return found


def _view(name: str, record: str, meta: TensorMeta) -> View:
    if meta.dtype not in DTYPES or DTYPES[meta.dtype][0] is None:
        kind = DTYPES[meta.dtype][1] if meta.dtype in DTYPES else str(meta.dtype)
        raise ModelRefused(f"{name!r} is of type {kind}; weights are float32")
    if meta.layout != STRIDED:
        raise ModelRefused(f"{name!r} is a sparse tensor; only dense ones are taken")
    numbers = [item.as_int for item in (*meta.sizes, *meta.strides, meta.storage_offset)]
    if any(number is None for number in numbers):
        raise ModelRefused(f"{name!r} is of a size that is not fixed")
    if len(meta.sizes) != len(meta.strides) or any(number is not None and number < 0 for number in numbers):
        raise ModelRefused(f"{name!r} has negative sizes or strides, or not one stride per size")
    if len(meta.sizes) > MAX_RANK:
        raise ModelTooLarge(f"{name!r} has {len(meta.sizes)} dimensions; at most {MAX_RANK} are taken")
    sizes, strides = (tuple(item.as_int or 0 for item in group) for group in (meta.sizes, meta.strides))
    if math.prod(sizes) > MAX_TENSOR_ELEMENTS:
        raise ModelTooLarge(f"{name!r} has {math.prod(sizes)} elements; at most {MAX_TENSOR_ELEMENTS} are taken")
    return View(record, meta.dtype, sizes, strides, meta.storage_offset.as_int or 0)
