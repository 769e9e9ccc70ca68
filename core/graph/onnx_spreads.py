"""Constants as long as the batch, or as another open size of an input: what `zeros_like`, `expand` and `repeat` make.

Such a tensor is the same all along those dimensions, so that its size need not be known: it is worked with as an array
that has 1 there (`Spread`). Where it meets activations it is broadcast, padded or expanded like them; nothing of the
size of an example is in the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from core.graph.onnx_constants import FOLDERS, CannotFold, fold_all
from core.graph.onnx_folding import Array, bounded
from core.graph.sizes import BATCH, Size

ENDLESS = 2**31 - 1
"""What exporters write for "to the end", or more."""
POINTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Mod", "Pow", "Min", "Max", "Sum", "Clip", "Neg", "Abs", "Sign", "Sqrt", "Exp", "Log",
    "Reciprocal", "Relu", "Sigmoid", "Tanh", "Softplus", "Floor", "Ceil", "Round", "Equal", "Less", "LessOrEqual",
    "Greater", "GreaterOrEqual", "And", "Or", "Xor", "Not", "IsNaN", "Where", "Cast", "Identity",
})  # fmt: skip
"""What computes number by number, and broadcasts."""


@dataclass(frozen=True)
class Spread:
    """A constant tensor of `sizes`, whole numbers or open ones (`Size`): `array` has 1 where they are open, and the
    tensor is the same all along there."""

    array: Array
    sizes: tuple[Any, ...]

    @property
    def number(self) -> Any:
        """The number that it holds throughout; None where it holds several."""
        return self.array.flat[0] if not any(self.array.strides) else None

    @property
    def along_batch(self) -> bool:
        """Whether the batch is in front, and nowhere else."""
        return self.sizes[:1] == (BATCH,) and BATCH not in self.sizes[1:]

    @property
    def work(self) -> int:
        """How many numbers are held."""
        return 1 if self.number is not None else int(self.array.size)


def spread(array: Array, sizes: tuple[Any, ...]) -> Spread | Array:
    """`array`, of 1 where `sizes` are open; as it is where none is."""
    shape = bounded(1 if isinstance(size, Size) else size for size in sizes)
    array = np.broadcast_to(array, shape)
    if array.size and any(array.strides) and bool((array == array.flat[0]).all()):
        array = np.broadcast_to(array.flat[0], shape)
    if array.dtype == object or not array.size or len(sizes) != array.ndim:
        raise CannotFold
    return Spread(array, sizes) if any(isinstance(size, Size) for size in sizes) else np.array(array)


def fold_spread(node: NodeProto, given: list[Array | Spread | None], opset: int) -> list[Spread | Array]:
    """The results of a node whose inputs are constants and spread ones, or open sizes. Raises `CannotFold`."""
    makers: dict[str, Callable[..., list[Spread | Array]]] = {
        "ConstantOfShape": _filled, "Expand": _expanded, "Tile": _tiled, "Reshape": _reshaped, "Flatten": _flattened,
        "Transpose": _moved, "Unsqueeze": _moved, "Squeeze": _moved, "Slice": _moved, "Split": _moved, "Gather": _moved,
        "Concat": _joined,
    }  # fmt: skip
    make = _pointwise if node.op_type in POINTWISE else makers.get(node.op_type)
    if make is None or (given and given[0] is None):
        raise CannotFold
    try:
        return make(node, given, opset)
    except (IndexError, ValueError, TypeError, KeyError, ArithmeticError):
        raise CannotFold from None


def _attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _of(value: Array | Spread | None) -> tuple[Array, tuple[Any, ...]]:
    """Array and sizes."""
    if isinstance(value, Spread):
        return value.array, value.sizes
    if value is None or value.dtype == object:
        raise CannotFold
    return value, value.shape


def _vector(value: Array | Spread | None) -> list[Any]:
    """A vector of sizes, whole numbers and open ones."""
    if not isinstance(value, np.ndarray) or value.ndim != 1:
        raise CannotFold
    sizes = [size if isinstance(size, Size) else int(size) for size in value]
    if any(isinstance(size, Size) and not (size.whole and size.positive()) for size in sizes):
        raise CannotFold
    return sizes


def _wider(a: Any, b: Any) -> Any:
    """The size that both make when they are broadcast."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    raise CannotFold


