"""Reshape and Flatten: the batch stays in front; sizes are written out where they are not open. `reshape_reading.py`
reads them.

ONNX `Reshape` <-> `aten.reshape` where all sizes are fixed, `aten.flatten` and `aten.unflatten` where some are open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, source
from core.graph.operators.form import Form, Survivors
from core.graph.sizes import Size

if TYPE_CHECKING:
    from core.graph.building import Building
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten
Pair = tuple[int, int]
"""A size in the two examples that shapes are worked out for; they differ where it is open."""


def running_rule(p: Propagation, node: fx.Node) -> Tensor:
    """ATen itself, run on the ids."""
    args = fx.map_arg(node.args, lambda item: p.ids[item])
    assert callable(node.target)
    result: Tensor = node.target(*args)
    return result


def pairs_of(shape: tuple[int, ...], other: tuple[int, ...]) -> list[Pair]:
    return list(zip(shape, other, strict=True))


def reshaped(
    building: Building, x: fx.Node, sizes: Sequence[Pair], sources: Sequence[Size | None] = ()
) -> fx.Node | None:
    """`x` with `sizes` behind the batch, `sources` saying what the open ones are. None where one open size becomes
    several that are not all another value's."""
    given = pairs_of(x.meta["shape"], building.other_shape(x))[1:]
    if list(sizes) == given:
        return x
    if all(a == b for a, b in (*given, *sizes)):
        if len(sizes) == 1:
            return building.call(aten.flatten.using_ints, x, 1, -1)
        return building.call(aten.reshape.default, x, [-1, *(size for size, _ in sizes)])
    if len(sizes) == 1:
        return building.call(aten.flatten.using_ints, x, 1, -1)
    place = 1
    for left, right in _segments(given, list(sizes)):
        if left != right:
            rest = [a if a == b else -1 for a, b in right]
            like = _like(rest, sources[place - 1 : place - 1 + len(right)]) if rest.count(-1) > 1 else None
            if len(right) > 1 and rest.count(-1) > 1 and like is None:
                return None
            if len(left) > 1:
                x = building.call(aten.flatten.using_ints, x, place, place + len(left) - 1)
            if len(right) > 1 and like is None:
                x = building.call(aten.unflatten.int, x, place, rest)
            elif like is not None:
                x = building.call(unflatten_like, x, like[0], place, rest, like[1])
        place += len(right)
    return x


def _like(sizes: list[int], sources: Sequence[Size | None]) -> tuple[fx.Node, list[int]] | None:
    """(value, its dimensions) that the open sizes are, -1 for the fixed ones and for one that follows from the rest."""
    found = [None if source is None else source.multiple() for source in sources]
    nodes = {item[0].node for item in found if item is not None and item[1] == 1}
    if len(found) != len(sizes) or len(nodes) != 1:
        return None
    (other,) = nodes
    known = [item[0].dim if item is not None and item[1] == 1 else -1 for item in found]
    unknown = [size for size, dim in zip(sizes, known, strict=True) if size == dim == -1]
    return (other, known) if other is not None and len(unknown) <= 1 else None


def unflatten_like(x: Tensor, other: Tensor, dim: int, sizes: list[int], dims: list[int]) -> Tensor:
    """`x` with `dim` parted into `sizes`, or where `dims` is not -1 into sizes of `other`: the form for open sizes."""
    wanted = [size if place == -1 else other.shape[place] for size, place in zip(sizes, dims, strict=True)]
    return torch.unflatten(x, dim, wanted)


def _segments(given: list[Pair], wanted: list[Pair]) -> list[tuple[list[Pair], list[Pair]]]:
    """Both shapes in as many parts, the parts holding as many numbers in both examples; each as short as can be."""
    found: list[tuple[list[Pair], list[Pair]]] = []
    a, b = 0, 0
    while a < len(given) and b < len(wanted):
        left, right = [given[a]], [wanted[b]]
        a, b = a + 1, b + 1
        while (sizes := (_product(left), _product(right)))[0] != sizes[1]:
            if (sizes[0] < sizes[1] and a < len(given)) or b >= len(wanted):
                left.append(given[a])
                a += 1
            else:
                right.append(wanted[b])
                b += 1
        found.append((left, right))
    found[-1][0].extend(given[a:])  # ones
    found[-1][1].extend(wanted[b:])
    return found


def _product(pairs: list[Pair]) -> Pair:
    return math.prod(a for a, _ in pairs), math.prod(b for _, b in pairs)


def resize_reshape(survivors: Survivors, old: fx.Node, new: fx.Node) -> None:
    sizes = [int(survivors.keeps(old, dim).sum()) for dim in range(1, len(old.meta["shape"]))]
    new.args = (new.args[0], [-1, *sizes])


def write_reshape(writing: Writing, node: fx.Node) -> None:
    shape = np.array([-1, *node.meta["shape"][1:]], dtype=np.int64)
    writing.add("Reshape", [writing.value(source(node)), writing.tensor(f"{node.name}.shape", shape)], node)


