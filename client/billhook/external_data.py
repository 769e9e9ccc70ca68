"""ONNX models that keep their weights in other files ("external data"), on their way to a server as one zip.

`torch.onnx.export` leaves a model like this unless it is told otherwise. Which files a model names is read off the
protobuf itself: messages and their fields, nothing else of ONNX, so that the client stays small.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from billhook.archive import LocalFile, local_file, write_zip
from billhook.errors import InputInvalid

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
GRAPH, INITIALIZER = 7, 5  # of ModelProto, of GraphProto
EXTERNAL_DATA, KEY, VALUE = 13, 1, 2  # of TensorProto, of StringStringEntryProto
MAX_FIELDS = 500_000  # of one message; a file of another kind may look like billions of them
Span = tuple[int, int]


def model_file(path: Path, scratch: Path) -> LocalFile:
    """`path`; or, where it is an ONNX model with weights in files beside it, a zip of it and them in `scratch`.

    The same files are the same bytes. Raises `InputInvalid` where a file is missing, or would not be beside the model.
    """
    names = data_files(path)
    if not names:
        return local_file(path)
    for name in names:
        if "/" in name or "\\" in name or name in (".", ".."):
            raise InputInvalid(f"{path} keeps weights in {name!r}: only files in the same folder are taken")
        if not (path.parent / name).is_file():
            raise InputInvalid(f"{path} keeps weights in {name!r}, which is not in the same folder")
    target = scratch / "model.zip"
    try:
        write_zip(path.parent, [path.name, *(name for name in names if name != path.name)], target)
    except OSError as error:
        raise InputInvalid(f"{path} cannot be zipped: {error.strerror or error}") from None
    return local_file(target)


def data_files(path: Path) -> list[str]:
    """The names of the files that the weights of an ONNX model lie in, sorted. None of a file that cannot be read or is
    no ONNX model: what is wrong with that, others say."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return sorted({name for name in _locations(data) if name})
    except (OSError, ValueError, IndexError):
        return []


def _locations(data: mmap.mmap) -> Iterator[str]:
    for graph in _messages(data, (0, len(data)), GRAPH):
        for tensor in _messages(data, graph, INITIALIZER):
            for entry in _messages(data, tensor, EXTERNAL_DATA):
                texts = {field: _text(data, entry, field) for field in (KEY, VALUE)}
                if texts[KEY] == "location":
                    yield texts[VALUE]


def _text(data: mmap.mmap, entry: Span, field: int) -> str:
    return "".join(data[start:end].decode() for start, end in _messages(data, entry, field))


def _messages(data: mmap.mmap, span: Span, wanted: int) -> Iterator[Span]:
    """Where the fields with this number lie, of those that have a length. Raises `ValueError`, `IndexError` for bytes
    that are no message."""
    at, end = span
    left = MAX_FIELDS
    while at < end:
        tag, at = _varint(data, at)
        start, kind = at, tag & 7
        left -= 1
        if tag >> 3 == 0 or left < 0:
            raise ValueError("no message of ONNX")
        if kind == VARINT:
            _, at = _varint(data, at)
        elif kind == LENGTH:
            size, start = _varint(data, at)
            at = start + size
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise ValueError("no message of protobuf")
        if at > end:
            raise ValueError("a field that ends behind its message")
        if kind == LENGTH and tag >> 3 == wanted:
            yield start, at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ValueError("a number of more than ten bytes")
