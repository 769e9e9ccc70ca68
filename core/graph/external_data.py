"""Weights in files beside an ONNX model ("external data"): read out of a zip, and written beside a large result.

In: a zip of one .onnx file and the files that it names, nothing else. A name is a plain file name, looked up among the
members of the same zip and nowhere else; no path is made of it, and reading writes nothing to disk (the threats are
CVE-2022-25882, CVE-2024-27318, CVE-2024-5187 and CVE-2025-51480: names that climb out, links, and files that a loader
opens for its caller). Members that are stored, not packed, are mapped into memory, not read into it.

Out: a message of protobuf ends at 2 GiB. Past that the weights go to `NAME.onnx.data` beside `NAME.onnx`.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto

from core.data.archive import Limits, open_archive, read_member
from core.errors import DatasetRefused, DatasetTooLarge, Fault, ModelRefused, ModelTooLarge, ModelUnreadable
from core.graph.limits import MAX_FILE_BYTES, MAX_WEIGHTS_BYTES
from core.graph.onnx_checks import ITEM_BYTES, check_size, parse

Array = npt.NDArray[Any]

GIB = 2**30
LIMITS = Limits(
    members=20_000,
    member_bytes=MAX_WEIGHTS_BYTES,
    total_bytes=MAX_WEIGHTS_BYTES,
    ratio=200.0,
    ratio_floor_bytes=2**28,
)
RIGHT = "a zip of one .onnx file and the data files that it names, without folders (zip -0 -j)"
ROOM = 64 * 2**20
"""Of the 2 GiB of a message, what is left to the graph."""
INLINE_BYTES = 1024
"""Weights of fewer bytes stay in the model: shapes and single numbers, which checkers and runtimes read themselves."""
MOST_INLINE_BYTES = MAX_FILE_BYTES - ROOM
"""Of weights in a model that is one file."""
ALIGNMENT = 4096
"""Of each weight in the data file: so that it can be mapped into memory."""

_PLAIN = re.compile(r"[^/\\:\x00-\x1f\x7f]{1,200}")
_LOCAL_HEADER = struct.Struct("<26x2H")
_DTYPES: Mapping[int, str] = {
    TensorProto.FLOAT: "<f4", TensorProto.DOUBLE: "<f8", TensorProto.INT64: "<i8", TensorProto.INT32: "<i4",
    TensorProto.BOOL: "?", TensorProto.FLOAT16: "<f2", TensorProto.INT8: "i1", TensorProto.UINT8: "u1",
    TensorProto.INT16: "<i2", TensorProto.UINT16: "<u2", TensorProto.UINT32: "<u4", TensorProto.UINT64: "<u8",
}  # fmt: skip


# --- in --------------------------------------------------------------------------------------------------------------


def read_upload(path: Path) -> tuple[ModelProto, dict[str, Array]]:
    """An uploaded model, alone or in a zip, and those of its initialisers that lie in other files, by name.

    Raises subclasses of `ModelRefused`.
    """
    if is_archive(path):
        return read_archive(path)
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ModelTooLarge(f"the file has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are taken")
    return parse(path.read_bytes()), {}


def is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def read_archive(path: Path) -> tuple[ModelProto, dict[str, Array]]:
    """The model in a zip, and by name those of its initialisers that lie in the files beside it.

    Raises `ModelUnreadable` (damaged, or no model in it), `ModelTooLarge` (past a cap), `ModelRefused` (a member that
    is missing, not named or not plain; an offset or length outside its member).
    """
    with _opened(path) as (archive, members):
        name = _model_name(members)
        model = parse(_content(archive, members[name]))
        tensors = [tensor for tensor in model.graph.initializer if _is_external(tensor)]
        _check_members(members, name, tensors)
        contents = {member: _mapped(path, archive, members[member]) for member in members if member != name}
        return model, {tensor.name: _array(tensor, contents) for tensor in tensors}


def unpack(path: Path, folder: Path) -> Path:
    """The model itself as a file that a runtime can open: `path`, or for a zip its .onnx, unpacked with its data into
    `folder`. The names are those that `read_archive` has checked. Raises as it does."""
    if not is_archive(path):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(path) as (archive, members):
        name = _model_name(members)
        model = parse(_content(archive, members[name]))
        _check_members(members, name, [tensor for tensor in model.graph.initializer if _is_external(tensor)])
        for member in members.values():
            with archive.open(member) as packed, (folder / member.filename).open("wb") as file:
                while piece := packed.read(2**20):
                    file.write(piece)
    return folder / name


@contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """The checks are those of a dataset's archive; what they refuse is a model here."""
    try:
        with open_archive(path, LIMITS) as (archive, members):
            yield archive, {member.filename: member for member in members}
    except DatasetTooLarge as error:
        raise ModelTooLarge(error.message, faults=error.faults) from None
    except DatasetRefused as error:
        raise ModelUnreadable(f"{error.message}; it should be {RIGHT}", faults=error.faults) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise ModelUnreadable(f"the zip archive is damaged ({type(error).__name__}); it should be {RIGHT}") from None


