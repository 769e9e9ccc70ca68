"""Folding of what moves, makes and repeats numbers."""

from __future__ import annotations

import math

import numpy as np
import onnx

from core.graph.onnx_folding import Array, CannotFold, Folder, Folding, bounded
from core.graph.sizes import Size

TYPES = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.DOUBLE: np.float64,
    onnx.TensorProto.INT64: np.int64,
    onnx.TensorProto.INT32: np.int32,
    onnx.TensorProto.BOOL: np.bool_,
}


def _constant(f: Folding) -> Array:
    for name in ("value_float", "value_int", "value_floats", "value_ints"):
        if name in f.attributes:
            return np.array(f.attributes[name], dtype=np.float32 if "float" in name else np.int64)
    raise CannotFold  # `value` is read with the initialisers; strings and sparse tensors are not taken


def _slice(f: Folding) -> Array:
    starts, ends = f.axes(1, "starts") or [], f.axes(2, "ends") or []
    axes = f.axes(3) or list(range(len(starts)))
    steps = f.axes(4, "steps") or [1] * len(starts)
    cuts = [slice(None)] * f[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = f[0].shape[axis]
        # a backward slice to before the first element has no other way to say it than a far negative end
        cuts[axis] = slice(start, None if step < 0 and end < -size else end, step)
    return f[0][tuple(cuts)]


def _split(f: Folding) -> tuple[Array, ...]:
    axis = int(f.attributes.get("axis", 0))
    total, sizes = f[0].shape[axis], f.axes(1, "split")
    if sizes is None:
        size = -(-total // f.outputs)
        sizes = [max(0, min(size, total - size * index)) for index in range(f.outputs)]
    if sum(sizes) != total or len(sizes) != f.outputs or min(sizes) < 0:
        raise CannotFold
    return tuple(np.split(f[0], np.cumsum(sizes)[:-1], axis=axis))


def _gather(f: Folding) -> Array:
    axis = int(f.attributes.get("axis", 0))
    rest = f[0].size // max(1, f[0].shape[axis])
    bounded((f.number(1).size, rest))
    return np.asarray(np.take(f[0], f.number(1), axis=axis))


def _concat(f: Folding) -> Array:
    parts = [f[index] for index in range(len(f.inputs))]
    bounded((sum(part.size for part in parts),))
    return np.concatenate(parts, axis=f.attributes["axis"])


def _squeeze(f: Folding) -> Array:
    axes = f.axes(1)
    return np.squeeze(f[0], axis=None if axes is None else tuple(axes))


def _unsqueeze(f: Folding) -> Array:
    axes = f.axes(1)
    if axes is None:
        raise CannotFold
    return np.expand_dims(f[0], tuple(axes))


def _reshape(f: Folding) -> Array:
    sizes = [int(size) for size in f.number(1)]
    if not f.attributes.get("allowzero", 0):
        sizes = [f[0].shape[index] if size == 0 else size for index, size in enumerate(sizes)]
    return f[0].reshape(sizes)


def _flatten(f: Folding) -> Array:
    axis = int(f.attributes.get("axis", 1))
    return f[0].reshape(math.prod(f[0].shape[:axis]), -1)


def _cast(f: Folding) -> Array:
    kind = f.attributes["to"]
    if f[0].dtype != object:
        return f[0].astype(TYPES[kind])
    if kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return f[0]  # an open size stays a number to compute with; what is made of it is told by the other side's type
    if kind not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        raise CannotFold
    found = np.empty(f[0].shape, dtype=object)
    for place, item in np.ndenumerate(f[0]):
        if isinstance(item, Size) and not item.whole:
            raise CannotFold
        found[place] = item if isinstance(item, Size) else int(item)
    return found


def _constant_of_shape(f: Folding) -> Array:
    value = onnx.numpy_helper.to_array(f.attributes["value"]) if "value" in f.attributes else np.zeros(1, np.float32)
    if value.dtype not in {np.dtype(kind) for kind in TYPES.values()} or value.size != 1:
        raise CannotFold
    return np.full(bounded(f.number(0)), value.reshape(()))


def _expand(f: Folding) -> Array:
    shape = bounded(f.number(1))
    return np.array(np.broadcast_to(f[0], bounded(np.broadcast_shapes(f[0].shape, shape))))


def _tile(f: Folding) -> Array:
    repeats = [int(times) for times in f.number(1)]
    if len(repeats) != f[0].ndim:
        raise CannotFold
    bounded(size * times for size, times in zip(f[0].shape, repeats, strict=True))
    return np.tile(f[0], repeats)


def _range(f: Folding) -> Array:
    """start + i step for i below ceil((stop - start) / step), in the type of the inputs."""
    start, stop, step = (f.number(index).reshape(()).item() for index in range(3))
    if not step or not all(map(math.isfinite, (start, stop, step))):
        raise CannotFold
    (count,) = bounded((max(0, math.ceil((stop - start) / step)),))
    return np.asarray(start + np.arange(count) * step).astype(f[0].dtype)


def _size(f: Folding) -> Array:
    return np.array(f[0].size, dtype=np.int64)


def _non_zero(f: Folding) -> Array:
    bounded((f[0].ndim, f.number(0).size))
    return np.array(np.nonzero(f[0]), dtype=np.int64).reshape(f[0].ndim, -1)


FOLDERS: dict[str, Folder] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Identity": lambda f: f[0],
    "Cast": _cast,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": lambda f: np.transpose(f[0], f.attributes.get("perm")),
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "Size": _size,
    "NonZero": _non_zero,
}
