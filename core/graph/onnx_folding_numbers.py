"""Folding of what computes with numbers. Open sizes are added, multiplied and divided without a rest; no more."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from core.errors import ModelTooLarge
from core.graph.onnx_folding import Array, CannotFold, Folder, Folding, bounded
from core.graph.sizes import Size

MOST_PRODUCTS = 2**33
"""Multiplications that one product of constants may take: some seconds."""


def _pair(f: Folding) -> tuple[Array, Array]:
    a, b = f[0], f[1]
    bounded(np.broadcast_shapes(a.shape, b.shape))
    return a, b


def _arithmetic(function: Callable[[Array, Array], Array]) -> Folder:
    """Of numbers and of open sizes, in the type of the first."""

    def compute(f: Folding) -> Array:
        a, b = _pair(f)
        result = np.asarray(function(a, b))
        return result if object in (a.dtype, b.dtype) else result.astype(a.dtype)

    return compute


def _plain(function: Callable[[Array, Array], Array], *, same_type: bool = False) -> Folder:
    """Of numbers alone."""

    def compute(f: Folding) -> Array:
        bounded(np.broadcast_shapes(f.number(0).shape, f.number(1).shape))
        result = np.asarray(function(f[0], f[1]))
        return result.astype(f[0].dtype) if same_type else result

    return compute


def _unary(function: Callable[[Array], Any]) -> Folder:
    return lambda f: np.asarray(function(f.number(0))).astype(f[0].dtype)


def _divide(a: Array, b: Array) -> Array:
    """ONNX divides integers towards zero; an open size only where no rest is left."""
    if object in (a.dtype, b.dtype):
        quotient = np.asarray(a / b, dtype=object)
        return quotient if b.dtype.kind == "f" else _each(quotient, _whole)
    if a.dtype.kind == "f":
        return np.divide(a, b)
    if not b.all():
        raise CannotFold
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))


def _each(array: Array, function: Callable[[Any], Any]) -> Array:
    """`function` of every object of an array of them."""
    found = np.empty(array.shape, dtype=object)
    for place in np.ndindex(array.shape):
        found[place] = function(array[place])
    return found


def _whole(item: Any) -> Any:
    """An object that is a whole number, as such."""
    if not (item.whole if isinstance(item, Size) else item == int(item)):
        raise CannotFold
    return item if isinstance(item, Size) else int(item)


def _rounded(function: Callable[[Array], Any]) -> Folder:
    """Floor, Ceil, Round: an open size that is whole anyway stays."""

    def compute(f: Folding) -> Array:
        if f[0].dtype != object:
            return np.asarray(function(f[0])).astype(f[0].dtype)
        return _each(f[0], lambda item: _whole(item) if isinstance(item, Size) else float(function(np.array(item))))

    return compute


def _equal(f: Folding) -> Array:
    """An open size is itself, is not what is below 1, and else anything."""
    a, b = _pair(f)
    if object not in (a.dtype, b.dtype):
        return np.asarray(a == b)
    a, b = np.broadcast_arrays(a, b)
    found = np.empty(a.shape, dtype=np.bool_)
    for place in np.ndindex(a.shape):
        found[place] = _same(a[place], b[place])
    return found


def _same(left: Any, right: Any) -> bool:
    if isinstance(right, Size):
        left, right = right, left
    if not isinstance(left, Size) or left == right:
        return bool(left == right)
    if isinstance(right, Size) or right > 0 or not left.positive():
        raise CannotFold
    return False


def _where(f: Folding) -> Array:
    chosen = f.number(0)
    bounded(np.broadcast_shapes(chosen.shape, f[1].shape, f[2].shape))
    return np.where(chosen, f[1], f[2])


def _several(function: Callable[[Array, Array], Array]) -> Folder:
    """Min, Max, Sum of any number of inputs."""

    def compute(f: Folding) -> Array:
        result = f.number(0)
        for index in range(1, len(f.inputs)):
            bounded(np.broadcast_shapes(result.shape, f.number(index).shape))
            result = function(result, f[index])
        return np.asarray(result).astype(f[0].dtype)

    return compute


def _pow(a: Array, b: Array) -> Array:
    return np.power(a.astype(np.float64), b.astype(np.float64))


def _mod(f: Folding) -> Array:
    bounded(np.broadcast_shapes(f.number(0).shape, f.number(1).shape))
    if f[0].dtype.kind != "f" and not f[1].all():
        raise CannotFold
    return np.asarray((np.fmod if f.attributes.get("fmod", 0) else np.mod)(f[0], f[1])).astype(f[0].dtype)


def _matmul(f: Folding) -> Array:
    a, b = f.number(0), f.number(1)
    left = a.shape if a.ndim > 1 else (1, *a.shape)
    right = b.shape if b.ndim > 1 else (*b.shape, 1)
    shape = bounded((*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1]))
    if math.prod(shape) * left[-1] > MOST_PRODUCTS:
        raise ModelTooLarge(f"a product of constants takes more than {MOST_PRODUCTS} multiplications")
    return np.asarray(np.matmul(a, b))


def _batch_norm(f: Folding) -> Array:
    """Of a weight, as networks that standardise theirs are exported: in training mode by its own mean and variance."""
    x, scale, shift, mean, variance = (f.number(index) for index in range(5))
    if x.ndim < 2 or any(item.shape != x.shape[1:2] for item in (scale, shift, mean, variance)):
        raise CannotFold
    if f.attributes.get("training_mode", 0):
        others = (0, *range(2, x.ndim))
        mean, variance = x.mean(axis=others, dtype=np.float64), x.var(axis=others, dtype=np.float64)
    factor = scale / np.sqrt(variance + np.float64(f.attributes.get("epsilon", 1e-5)))
    view = (-1, *[1] * (x.ndim - 2))
    return np.asarray((x - mean.reshape(view)) * factor.reshape(view) + shift.reshape(view)).astype(x.dtype)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))


def _softmax(f: Folding) -> Array:
    """Along one dimension; before opset 13 along all from that one on."""
    x = f.number(0)
    axis = int(f.attributes.get("axis", -1 if f.opset >= 13 else 1))
    if not -x.ndim <= axis < x.ndim:
        raise CannotFold
    axes = (axis,) if f.opset >= 13 else tuple(range(axis % x.ndim, x.ndim))
    powers = np.exp(x.astype(np.float64) - x.max(axis=axes, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axes, keepdims=True)).astype(x.dtype)


def _clip(f: Folding) -> Array:
    low = f.number(1).reshape(()) if f.has(1) else f.attributes.get("min")
    high = f.number(2).reshape(()) if f.has(2) else f.attributes.get("max")
    result = f.number(0)
    result = result if low is None else np.maximum(result, low)
    result = result if high is None else np.minimum(result, high)
    return np.asarray(result).astype(f[0].dtype)


def _reduction(function: Callable[..., Any], *, objects: bool = False) -> Folder:
    def compute(f: Folding) -> Array:
        value = f[0] if objects else f.number(0)
        axes = f.axes(1)
        if not axes and f.attributes.get("noop_with_empty_axes", 0):
            return value
        axis = tuple(axes) if axes else tuple(range(value.ndim))
        result = np.asarray(function(value, axis=axis, keepdims=bool(f.attributes.get("keepdims", 1))))
        return result.astype(value.dtype)

    return compute


FOLDERS: dict[str, Folder] = {
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(_divide),
    "Mod": _mod,
    "Pow": _plain(_pow, same_type=True),
    "BatchNormalization": _batch_norm,
    "MatMul": _matmul,
    "Min": _several(np.minimum),
    "Max": _several(np.maximum),
    "Sum": _several(np.add),
    "Clip": _clip,
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Sign": _unary(np.sign),
    "Sqrt": _unary(np.sqrt),
    "Exp": _unary(np.exp),
    "Log": _unary(np.log),
    "Reciprocal": _unary(np.reciprocal),
    "Relu": _unary(lambda x: np.maximum(x, 0)),
    "Sigmoid": _unary(_sigmoid),
    "Tanh": _unary(np.tanh),
    "Softplus": _unary(lambda x: np.logaddexp(x.astype(np.float64), 0)),
    "Softmax": _softmax,
    "Floor": _rounded(np.floor),
    "Ceil": _rounded(np.ceil),
    "Round": _rounded(np.round),
    "Equal": _equal,
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "And": _plain(np.logical_and),
    "Or": _plain(np.logical_or),
    "Xor": _plain(np.logical_xor),
    "Not": lambda f: np.logical_not(f.number(0)),
    "IsNaN": lambda f: np.isnan(f.number(0)),
    "Where": _where,
    "ReduceProd": _reduction(np.prod, objects=True),
    "ReduceSum": _reduction(np.sum, objects=True),
    "ReduceMean": _reduction(np.mean),
    "ReduceMax": _reduction(np.max),
    "ReduceMin": _reduction(np.min),
}