def _model_name(members: Mapping[str, zipfile.ZipInfo]) -> str:
    models = [name for name in members if name.lower().endswith(".onnx")]
    if not models:
        raise ModelUnreadable(
            "the file is a zip archive (such as a .pt, .pth or .pt2 file) without a .onnx file in it; it should hold "
            f"an ONNX model, as torch.onnx.export writes it, or be {RIGHT}; what torch.export.save writes is named .pt2"
        )
    if len(models) > 1:
        raise ModelRefused(f"the zip holds {len(models)} ONNX models ({', '.join(sorted(models)[:4])}); one is taken")
    return models[0]


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > MAX_FILE_BYTES:
        raise ModelTooLarge(f"{member.filename!r} has {member.file_size} bytes; at most {MAX_FILE_BYTES} are taken")
    return read_member(archive, member)


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def _check_members(members: Mapping[str, zipfile.ZipInfo], model: str, tensors: list[TensorProto]) -> None:
    """Raises `ModelRefused` with every member that is not plain, missing or not named."""
    faults = [
        Fault(f"/file/{_pointer(name)}", "not a plain file name", "files without folders, as zip -j packs them")
        for name in members
        if not _is_plain(name)
    ]
    named: dict[str, str] = {}
    for tensor in tensors:
        location = _entries(tensor).get("location", "")
        if not _is_plain(location):
            message = f"the initialiser {tensor.name!r} keeps its data in {location[:200]!r}"
            faults.append(Fault(f"/graph/initializer/{_pointer(tensor.name)}", message, "a plain file name"))
        else:
            named.setdefault(location, tensor.name)
    for name, tensor_name in named.items():
        if name not in members or name == model:
            message = f"the initialiser {tensor_name!r} keeps its data in {name!r}, which is not in the zip"
            faults.append(Fault(f"/graph/initializer/{_pointer(tensor_name)}", message, f"{name} beside {model}"))
    for name in members:
        if name != model and name not in named and _is_plain(name):
            message = f"the member {name!r} is not named by the model"
            faults.append(Fault(f"/file/{_pointer(name)}", message, "the model and the files that it names"))
    if faults:
        raise ModelRefused(f"{faults[0].message}; it should be {RIGHT}", faults=faults[:20])
    held = sum(member.file_size for name, member in members.items() if name != model)
    wanted = sum(_bytes_of(tensor) for tensor in tensors)
    if wanted > held:
        raise ModelTooLarge(f"the initialisers are {wanted} bytes in all, the data files {held}: they overlap")


def _bytes_of(tensor: TensorProto) -> int:
    return check_size(tensor, f"the initialiser {tensor.name!r}") * ITEM_BYTES[tensor.data_type]


