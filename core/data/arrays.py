"""Arrays of images and labels as a source: x_train, y_train and, where they are there, x_val, y_val, x_test, y_test.

x: N×H×W, N×H×W×C or N×C×H×W with C of 1 or 3, uint8, another integer type within 0-255, or floats within 0-1 or 0-255.
y: N (or N×1) integers 0..K-1; none at all, where there are no labels. `.npz` and IDX files hold them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.data.archive import GIB, first_faults
from core.data.pixels import resize
from core.data.rows import Rows
from core.data.shelf import Shelf
from core.data.source import Images, Source, SplitName, pointer
from core.data.unpacked import Array, Unpacked
from core.errors import DatasetUnsuitable, Fault
from core.job import Preprocess

MAX_BYTES = 32 * GIB
"""Of the images of one split."""

MAX_SIDE = 8192  # pixels, as for preprocess.size
MAX_CLASSES = 100_000
CHUNK_BYTES = 16 << 20
SUFFIXES: Mapping[str, SplitName] = {"train": "train", "val": "validation", "test": "test"}


def source_of(arrays: dict[str, Array], members: Mapping[str, str], preprocess: Preprocess, shelf: Shelf) -> Source:
    """The arrays as a source, in `shelf`; they are taken out of `arrays`, of which those of labels are in memory.
    `members`: what the file calls each, where that differs.

    Raises `DatasetTooLarge` or `DatasetUnsuitable` with the faults.
    """
    names = {name: members.get(name, name) for name in array_names()}
    faults = _pairing_faults(arrays, names) + _label_faults(arrays, names)
    layouts = {name: _layout(array) for name, array in arrays.items() if name[0] == "x"}
    extremes = {name: _extremes(arrays[name]) for name in layouts}
    faults += [fault for name in layouts for fault in _image_faults(names[name], arrays[name], extremes[name])]
    if len({_canonical_shape(arrays[name], layout)[1:] for name, layout in layouts.items() if layout}) > 1:
        shapes = ", ".join(f"{names[name]} {text_of(arrays[name].shape)}" for name in layouts)
        faults.append(Fault("/file", f"images of different shapes: {shapes}", "one height, width and channel count"))
    if faults:
        raise DatasetUnsuitable(f"the arrays have {len(faults)} fault(s)", faults=first_faults(faults))
    labelled = "y_train" in arrays
    floats = all(arrays[name].dtype.kind == "f" for name in layouts)
    value_range = "0-1" if floats and all(high <= 1 for _, high in extremes.values()) else "0-255"
    splits: dict[SplitName, Images] = {}
    exact = all(_is_exact(arrays[name], value_range) for name in layouts)
    held = {name: _Held(str(layout), value_range, exact, preprocess.size) for name, layout in layouts.items()}
    _reserve(shelf, {name: arrays[name] for name in layouts}, held)
    for suffix, split in SUFFIXES.items():
        if f"x_{suffix}" not in arrays:
            continue
        # popped, so that an array in another type is gone once its uint8 form is there
        x = _placed(arrays.pop(f"x_{suffix}"), held[f"x_{suffix}"], shelf)
        labels = np.asarray(arrays.pop(f"y_{suffix}")[:]) if labelled else np.zeros(len(x))
        splits[split] = Images(x, torch.from_numpy(labels.reshape(-1).astype(np.int64)))
    number = int(max(images.y.max() for images in splits.values())) + 1 if labelled else 0
    classes = tuple(str(label) for label in range(number))
    details = {"value_range": value_range, "array_layout": layouts["x_train"]}
    warnings = [] if exact else ["float images that uint8 would round are held as float32, four times the memory"]
    if not labelled:
        warnings.append(f"no labels: there is no {names['y_train']}; for tasks that need none")
    return Source(splits, classes, details, warnings)


def array_names() -> list[str]:
    return [f"{kind}_{suffix}" for suffix in SUFFIXES for kind in "xy"]


def _pairing_faults(arrays: Mapping[str, Array], names: Mapping[str, str]) -> list[Fault]:
    expected = ", ".join(names.values())
    faults = []
    labelled = any(name[0] == "y" for name in arrays) or "x_train" not in arrays
    for suffix in SUFFIXES:
        x, y = arrays.get(f"x_{suffix}"), arrays.get(f"y_{suffix}")
        missing = [name for name, array in ((f"x_{suffix}", x), (f"y_{suffix}", y)) if array is None]
        if not labelled:
            continue
        if len(missing) == 1 or (missing and suffix == "train"):
            faults += [Fault(pointer("file", names[name]), f"{names[name]} is missing", expected) for name in missing]
        elif x is not None and y is not None and x.shape[:1] != y.shape[:1]:
            images, labels = names[f"x_{suffix}"], names[f"y_{suffix}"]
            message = f"{images} is {text_of(x.shape)}, {labels} is {text_of(y.shape)}"
            faults.append(Fault(pointer("file", labels), message, "one label per image"))
    return faults


def _label_faults(arrays: Mapping[str, Array], names: Mapping[str, str]) -> list[Fault]:
    faults = []
    labels: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if name[0] != "y":
            continue
        where = pointer("file", names[name])
        if array.ndim != 1 and not (array.ndim == 2 and array.shape[1] == 1):
            hint = " (one-hot labels? give y.argmax(1))" if array.ndim == 2 else ""
            faults.append(Fault(where, f"labels are {text_of(array.shape)}{hint}", "one integer per image, shape (N,)"))
        elif array.dtype.kind == "f":
            faults.append(Fault(where, f"labels are {array.dtype}", "integers 0..K-1"))
        elif array.size == 0:
            faults.append(Fault(where, "no labels", "at least one"))
        else:
            labels[name] = np.unique(array[:])
    trained = labels.get("y_train")
    if trained is None:
        return faults
    if int(trained[0]) != 0 or int(trained[-1]) != len(trained) - 1:
        # unique and ascending: they are 0..K-1 exactly when they start at 0 and end at their number less 1
        message = f"{len(trained)} different labels from {trained[0]} to {trained[-1]}"
        faults.append(Fault(pointer("file", names["y_train"]), message, f"each of 0..{len(trained) - 1}"))
    elif len(trained) > MAX_CLASSES:
        faults.append(Fault(pointer("file", names["y_train"]), f"{len(trained)} classes", f"at most {MAX_CLASSES}"))
    for name, found in labels.items():
        if name != "y_train" and not np.isin(found, trained).all():
            odd = np.setdiff1d(found, trained)[:10].tolist()
            trains = names["y_train"]
            faults.append(
                Fault(pointer("file", names[name]), f"labels {odd} are not in {trains}", f"labels of {trains} only")
            )
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


def _image_faults(name: str, array: Array, extremes: tuple[float, float]) -> list[Fault]:
    where = pointer("file", name)
    layout = _layout(array)
    if layout is None:
        both = array.ndim == 4 and array.shape[1] in (1, 3)
        message = f"images are {text_of(array.shape)}" + (", N×C×H×W and N×H×W×C alike" if both else "")
        return [Fault(where, message, "N×H×W, N×H×W×C or N×C×H×W with 1 or 3 channels")]
    if array.size == 0:
        return [Fault(where, f"images are {text_of(array.shape)}: none", "at least one image")]
    if max(_canonical_shape(array, layout)[2:]) > MAX_SIDE:
        return [Fault(where, f"images are {text_of(array.shape)}", f"at most {MAX_SIDE} pixels a side")]
    low, high = extremes
    if not (low >= 0 and high <= 255):  # NaN fails too
        message = f"values from {low:g} to {high:g}"
        return [Fault(where, message, "0-1 or 0-255, before normalisation (which preprocess.mean and std describe)")]
    return []


def _extremes(array: Array) -> tuple[float, float]:
    """The least and the largest value; NaN where there is one."""
    if array.dtype == np.uint8 or not array.size or not array.ndim:
        return 0.0, 255.0
    found = [(part.min(), part.max()) for part in _parts(array, _rows(array))]
    low, high = zip(*found, strict=True)
    return float(np.min(low)), float(np.max(high))


def _parts(array: Array, step: int) -> Iterator[NDArray[Any]]:
    for start in range(0, len(array), step):
        yield array[start : start + step]


def _rows(array: Array) -> int:
    return max(1, CHUNK_BYTES // max(1, math.prod(array.shape[1:]) * 8))


def _raw(part: NDArray[Any], value_range: str) -> NDArray[Any]:
    """Values in 0-255. float16 and float32 in 0-1 are widened first: k/255 · 255 must come back to k."""
    return part.astype(np.float64) * 255 if value_range == "0-1" else part


def _is_exact(array: Array, value_range: str) -> bool:
    """Whether uint8 holds the images without loss: integers, or floats that came from k or k/255."""
    if array.dtype.kind != "f":
        return True
    # k/255 rounded to this float type is off by at most half its epsilon; twice that on the 0-255 scale, with room
    tolerance = 255 * float(np.finfo(array.dtype).eps) if value_range == "0-1" else 0.0
    for part in _parts(array, _rows(array)):
        raw = _raw(part, value_range)
        if np.abs(raw - np.rint(raw)).max() > tolerance:
            return False
    return True


@dataclass(frozen=True)
class _Held:
    """How images of one array are to be held."""

    layout: str
    value_range: str
    exact: bool
    size: tuple[int, int] | None

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if self.exact else torch.float32

    def shape(self, array: Array) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        _, channels, height, width = _canonical_shape(array, self.layout)
        return (channels, *(self.size or (height, width)))

    def as_it_is(self, array: Array) -> bool:
        """Whether the array is just this already."""
        numbers = array.dtype == (np.uint8 if self.exact else np.float32) and self.value_range == "0-255"
        in_order = array.flags.c_contiguous if isinstance(array, np.ndarray) else True
        channels, height, width = _canonical_shape(array, self.layout)[1:]
        planes = self.layout != "NHWC" or channels == 1
        return numbers and in_order and planes and self.size in (None, (height, width))


def _reserve(shelf: Shelf, arrays: Mapping[str, Array], held: Mapping[str, _Held]) -> None:
    """Room for all of them; what lies in a file already just as it is to be held needs no more."""
    sizes = {name: len(array) * math.prod(held[name].shape(array)) * held[name].dtype.itemsize
             for name, array in arrays.items()}  # fmt: skip
    already = sum(sizes[name] for name, array in arrays.items() if _is_in_place(array, held[name]))
    shapes = ", ".join(text_of((len(array), *held[name].shape(array))) for name, array in arrays.items())
    shelf.reserve(sum(sizes.values()), already=already, pointer="/file", what=f"images of {shapes}")


def _is_in_place(array: Array, held: _Held) -> bool:
    return isinstance(array, Unpacked) and held.as_it_is(array)


def _placed(array: Array, held: _Held, shelf: Shelf) -> torch.Tensor | Rows:
    """(N, C, H, W), uint8 where that is exact, else float32, 0-255."""
    shape = held.shape(array)
    if held.as_it_is(array):
        if isinstance(array, Unpacked) and not shelf.in_memory:
            return array.as_rows(shape, held.dtype)
        if isinstance(array, np.ndarray) and shelf.in_memory:
            return torch.from_numpy(array.reshape(len(array), *shape))
    rows = shelf.rows(len(array), shape, held.dtype)
    step = min(_rows(array), max(1, CHUNK_BYTES // math.prod(shape)))
    for number, part in enumerate(_parts(array, step)):
        images = _canonical(_raw(part, held.value_range), held.layout)
        if held.exact and images.dtype.kind == "f":
            images = np.rint(images)
        pixels = torch.from_numpy(np.ascontiguousarray(images, np.uint8 if held.exact else np.float32))
        rows.write(number * step, pixels if held.size is None else resize(pixels, held.size))
    if isinstance(array, Unpacked):
        shelf.give_back(array.file)
    return rows.finish(len(array))


def _canonical(images: NDArray[Any], layout: str) -> NDArray[Any]:
    """A view (N, C, H, W)."""
    if layout == "NHW":
        return images[:, None]
    return images.transpose(0, 3, 1, 2) if layout == "NHWC" else images


def text_of(shape: tuple[int, ...]) -> str:
    return "×".join(str(size) for size in shape) if shape else "a single number"
