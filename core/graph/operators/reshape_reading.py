"""Reading of ONNX `Reshape` and `Flatten`, wherever the batch is before and after them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from onnx import NodeProto
from torch import fx

from core.graph.operators.group_norm import regrouped
from core.graph.operators.reshape import pairs_of, reshaped
from core.graph.sizes import BATCH, Size, at_batch, described_sizes, follows_batch, size_of
from core.graph.turned import Layout, Turned

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading

aten = torch.ops.aten


def read_reshape(reading: Reading, node: NodeProto) -> fx.Node | Turned:
    """Reshape-5, 13, 14, 19 and up to a shape of constants and of sizes of the graph."""
    allow_zero = reading.attributes(node, allowzero=0)["allowzero"]
    value = reading.moved(node, 0)
    given, wanted = sizes_of(reading, value), list(reading.shape(node, 1))
    for index, size in enumerate(wanted):
        if not isinstance(size, Size) and size == 0 and not allow_zero:
            if index >= len(given):
                raise reading.refused(node, f"dimension {index} is copied from an input of rank {len(given)}")
            wanted[index] = given[index]
    if not wanted or wanted[1:].count(-1) > 1:
        raise reading.refused(node, f"the shape {wanted} does not say one shape")
    made: fx.Node | Turned | None = _reshaped_behind(reading, node, value.node, wanted) if value.plain else None
    made = reshaped_around(reading, value, wanted) if made is None else made
    if made is None:
        behind = [size for axis, size in enumerate(given) if axis != value.batch]
        is_open = any(isinstance(size, Size) for size in behind)
        numbers = "all numbers of an image" if is_open else f"{math.prod(behind)} numbers"
        shown = [size if follows_batch(size) else _example(size) for size in given]
        sizes = f"{described_sizes(shown)} into {described_sizes(wanted)}"
        raise reading.misplaced(
            node,
            f"puts {sizes}, which does not keep the batch apart in front",
            f"the batch, 0 or -1 in front, and behind it sizes that hold {numbers}",
        )
    return made


def _reshaped_behind(reading: Reading, node: NodeProto, x: fx.Node, wanted: list[Any]) -> fx.Node | None:
    """`x` in the sizes `wanted`, the batch in front of both. None where it is not."""
    first = reading.is_batch(wanted[0]) or (
        not isinstance(wanted[0], Size) and wanted[0] == -1 and -1 not in wanted[1:]
    )
    if not first or any(follows_batch(size) for size in wanted[1:]):
        return None
    sizes: list[Any] = []
    for size in wanted[1:]:
        if isinstance(size, Size) and size.whole:
            sizes.append(size.examples)
        else:
            sizes.append(size if size == -1 else (reading.size(node, size),) * 2)
    given = pairs_of(x.meta["shape"], reading.other_shape(x))
    totals = [math.prod(size) for size in zip(*given[1:], strict=True)] or [1, 1]
    found = [_filled(sizes, which, totals[which]) for which in (0, 1)]
    if found[0] is None:
        return None
    if found[1] is None:  # only the first example fits: the graph is of one size
        return reading.call(aten.reshape.default, x, [-1, *found[0]])
    pairs = list(zip(found[0], found[1], strict=True))
    result = regrouped(reading, x, pairs) if reading.uses(node.input[0]) == 1 else None
    if result is None:
        sources = [size if isinstance(size, Size) else None for size in wanted[1:]]
        result = reshaped(reading, x, pairs, sources)
    if result is None:
        raise reading.unknown(node, "a reshape to several sizes that follow dynamic dimensions of an input")
    return result


def _filled(sizes: list[Any], which: int, total: int) -> list[int] | None:
    """The sizes in one of the examples, with what -1 stands for; None where they do not make `total` numbers."""
    found = [size if size == -1 else size[which] for size in sizes]
    if -1 in found:
        known = math.prod(size for size in found if size != -1)
        if known == 0 or total % known:
            return None
        found[found.index(-1)] = total // known
    return found if math.prod(found) == total else None


def read_flatten(reading: Reading, node: NodeProto) -> fx.Node | Turned:
    """Flatten-9, 11, 13 and up: two dimensions, one of all in front of the axis, one of the others."""
    value = reading.moved(node, 0)
    shape = sizes_of(reading, value)
    axis = int(reading.attributes(node, axis=1)["axis"])
    axis = axis + len(shape) if axis < 0 else axis
    if axis < 1 or axis > len(shape):
        raise reading.misplaced(node, f"joins the batch to other dimensions (axis {axis})", "axis 1")
    if not value.plain or any(size != 1 for size in shape[1:axis]):
        made = reshaped_around(reading, value, [_product(shape[:axis]), _product(shape[axis:])])
        if made is None:
            raise reading.misplaced(node, f"joins the batch to other dimensions (axis {axis})", "axis 1")
        return made
    return value.node if len(shape) == 2 else reading.call(aten.flatten.using_ints, value.node, 1, -1)


def sizes_of(reading: Reading, value: Turned) -> list[Any]:
    """The shape of the value, as numbers to compute with."""
    pairs = list(zip(value.node.meta["shape"], reading.other_shape(value.node), strict=True))
    return [
        _product(size_of(value.node, dim, pairs[dim]) for dim in value.dims(axis)) for axis in range(len(value.order))
    ]


def reshaped_around(reading: Reading, value: Turned, wanted: Sequence[Any]) -> fx.Node | Turned | None:
    """`value` in the sizes `wanted` (numbers and `Size`s, one of which may be -1), wherever that puts the batch.

    The numbers of a value lie in rows: what counts slower than the batch does so in the result too, and what counts
    faster. None where that parts the batch, or does not say one shape.
    """
    unit: Any = BATCH if reading.static_batch is None else reading.static_batch
    dims = [dim for axis in range(len(value.order)) for dim in value.dims(axis)]
    pairs = list(zip(value.node.meta["shape"], reading.other_shape(value.node), strict=True))
    at = dims.index(0)
    slower, faster = (
        _product(size_of(value.node, dim, pairs[dim]) for dim in part) for part in (dims[:at], dims[at + 1 :])
    )
    sizes = [at_batch(size, reading.static_batch) for size in wanted]
    if sizes.count(-1) == 1:
        rest = _quotient(slower * unit * faster, _product(size for size in sizes if size != -1))
        sizes = [rest if size == -1 else size for size in sizes]
    if any(size is None or size == -1 or (isinstance(size, Size) and not size.whole) for size in sizes):
        return None
    found = []
    for place, size in enumerate(sizes):
        left = _quotient(slower, _product(sizes[:place]))
        right = _quotient(faster, _product(sizes[place + 1 :]))
        if left is not None and right is not None and left * unit * right == size:
            found.append((_example(left) * _example(right), place, left, right))
    if not found:
        return None
    # where the batch is of one, it may be said to lie in several places, which all hold the same numbers: of a matrix
    # the rows are taken (a Gemm follows), else the place where the least is folded into it
    _, place, left, right = min(found, key=lambda item: item[:2] if len(sizes) > 2 or item[0] == 1 else (2, item[1]))
    folded = [[size] if size != 1 else [] for size in (left, right)]
    new = [*sizes[:place], *folded[0], *folded[1], *sizes[place + 1 :]]
    order = [0, *(dim for dim in dims if dim)]
    node = value.node if order == sorted(order) else reading.call(aten.permute.default, value.node, order)
    examples = [size.examples if isinstance(size, Size) else (int(size), int(size)) for size in new]
    sources = [size if isinstance(size, Size) else None for size in new]
    if not new:  # nothing but the batch is left
        made: fx.Node | None = reading.call(aten.squeeze.dims, node, list(range(1, len(dims)))) if dims[1:] else node
    else:
        made = reshaped(reading, node, examples, sources)
    return None if made is None else reading.settled(Layout(place, len(folded[0]), len(folded[1])).of(made))


def _product(sizes: Any) -> Any:
    return math.prod(sizes, start=1)


def _quotient(a: Any, b: Any) -> Any:
    """a / b where that is a whole number whatever the open sizes are; else None."""
    if not isinstance(a, Size) and not isinstance(b, Size):
        return a // b if b and a % b == 0 else None
    try:
        found = a / b
    except (ArithmeticError, ValueError, TypeError):
        return None
    if isinstance(found, Size):
        return found if found.whole and found.positive() else None
    return int(found) if float(found).is_integer() else None


def _example(size: Any) -> int:
    return size.examples[0] if isinstance(size, Size) else int(size)


READERS = {"Reshape": read_reshape, "Flatten": read_flatten}