def _broadcast(*shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    rank = max(map(len, shapes))
    found: list[Any] = [1] * rank
    for shape in shapes:
        for dim, size in enumerate(shape, start=rank - len(shape)):
            found[dim] = _wider(found[dim], size)
    return tuple(found)


# --- operators -------------------------------------------------------------------------------------------------------


def _filled(node: NodeProto, given: list[Array | Spread | None], opset: int) -> list[Spread | Array]:
    number = fold_all(node, [np.ones(1, dtype=np.int64)], opset)[0][0]
    return [spread(np.asarray(number), tuple(_vector(given[0])))]


def _expanded(node: NodeProto, given: list[Array | Spread | None], opset: int) -> list[Spread | Array]:
    array, sizes = _of(given[0])
    return [spread(array, _broadcast(sizes, tuple(_vector(given[1]))))]


def _tiled(node: NodeProto, given: list[Array | Spread | None], opset: int) -> list[Spread | Array]:
    """As often as an open size along dimensions of 1 only."""
    array, sizes = _of(given[0])
    times = _vector(given[1])
    if len(times) != len(sizes) or any(
        isinstance(count, Size) and size != 1 for count, size in zip(times, sizes, strict=True)
    ):
        raise CannotFold
    fixed = [1 if isinstance(a, Size) or isinstance(b, Size) else b for a, b in zip(sizes, times, strict=True)]
    bounded(a * b for a, b in zip(array.shape, fixed, strict=True))
    found = tuple(b if isinstance(b, Size) else a * b for a, b in zip(sizes, times, strict=True))
    return [spread(np.tile(array, fixed), found)]


def _pointwise(node: NodeProto, given: list[Array | Spread | None], opset: int) -> list[Spread | Array]:
    parts = [None if item is None else _of(item) for item in given]
    found = _broadcast(*(sizes for _, sizes in filter(None, parts)))
    (result,) = fold_all(node, [None if part is None else part[0] for part in parts], opset)
    return [spread(result, found)]


def _moved(node: NodeProto, given: list[Array | Spread | None], opset: int) -> list[Spread | Array]:
    """What moves numbers about: of each dimension is known where it goes."""
    array, sizes = _of(given[0])
    rest = [None if item is None else _of(item)[0] for item in given[1:]]
    is_open = [isinstance(size, Size) for size in sizes]
    rank = len(sizes)
    axes = _axes(node, rest, rank)
    if node.op_type == "Transpose":
        order = _attribute(node, "perm") or list(reversed(range(rank)))
        places = [sizes[dim] for dim in order]
    elif node.op_type == "Unsqueeze":
        places = list(sizes)
        for axis in sorted(axis % (rank + len(axes)) for axis in axes):
            places.insert(axis, 1)
    elif node.op_type == "Squeeze":
        if any(is_open) if not axes else any(is_open[axis] for axis in axes):
            raise CannotFold
        places = [size for dim, size in enumerate(sizes) if dim not in axes]
    elif node.op_type == "Gather":
        (axis,) = axes
        if is_open[axis] or rest[0] is None:
            raise CannotFold
        places = [*sizes[:axis], *rest[0].shape, *sizes[axis + 1 :]]
    else:
        whole = node.op_type == "Slice" and _whole_slices(node, rest, axes)
        if any(is_open[axis] and not (whole and whole[index]) for index, axis in enumerate(axes)):
            raise CannotFold
        places = list(sizes)
    results = fold_all(node, [array, *rest], opset)
    return [
        spread(result, tuple(size if isinstance(size, Size) else result.shape[dim] for dim, size in enumerate(places)))
        for result in results
    ]


def _axes(node: NodeProto, rest: list[Array | None], rank: int) -> list[int]:
    """The dimensions that the node speaks of: of newer opsets an input, of older ones an attribute."""
    if node.op_type in ("Split", "Gather"):
        axes = [_attribute(node, "axis", 0)]
    elif node.op_type == "Slice":
        given = rest[2] if len(rest) > 2 else None
        starts = rest[0] if rest else np.array(_attribute(node, "starts"))
        assert starts is not None
        axes = _attribute(node, "axes") if given is None else given.reshape(-1).tolist()
        axes = list(range(starts.size)) if axes is None else axes
    else:
        axes = _attribute(node, "axes") if not rest or rest[0] is None else rest[0].reshape(-1).tolist()
    axes = list(axes or [])
    return axes if node.op_type == "Unsqueeze" else [int(axis) % rank for axis in axes]


def _whole_slices(node: NodeProto, rest: list[Array | None], axes: list[int]) -> list[bool]:
    """Of each dimension of a Slice, whether all of it is taken."""
    vectors = [
        _attribute(node, name) if not rest else part
        for name, part in zip(("starts", "ends"), rest or [None] * 2, strict=False)
    ]
    starts, ends = (np.asarray(vector).reshape(-1).tolist() for vector in vectors)
    given = rest[3] if len(rest) > 3 else None
    steps = [1] * len(axes) if given is None else given.reshape(-1).tolist()
    return [(start, step) == (0, 1) and end >= ENDLESS for start, end, step in zip(starts, ends, steps, strict=True)]


def _joined(node: NodeProto, given: list[Array | Spread | None], opset: int) -> list[Spread | Array]:
    parts = [_of(item) for item in given]
    axis = _attribute(node, "axis") % len(parts[0][1])
    around = {(*sizes[:axis], *sizes[axis + 1 :]) for _, sizes in parts}
    if len(around) != 1 or any(isinstance(sizes[axis], Size) for _, sizes in parts):
        raise CannotFold
    (result,) = fold_all(node, [array for array, _ in parts], opset)
    sizes = parts[0][1]
    return [spread(result, (*sizes[:axis], result.shape[axis], *sizes[axis + 1 :]))]


def _reshaped(node: NodeProto, given: list[Array | Spread | None], opset: int) -> list[Spread | Array]:
    wanted = given[1]
    if not isinstance(wanted, np.ndarray) or wanted.ndim != 1:
        raise CannotFold
    sizes = list(wanted)
    if not _attribute(node, "allowzero", 0):
        own = _of(given[0])[1]
        sizes = [own[dim] if not isinstance(size, Size) and size == 0 else size for dim, size in enumerate(sizes)]
    return [_as(given[0], sizes)]


def _flattened(node: NodeProto, given: list[Array | Spread | None], opset: int) -> list[Spread | Array]:
    own = _of(given[0])[1]
    axis = _attribute(node, "axis", 1)
    return [_as(given[0], [_product(own[:axis]), _product(own[axis:])])]


def _product(sizes: Any) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * size
    return total


def _as(value: Array | Spread | None, wanted: list[Any]) -> Spread | Array:
    """In the sizes `wanted`, of which one may be -1: any where it is one number throughout, else those behind a batch
    that stays."""
    array, own = _of(value)
    sizes = [size if isinstance(size, Size) else int(size) for size in wanted]
    total = _product(own)
    if sizes.count(-1) == 1:
        known = _product(size for size in sizes if size != -1)
        rest = total / known  # exact, or an error
        if not isinstance(rest, Size):
            if rest != int(rest):
                raise CannotFold
            rest = int(rest)
        sizes[sizes.index(-1)] = rest
    if _product(sizes) != total or any(not isinstance(size, Size) and size < 1 for size in sizes):
        raise CannotFold
    if isinstance(value, Spread) and value.number is not None:
        return spread(np.asarray(value.number), tuple(sizes))
    if own[:1] != (BATCH,) or sizes[0] != BATCH or any(isinstance(size, Size) for size in (*own[1:], *sizes[1:])):
        raise CannotFold
    fixed = [size for size in sizes[1:] if isinstance(size, int)]
    return spread(array.reshape([1, *fixed]), tuple(sizes))


assert set(FOLDERS) >= POINTWISE