def _mapped(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[np.uint8]:
    """The bytes of a member, its checksum compared: mapped where it is stored, unpacked where it is not."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size == 0:
        return np.frombuffer(read_member(archive, member), dtype=np.uint8)
    with archive.open(member) as stream:  # this checks the header, and the checksum at the end
        while stream.read(2**20):
            pass
    with path.open("rb") as file:
        file.seek(member.header_offset)
        name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start = member.header_offset + _LOCAL_HEADER.size + name + extra
    return np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=(member.file_size,))


def _array(tensor: TensorProto, contents: Mapping[str, npt.NDArray[np.uint8]]) -> Array:
    """The numbers of an initialiser: a view of the member that it names."""
    entries = _entries(tensor)
    content = contents[entries["location"]]
    what = f"the initialiser {tensor.name!r}"
    numbers = {}
    for key, default in (("offset", 0), ("length", None)):
        text = entries.get(key)
        if text is not None and not re.fullmatch(r"[0-9]{1,18}", text):
            raise ModelRefused(
                f"{what} has the {key} {text[:40]!r} in {entries['location']!r}; a number of bytes is needed"
            )
        numbers[key] = default if text is None else int(text)
    size, offset = _bytes_of(tensor), numbers["offset"] or 0
    length = size if numbers["length"] is None else numbers["length"]
    if length != size:
        raise ModelRefused(
            f"{what} has {length} bytes in {entries['location']!r} for {math.prod(tensor.dims)} elements"
        )
    if offset + size > len(content):
        raise ModelRefused(
            f"{what} lies at {offset} to {offset + size} in {entries['location']!r}, which has {len(content)} bytes"
        )
    piece = content[offset : offset + size]
    if tensor.data_type not in _DTYPES:
        whole = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=piece.tobytes())
        return np.asarray(onnx.numpy_helper.to_array(whole))
    return piece.view(_DTYPES[tensor.data_type]).reshape(tuple(tensor.dims))


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {item.key: item.value for item in tensor.external_data}


def _is_plain(name: str) -> bool:
    return _PLAIN.fullmatch(name) is not None and name not in (".", "..") and not name.startswith("~")


def _pointer(name: str) -> str:
    return name[:200].replace("~", "~0").replace("/", "~1")


# --- out -------------------------------------------------------------------------------------------------------------


def save(model: ModelProto, path: Path, *, above_bytes: int | None = None) -> None:
    """Writes `model`, checked in full by `onnx.checker`: one file, or where its weights are more than `above_bytes` in
    all (None: as many as one file can hold) two, the second called `path` and ".data"."""
    data = path.with_name(f"{path.name}.data")
    if not _is_two_files(model, above_bytes):
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))
        data.unlink(missing_ok=True)  # of an earlier attempt
        return
    move_out(model, data)
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(path), full_check=True)  # by path: it looks for the data


def saved_bytes(model: ModelProto, name: str, *, above_bytes: int | None = None) -> int:
    """How many bytes `save` would write to a path of that name, both files together. Weights may be moved out of
    `model` on the way."""
    if not _is_two_files(model, above_bytes):
        return int(model.ByteSize())
    end = 0
    for offset, content in _moved_out(model, f"{name}.data"):
        end = offset + len(content)
    return end + int(model.ByteSize())


def _is_two_files(model: ModelProto, above_bytes: int | None) -> bool:
    most = MOST_INLINE_BYTES if above_bytes is None else min(above_bytes, MOST_INLINE_BYTES)
    sizes = [len(tensor.raw_data) for tensor in model.graph.initializer]
    return sum(sizes) > most and max(sizes) >= INLINE_BYTES


def move_out(model: ModelProto, data: Path) -> None:
    """Moves the weights of `model` from the message into the file `data`, in order, each at a multiple of 4096."""
    with data.open("wb") as file:
        for offset, content in _moved_out(model, data.name):
            file.write(bytes(offset - file.tell()))
            file.write(content)


def _moved_out(model: ModelProto, location: str) -> Iterator[tuple[int, bytes]]:
    """Takes the weights out of `model`, which then says where in the file `location` they are: that place, and what is
    to be there."""
    end = 0
    for tensor in model.graph.initializer:
        content = tensor.raw_data
        if len(content) < INLINE_BYTES:
            continue
        offset = end + -end % ALIGNMENT
        end = offset + len(content)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", len(content))):
            tensor.external_data.add(key=key, value=str(value))
        yield offset, content


def parts(path: Path) -> list[Path]:
    """`path`, a model of ours or one that `unpack` has checked, and the data files beside it."""
    model = onnx.load(path, load_external_data=False)
    names = {_entries(tensor)["location"] for tensor in model.graph.initializer if _is_external(tensor)}
    return [path, *(path.with_name(name) for name in sorted(names) if _is_plain(name))]
