"""`.npz` files: x_train, y_train and, where they are there, x_val, y_val, x_test, y_test. Nothing is ever unpickled.

x: N×H×W, N×H×W×C or N×C×H×W with C of 1 or 3, uint8, another integer type within 0-255, or floats within 0-1 or 0-255.
y: N (or N×1) integers 0..K-1. Each array's header is checked against its size in the archive before memory is taken.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from core.data.archive import GIB, Limits, first_faults, open_archive
from core.data.pixels import resize
from core.data.source import Images, Source, SplitName, pointer
from core.errors import DatasetTooLarge, DatasetUnreadable, DatasetUnsuitable, Fault
from core.job import Preprocess

_ZIP = "an image folder is a .zip"
LIMITS = Limits(members=64, member_bytes=32 * GIB, total_bytes=64 * GIB, members_hint=f" of an .npz; {_ZIP}")
MAX_SIDE = 8192  # pixels, as for preprocess.size
MAX_CLASSES = 100_000
_CHUNK_BYTES = 16 << 20
_SUFFIX: Mapping[str, SplitName] = {"train": "train", "val": "validation", "test": "test"}
_ALLOWED = "x_train, y_train, x_val, y_val, x_test, y_test"
Array = NDArray[Any]


def read_npz(path: Path | None, preprocess: Preprocess) -> Source:
    """The arrays as a source. Raises `DatasetUnreadable`, `DatasetTooLarge` or `DatasetUnsuitable` with the faults."""
    if path is None:
        raise DatasetUnreadable("npz needs a file", faults=[Fault("/file", "no file was given", "an .npz file")])
    arrays = _read_arrays(path)
    faults = _pairing_faults(arrays) + _label_faults(arrays)
    layouts = {name: _layout(array) for name, array in arrays.items() if name[0] == "x"}
    faults += [fault for name, array in arrays.items() if name[0] == "x" for fault in _image_faults(name, array)]
    if len({_canonical_shape(arrays[name], layout)[1:] for name, layout in layouts.items() if layout}) > 1:
        shapes = ", ".join(f"{name} {_text(arrays[name].shape)}" for name in layouts)
        faults.append(Fault("/file", f"images of different shapes: {shapes}", "one height, width and channel count"))
    if faults:
        raise DatasetUnsuitable(f"the arrays have {len(faults)} fault(s)", faults=first_faults(faults))
    value_range = _value_range([arrays[name] for name in layouts])
    splits: dict[SplitName, Images] = {}
    exact = all(_is_exact(arrays[name], value_range) for name in layouts)
    for suffix, split in _SUFFIX.items():
        if f"x_{suffix}" not in arrays:
            continue
        # popped, so that an array in another type is gone once its uint8 form is there
        layout = layouts[f"x_{suffix}"]
        assert layout is not None  # a fault otherwise
        x = _as_tensor(arrays.pop(f"x_{suffix}"), layout, value_range, exact)
        if preprocess.size is not None:
            x = resize(x, preprocess.size)
        splits[split] = Images(x, torch.from_numpy(arrays.pop(f"y_{suffix}").reshape(-1).astype(np.int64)))
    classes = tuple(str(label) for label in range(int(max(images.y.max() for images in splits.values())) + 1))
    details = {"value_range": value_range, "array_layout": layouts["x_train"]}
    warnings = [] if exact else ["float images that uint8 would round are held as float32, four times the memory"]
    return Source(splits, classes, details, warnings)


def _read_arrays(path: Path) -> dict[str, Array]:
    with open_archive(path, LIMITS) as (archive, members):
        if members and not any(member.filename.endswith(".npy") for member in members):
            fault = Fault("/file", "no .npy members", f"the arrays {_ALLOWED}; {_ZIP}")
            raise DatasetUnreadable("the file holds no arrays", faults=[fault])
        unknown = [member for member in members if member.filename not in {f"{name}.npy" for name in _names()}]
        if unknown:
            faults = [Fault(pointer("file", member.filename), "not an array that is known", _ALLOWED)
                      for member in unknown]  # fmt: skip
            raise DatasetUnreadable("the file holds other things than the arrays of a dataset", faults=faults)
        arrays: dict[str, Array] = {}
        faults = []
        for member in members:
            try:
                arrays[member.filename.removesuffix(".npy")] = _read_array(archive, member)
            except _Refused as refused:
                faults.append(Fault(pointer("file", member.filename), refused.message, refused.expected))
            except MemoryError:
                raise
            except Exception:  # zipfile and numpy's parser of a header raise a dozen kinds on hostile bytes
                where = pointer("file", member.filename)
                faults.append(Fault(where, "damaged, or no .npy array", "an undamaged array"))
        if faults:
            raise DatasetUnreadable("arrays of the file cannot be read", faults=faults)
    return arrays


class _Refused(Exception):
    def __init__(self, message: str, expected: str) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise _Refused(f".npy version {version[0]}.{version[1]}", "version 1.0 or 2.0")
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read_header(stream)
        if dtype.hasobject:
            raise _Refused("an array of Python objects, which would have to be unpickled", "an array of numbers")
        if dtype.kind not in "uif":
            raise _Refused(f"type {dtype}", "uint8, or another integer or float type")
        size = math.prod(shape) * dtype.itemsize
        held = member.file_size - stream.tell()
        if min(shape, default=0) < 0 or size != held:
            message = f"the header says {_text(shape)} {dtype}, {size} bytes; there are {held}"
            raise _Refused(message, "as many bytes as the header says")
        flat = np.empty(math.prod(shape), dtype)
        # no memoryview of an empty array can be cast to bytes
        rest = flat.view(np.uint8).data if flat.size else memoryview(b"")
        while rest:
            data = stream.read(min(len(rest), _CHUNK_BYTES))
            if not data:
                raise EOFError
            rest[: len(data)] = data
            rest = rest[len(data) :]
        stream.read(1)  # reaching the end checks the CRC
        return flat.reshape(shape, order="F" if fortran_order else "C")


def _names() -> list[str]:
    return [f"{kind}_{suffix}" for suffix in _SUFFIX for kind in "xy"]


def _pairing_faults(arrays: Mapping[str, Array]) -> list[Fault]:
    faults = []
    for suffix in _SUFFIX:
        x, y = arrays.get(f"x_{suffix}"), arrays.get(f"y_{suffix}")
        missing = [name for name, array in ((f"x_{suffix}", x), (f"y_{suffix}", y)) if array is None]
        if len(missing) == 1 or (missing and suffix == "train"):
            faults += [Fault(pointer("file", name), f"the array {name} is missing", _ALLOWED) for name in missing]
        elif x is not None and y is not None and x.shape[:1] != y.shape[:1]:
            message = f"x_{suffix} is {_text(x.shape)}, y_{suffix} is {_text(y.shape)}"
            faults.append(Fault(pointer("file", f"y_{suffix}"), message, "one label per image"))
    return faults


def _label_faults(arrays: Mapping[str, Array]) -> list[Fault]:
    faults = []
    labels: dict[str, Array] = {}
    for name, array in arrays.items():
        if name[0] != "y":
            continue
        where = pointer("file", name)
        if array.ndim != 1 and not (array.ndim == 2 and array.shape[1] == 1):
            hint = " (one-hot labels? give y.argmax(1))" if array.ndim == 2 else ""
            faults.append(Fault(where, f"labels are {_text(array.shape)}{hint}", "one integer per image, shape (N,)"))
        elif array.dtype.kind == "f":
            faults.append(Fault(where, f"labels are {array.dtype}", "integers 0..K-1"))
        elif array.size == 0:
            faults.append(Fault(where, "no labels", "at least one"))
        else:
            labels[name] = np.unique(array)
    trained = labels.get("y_train")
    if trained is None:
        return faults
    if int(trained[0]) != 0 or int(trained[-1]) != len(trained) - 1:
        # unique and ascending: they are 0..K-1 exactly when they start at 0 and end at their number less 1
        message = f"{len(trained)} different labels from {trained[0]} to {trained[-1]}"
        faults.append(Fault("/file/y_train", message, f"each of 0..{len(trained) - 1}"))
    elif len(trained) > MAX_CLASSES:
        faults.append(Fault("/file/y_train", f"{len(trained)} classes", f"at most {MAX_CLASSES}"))
    for name, found in labels.items():
        if name != "y_train" and not np.isin(found, trained).all():
            odd = np.setdiff1d(found, trained)[:10].tolist()
            faults.append(Fault(pointer("file", name), f"labels {odd} are not in y_train", "labels of y_train only"))
    return faults


def _layout(array: Array) -> str | None:
    if array.ndim == 3:
        return "NHW"
    if array.ndim != 4:
        return None
    last, second = array.shape[3] in (1, 3), array.shape[1] in (1, 3)
    return None if last == second else ("NHWC" if last else "NCHW")


def _canonical_shape(array: Array, layout: str | None) -> tuple[int, ...]:
    """(N, C, H, W)"""
    if layout == "NHW":
        return (len(array), 1, *array.shape[1:])
    return array.shape if layout == "NCHW" else tuple(array.shape[axis] for axis in (0, 3, 1, 2))


def _image_faults(name: str, array: Array) -> list[Fault]:
    where = pointer("file", name)
    layout = _layout(array)
    if layout is None:
        both = array.ndim == 4 and array.shape[1] in (1, 3)
        message = f"images are {_text(array.shape)}" + (", N×C×H×W and N×H×W×C alike" if both else "")
        return [Fault(where, message, "N×H×W, N×H×W×C or N×C×H×W with 1 or 3 channels")]
    if array.size == 0:
        return [Fault(where, f"images are {_text(array.shape)}: none", "at least one image")]
    if max(_canonical_shape(array, layout)[2:]) > MAX_SIDE:
        return [Fault(where, f"images are {_text(array.shape)}", f"at most {MAX_SIDE} pixels a side")]
    low, high = _extremes(array)
    if not (low >= 0 and high <= 255):  # NaN fails too
        message = f"values from {low:g} to {high:g}"
        return [Fault(where, message, "0-1 or 0-255, before normalisation (which preprocess.mean and std describe)")]
    return []


def _extremes(array: Array) -> tuple[float, float]:
    return float(array.min()), float(array.max())


def _value_range(arrays: list[Array]) -> str:
    """`0-1` for floats none of which is above 1, in any split; else `0-255`."""
    floats = all(array.dtype.kind == "f" for array in arrays)
    return "0-1" if floats and all(_extremes(array)[1] <= 1 for array in arrays) else "0-255"


def _rows(array: Array) -> int:
    return max(1, _CHUNK_BYTES // max(1, math.prod(array.shape[1:]) * 8))


def _raw(part: Array, value_range: str) -> Array:
    """Values in 0-255. float16 and float32 in 0-1 are widened first: k/255 · 255 must come back to k."""
    return part.astype(np.float64) * 255 if value_range == "0-1" else part


def _is_exact(array: Array, value_range: str) -> bool:
    """Whether uint8 holds the images without loss: integers, or floats that came from k or k/255."""
    if array.dtype.kind != "f":
        return True
    # k/255 rounded to this float type is off by at most half its epsilon; twice that on the 0-255 scale, with room
    tolerance = 255 * float(np.finfo(array.dtype).eps) if value_range == "0-1" else 0.0
    step = _rows(array)
    for start in range(0, len(array), step):
        raw = _raw(array[start : start + step], value_range)
        if np.abs(raw - np.rint(raw)).max() > tolerance:
            return False
    return True


def _as_tensor(array: Array, layout: str, value_range: str, exact: bool) -> torch.Tensor:
    """(N, C, H, W), uint8 where that is exact, else float32, 0-255."""
    shape = _canonical_shape(array, layout)
    dtype = np.uint8 if exact else np.float32
    if math.prod(shape) * np.dtype(dtype).itemsize > LIMITS.member_bytes:
        fault = Fault("/file", f"images of {math.prod(shape)} values", f"at most {LIMITS.member_bytes} bytes")
        raise DatasetTooLarge("the images do not fit in memory", faults=[fault])
    if layout == "NHW":
        array = array[:, None]
    elif layout == "NHWC":
        array = array.transpose(0, 3, 1, 2)
    if array.dtype == dtype and value_range == "0-255" and array.flags.c_contiguous:
        return torch.from_numpy(array)
    held = np.empty(shape, dtype)
    step = _rows(array)
    for start in range(0, len(array), step):
        raw = _raw(array[start : start + step], value_range)
        held[start : start + step] = np.rint(raw) if exact and raw.dtype.kind == "f" else raw
    return torch.from_numpy(held)


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(str(size) for size in shape) if shape else "a single number"
