"""Folding: what an ONNX graph computes from constants and shapes alone, worked out while it is read.

Sizes that are not fixed take part as `Batch` and `Dynamic` objects in arrays of objects: they can be moved about
(Gather, Concat, Slice …) but not computed with, so that no size of an example ends up in the network. Nothing here
makes more than `MAX_FOLDED_ELEMENTS` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto

from core.errors import ModelRefused, ModelTooLarge
from core.graph.limits import MAX_FOLDED_ELEMENTS, MAX_RANK

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """The batch size, whatever it is."""


@dataclass(frozen=True)
class Dynamic:
    """Another dynamic dimension of an input, or a size that depends on one."""


class CannotFold(Exception):
    """This node is not folded (it computes with a dynamic size, or in a way that is not on the list)."""


def shape_vector(shape: tuple[int, ...], dynamic_space: bool) -> Array:
    """The value of `Shape`: the batch and, where the space is dynamic, all other sizes stay symbols."""
    vector = np.empty(len(shape), dtype=object)
    for index, size in enumerate(shape):
        vector[index] = Batch() if index == 0 else Dynamic() if dynamic_space else size
    return vector


def fold(node: NodeProto, inputs: list[Array | None]) -> Array:
    """The value of a node whose inputs are all constant. Raises `CannotFold`."""
    function = FOLDERS.get(node.op_type)
    if function is None:
        raise CannotFold
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    try:
        with np.errstate(all="ignore"):
            result = _array(function(_Fold(inputs, attributes)))
    except (IndexError, ValueError, TypeError, KeyError, ArithmeticError):
        raise CannotFold from None
    if result.ndim > MAX_RANK:
        raise ModelRefused(f"node {node.name!r} makes a constant of rank {result.ndim}; at most {MAX_RANK} is taken")
    return plain(result)


def plain(array: Array) -> Array:
    """An array of objects that are all integers as int64."""
    if array.dtype == object and all(isinstance(item, int | np.integer) for item in array.reshape(-1)):
        return array.astype(np.int64)
    return array


@dataclass(frozen=True)
class _Fold:
    inputs: list[Array | None]
    attributes: dict[str, Any]

    def __getitem__(self, index: int) -> Array:
        value = self.inputs[index]
        if value is None:
            raise CannotFold
        return value

    def number(self, index: int) -> Array:
        """An input that can be computed with."""
        value = self[index]
        if value.dtype == object:
            raise CannotFold
        return value

    def has(self, index: int) -> bool:
        return len(self.inputs) > index and self.inputs[index] is not None

    def axes(self, index: int, name: str = "axes") -> list[int] | None:
        if self.has(index):
            return [int(axis) for axis in self.number(index).reshape(-1)]
        return list(self.attributes[name]) if name in self.attributes else None


def _bounded(shape: Any) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in shape)
    if len(sizes) > MAX_RANK or any(size < 0 for size in sizes) or math.prod(sizes) > MAX_FOLDED_ELEMENTS:
        raise ModelTooLarge(
            f"a constant of shape {list(sizes)[:16]}; at most {MAX_FOLDED_ELEMENTS} elements are folded"
        )
    return sizes


def _array(value: Any) -> Array:
    """numpy hands out the bare object where an array of objects is indexed down to one."""
    if isinstance(value, Batch | Dynamic):
        array = np.empty((), dtype=object)
        array[()] = value
        return array
    return np.asarray(value)


def _constant(f: _Fold) -> Array:
    for name in ("value_float", "value_int", "value_floats", "value_ints"):
        if name in f.attributes:
            return np.array(f.attributes[name], dtype=np.float32 if "float" in name else np.int64)
    raise CannotFold  # `value` is read with the initialisers; strings and sparse tensors are not taken


def _slice(f: _Fold) -> Array:
    starts, ends = f.axes(1, "starts") or [], f.axes(2, "ends") or []
    axes = f.axes(3) or list(range(len(starts)))
    steps = f.axes(4, "steps") or [1] * len(starts)
    cuts = [slice(None)] * f[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = f[0].shape[axis]
        # a backward slice to before the first element has no other way to say it than a far negative end
        cuts[axis] = slice(start, None if step < 0 and end < -size else end, step)
    return f[0][tuple(cuts)]


def _gather(f: _Fold) -> Array:
    axis = int(f.attributes.get("axis", 0))
    rest = f[0].size // max(1, f[0].shape[axis])
    _bounded((f.number(1).size, rest))
    return np.take(f[0], f.number(1), axis=axis)


def _concat(f: _Fold) -> Array:
    parts = [f[index] for index in range(len(f.inputs))]
    _bounded((sum(part.size for part in parts),))
    return np.concatenate(parts, axis=f.attributes["axis"])


def _squeeze(f: _Fold) -> Array:
    axes = f.axes(1)
    return np.squeeze(f[0], axis=None if axes is None else tuple(axes))


def _unsqueeze(f: _Fold) -> Array:
    axes = f.axes(1)
    if axes is None:
        raise CannotFold
    return np.expand_dims(f[0], tuple(axes))


def _reshape(f: _Fold) -> Array:
    sizes = [int(size) for size in f.number(1)]
    if not f.attributes.get("allowzero", 0):
        sizes = [f[0].shape[index] if size == 0 else size for index, size in enumerate(sizes)]
    return f[0].reshape(sizes)


def _cast(f: _Fold) -> Array:
    kind = f.attributes["to"]
    if f[0].dtype == object:
        if kind not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            raise CannotFold
        return f[0]
    types = {
        onnx.TensorProto.FLOAT: np.float32,
        onnx.TensorProto.INT64: np.int64,
        onnx.TensorProto.INT32: np.int32,
        onnx.TensorProto.BOOL: np.bool_,
    }
    return f[0].astype(types[kind])


def _constant_of_shape(f: _Fold) -> Array:
    value = onnx.numpy_helper.to_array(f.attributes["value"]) if "value" in f.attributes else np.zeros(1, np.float32)
    if value.dtype not in (np.dtype(np.float32), np.dtype(np.int64)) or value.size != 1:
        raise CannotFold
    return np.full(_bounded(f.number(0)), value.reshape(()))


def _expand(f: _Fold) -> Array:
    shape = _bounded(f.number(1))
    return np.array(np.broadcast_to(f[0], _bounded(np.broadcast_shapes(f[0].shape, shape))))


def _range(f: _Fold) -> Array:
    """start + i step for i below ceil((stop - start) / step), in the type of the inputs."""
    start, stop, step = (f.number(index).reshape(()).item() for index in range(3))
    if not step or not all(map(math.isfinite, (start, stop, step))):
        raise CannotFold
    (count,) = _bounded((max(0, math.ceil((stop - start) / step)),))
    return np.asarray(start + np.arange(count) * step).astype(f[0].dtype)


def _arithmetic(function: Callable[[Array, Array], Array]) -> Callable[[_Fold], Array]:
    def compute(f: _Fold) -> Array:
        a, b = f.number(0), f.number(1)
        _bounded(np.broadcast_shapes(a.shape, b.shape))
        return np.asarray(function(a, b)).astype(a.dtype)

    return compute


def _divide(a: Array, b: Array) -> Array:
    """ONNX divides integers towards zero."""
    return np.divide(a, b) if a.dtype.kind == "f" else np.asarray(np.trunc(np.divide(a, b)))


FOLDERS: dict[str, Callable[[_Fold], Array]] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Identity": lambda f: f[0],
    "Cast": _cast,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Transpose": lambda f: np.transpose(f[0], f.attributes.get("perm")),
    "Expand": _expand,
    "Range": _range,
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(_divide),
    "Neg": lambda f: -f.number(0),
    "Sqrt": lambda f: np.sqrt(f.number(0)),
}