def _write_part(writing: Writing, node: fx.Node, start: int, count: int, sizes: list[int]) -> None:
    """A Reshape of the `count` dimensions from `start` on to `sizes`. What is in front is copied by 0; of open sizes
    behind, one may be -1; more are taken from the input's shape."""
    x = source(node)
    shape = x.meta["shape"]
    behind = [-1 if writing.is_open(x, dim) else shape[dim] for dim in range(start + count, len(shape))]
    name = writing.value(x)
    if (sizes + behind).count(-1) > 1:
        ends = [np.array([value]) for value in (start + count, len(shape))]
        bounds = [writing.tensor(f"{node.name}.{key}", end) for key, end in zip(("from", "to"), ends, strict=True)]
        sizes_of = writing.add("Shape", [name], None, hint=f"{node.name}.sizes")
        tail = _slice_vector(writing, node, sizes_of, bounds, (start + count, len(shape)))
        head = writing.tensor(f"{node.name}.head", np.array([0] * start + sizes, dtype=np.int64))
        target = writing.add("Concat", [head, tail], None, hint=f"{node.name}.shape", axis=0)
    else:
        target = writing.tensor(f"{node.name}.shape", np.array([0] * start + sizes + behind, dtype=np.int64))
    writing.add("Reshape", [name, target], node)


def _slice_vector(writing: Writing, node: fx.Node, name: str, bounds: list[str], places: tuple[int, int]) -> str:
    if writing.opset < 10:
        return writing.add("Slice", [name], None, hint=f"{node.name}.tail", starts=[places[0]], ends=[places[1]])
    return writing.add("Slice", [name, *bounds], None, hint=f"{node.name}.tail")


def write_unflatten(writing: Writing, node: fx.Node) -> None:
    rank = len(source(node).meta["shape"])
    _write_part(writing, node, int(argument(node, 1)) % rank, 1, list(argument(node, 2)))


def resize_unflatten(survivors: Survivors, old: fx.Node, new: fx.Node) -> None:
    rank = len(source(old).meta["shape"])
    dim = int(argument(old, 1)) % rank
    sizes = [
        size if size == -1 else int(survivors.keeps(old, dim + index).sum())
        for index, size in enumerate(argument(old, 2))
    ]
    new.args = (new.args[0], dim, sizes)


def unflatten_like_rule(p: Propagation, node: fx.Node) -> Tensor:
    """As ATen's own `unflatten` on the ids."""
    dim, count = int(argument(node, 2)), len(argument(node, 3))
    return torch.unflatten(p.ids[source(node)], dim, node.meta["shape"][dim : dim + count])


def resize_unflatten_like(survivors: Survivors, old: fx.Node, new: fx.Node) -> None:
    dim = int(argument(old, 2))
    sizes = [
        size if size == -1 else int(survivors.keeps(old, dim + index).sum())
        for index, size in enumerate(argument(old, 3))
    ]
    new.args = (*new.args[:3], sizes, argument(old, 4))


def write_unflatten_like(writing: Writing, node: fx.Node) -> None:
    """A Reshape to sizes put together from those of both values."""
    x, start = source(node), int(argument(node, 2))
    shapes = {
        which: writing.add("Shape", [writing.value(source(node, which))], None, hint=f"{node.name}.shape{which}")
        for which in (0, 1)
    }

    def part(which: int, dim: int) -> str:
        index = writing.tensor(f"{node.name}.dim", np.array([dim]))
        return writing.add("Gather", [shapes[which], index], None, hint=f"{node.name}.size", axis=0)

    names = [writing.tensor(f"{node.name}.front", np.zeros(start, dtype=np.int64))]
    for size, dim in zip(argument(node, 3), argument(node, 4), strict=True):
        names.append(part(1, dim) if dim != -1 else writing.tensor(f"{node.name}.fixed", np.array([size])))
    names += [part(0, dim) for dim in range(start + 1, len(x.meta["shape"]))]
    target = writing.add("Concat", names, None, hint=f"{node.name}.target", axis=0)
    writing.add("Reshape", [writing.value(x), target], node)


def write_flatten(writing: Writing, node: fx.Node) -> None:
    """Flatten where all behind the batch becomes one dimension, else a Reshape."""
    x = source(node)
    rank = len(x.meta["shape"])
    start, end = int(argument(node, 1, 0)) % rank, int(argument(node, 2, -1)) % rank
    if (start, end) == (1, rank - 1):
        writing.add("Flatten", [writing.value(x)], node, axis=1)
        return
    dims = range(start, end + 1)
    size = -1 if any(writing.is_open(x, dim) for dim in dims) else math.prod(x.meta["shape"][start : end + 1])
    _write_part(writing, node, start, len(dims), [size])


FORMS: dict[Any, Form] = {
    aten.reshape.default: Form(running_rule, write_reshape, resize=resize_reshape),
    aten.flatten.using_ints: Form(running_rule, write_flatten),
    unflatten_like: Form(unflatten_like_rule, write_unflatten_like, resize=resize_unflatten_like),
    aten.unflatten.int: Form(running_rule, write_unflatten, resize=resize_unflatten),
}
