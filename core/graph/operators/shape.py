"""What gives numbers other dimensions without changing them: Squeeze, Unsqueeze, Transpose, Expand, Tile,
Identity. Reshape and Flatten are in `reshape.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, compressed, source
from core.graph.operators.form import Form, Survivors
from core.graph.operators.reshape import running_rule
from core.graph.sizes import BATCH, Size, described_sizes, follows_batch
from core.graph.turned import Turned

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten
BEHIND = "axes behind the batch, 1 and up"


# --- Squeeze, Unsqueeze, Transpose ---------------------------------------------------------------------------------


def _axes(reading: Reading, node: NodeProto) -> list[int] | None:
    """An attribute up to opset 12, then a constant input."""
    axes = reading.attributes(node, axes=None)["axes"]
    return reading.integers(node, 1) if reading.given(node, 1) else axes


def _dims(reading: Reading, node: NodeProto, axes: list[int], rank: int) -> list[int]:
    dims = sorted(reading.axis(node, axis, rank) for axis in axes)
    if len(set(dims)) != len(dims):
        raise reading.refused(node, f"{node.op_type} with axes {axes} repeats an axis")
    return dims


def read_squeeze(reading: Reading, node: NodeProto) -> fx.Node | Turned:
    """Squeeze-1, 11, 13 and up; without axes, all dimensions of one element but the batch."""
    value = reading.moved(node, 0)
    shape = value.node.meta["shape"]
    axes = _axes(reading, node)
    if axes is None and value.order[0] != 0:
        raise reading.unknown(node, "Squeeze without axes of a value whose batch was moved")
    other = reading.other_shape(value.node)
    chosen = [dim for dim in range(1, len(shape)) if shape[dim] == other[dim] == 1] if axes is None else axes
    places = _dims(reading, node, chosen, len(value.order))
    dims = sorted(value.dim(place) for place in places)
    if 0 in dims:
        raise reading.misplaced(node, f"takes dimension 0 away, the batch (axes {axes})", BEHIND)
    if any(shape[dim] != 1 for dim in dims):
        raise reading.refused(node, f"dimensions {dims} of {list(shape)} are not all 1")
    x = reading.call(aten.squeeze.dims, value.node, dims) if dims else value.node
    return reading.settled(Turned(x, value.without(set(places))))


def read_unsqueeze(reading: Reading, node: NodeProto) -> fx.Node | Turned:
    value = reading.moved(node, 0)
    axes = _axes(reading, node)
    if not axes:
        raise reading.unknown(node, "Unsqueeze without axes")
    dims = _dims(reading, node, axes, len(value.order) + len(axes))
    x, order = value.node, list(value.order)
    if value.plain and 0 not in dims:
        for dim in dims:
            x = reading.call(aten.unsqueeze.default, x, dim)
        return x
    for dim in dims:
        last = len(x.meta["shape"])
        x = reading.call(aten.unsqueeze.default, x, last)
        order.insert(dim, last)
    return reading.settled(Turned(x, tuple(order)))


def _write_axes(op_type: str) -> Any:
    def write(writing: Writing, node: fx.Node) -> None:
        given = argument(node, 1)
        rank = len(source(node).meta["shape"]) + (op_type == "Unsqueeze")
        dims = [int(dim) % rank for dim in (given if isinstance(given, list | tuple) else [given])]
        x = writing.value(source(node))
        if writing.opset < 13:
            writing.add(op_type, [x], node, axes=dims)
        else:
            writing.add(op_type, [x, writing.tensor(f"{node.name}.axes", np.array(dims, dtype=np.int64))], node)

    return write


def read_transpose(reading: Reading, node: NodeProto) -> fx.Node | Turned:
    """Where it moves the batch, what reads parts of the result reads them from its input (`turned.py`)."""
    value = reading.moved(node, 0)
    rank = len(value.order)
    perm = list(reading.attributes(node, perm=None)["perm"] or reversed(range(rank)))
    if sorted(perm) != list(range(rank)):
        raise reading.refused(node, f"perm is {perm}; it must hold each of 0 to {rank - 1} once")
    return reading.settled(Turned(value.node, tuple(value.order[axis] for axis in perm)))


def write_transpose(writing: Writing, node: fx.Node) -> None:
    perm = [int(dim) % len(node.meta["shape"]) for dim in argument(node, 1)]
    writing.add("Transpose", [writing.value(source(node))], node, perm=perm)


# --- Expand and Tile -----------------------------------------------------------------------------------------------


def expand_like(x: Tensor, other: Tensor, dims: list[int]) -> Tensor:
    """`x`, its dimensions `dims` (of size 1) as long as those of `other`: the canonical form for open sizes."""
    return x.expand([other.shape[dim] if dim in dims else size for dim, size in enumerate(x.shape)])


def read_expand(reading: Reading, node: NodeProto) -> fx.Node:
    """Expand-8, 13: dimensions of size 1 become longer; the sizes may be those of another value."""
    reading.attributes(node)
    x = reading.activation(node, 0)
    shape, other = x.meta["shape"], reading.other_shape(x)
    wanted = reading.shape(node, 1)
    if len(wanted) > len(shape):
        given = described_sizes([BATCH, *shape[1:]])
        does = f"puts dimensions in front of the batch, in expanding {given} to {described_sizes(wanted)}"
        raise reading.misplaced(node, does, f"at most {len(shape)} sizes, the first of them 1 or the batch")
    wanted = [1] * (len(shape) - len(wanted)) + wanted
    if wanted[0] != 1 and not reading.is_batch(wanted[0]):
        raise reading.misplaced(node, f"expands the batch to {wanted[0]}", "1 or the batch itself in front")
    sizes = [-1] * len(shape)
    open_dims: dict[fx.Node, list[int]] = {}
    for dim, size in enumerate(wanted[1:], start=1):
        if isinstance(size, Size) and not follows_batch(size):
            if (shape[dim], other[dim]) == size.examples:
                continue
            found = size.multiple()
            if found is None or found[1] != 1 or found[0].dim != dim or found[0].node is None or shape[dim] != 1:
                raise reading.unknown(node, "an expansion to an open size that is no other value's own")
            open_dims.setdefault(found[0].node, []).append(dim)
        elif (size := reading.size(node, size)) not in (1, shape[dim]):
            if shape[dim] != 1:
                raise reading.refused(node, f"dimension {dim} of {list(shape)} does not expand to {size}")
            sizes[dim] = size
    for like, dims in open_dims.items():
        x = reading.call(expand_like, x, like, dims)
    return reading.call(aten.expand.default, x, sizes) if set(sizes) != {-1} else x


def expand_rule(p: Propagation, node: fx.Node) -> Tensor:
    """All copies are of the one channel."""
    ids = p.ids[source(node)]
    shape = node.meta["shape"]
    return ids.reshape([1] * (len(shape) - ids.dim()) + list(ids.shape)).expand(shape)


def _copies(p: Propagation, node: fx.Node) -> Tensor | None:
    """New ids where one channel is spread over many, as a gate of places is that is made as wide as what it meets: it
    must stay, and each of its copies goes with the channel that it meets. None where nothing of the kind happens."""
    x, shape = source(node), node.meta["shape"]
    (small,) = compressed(p.ids[x])
    given = x.meta["shape"]
    given = (1,) * (len(shape) - len(given)) + tuple(given)
    longer = [dim for dim in range(1, len(shape)) if given[dim] == 1 < shape[dim]]
    dim = 1 if 1 in longer else longer[0] if longer == [len(shape) - 1] else None
    if dim is None or bool((small != small.reshape(-1)[0]).any()):
        return None
    p.freeze(small, node, "it is spread over many channels")
    return p.spread(p.fresh(shape[dim]), node, dim=dim)


def copies_rule(p: Propagation, node: fx.Node) -> Tensor:
    copies = _copies(p, node)
    return expand_rule(p, node) if copies is None else copies


def resize_expand(survivors: Survivors, old: fx.Node, new: fx.Node) -> None:
    """Sizes that are written out although nothing is expanded there follow the input."""
    sizes = list(argument(old, 1))
    for index, size in enumerate(sizes):
        dim = index + len(old.meta["shape"]) - len(sizes)
        sizes[index] = -1 if size == -1 or dim == 0 else int(survivors.keeps(old, dim).sum())
    new.args = (new.args[0], sizes, *new.args[2:])


def write_expand(writing: Writing, node: fx.Node) -> None:
    """A size of 1 asks for nothing."""
    shape = source(node).meta["shape"]
    sizes = [1 if size == -1 else size for size in argument(node, 1)]
    wanted = [1 if size == own else size for size, own in zip(sizes, shape, strict=True)]
    target = writing.tensor(f"{node.name}.shape", np.array(wanted, dtype=np.int64))
    writing.add("Expand", [writing.value(source(node)), target], node)


def write_expand_like(writing: Writing, node: fx.Node) -> None:
    """The sizes of the other value, ones elsewhere."""
    shape = writing.add("Shape", [writing.value(source(node, 1))], None, hint=f"{node.name}.sizes")
    names = []
    for dim in range(len(node.meta["shape"])):
        if dim in argument(node, 2):
            index = writing.tensor(f"{node.name}.dim{dim}", np.array([dim]))
            names.append(writing.add("Gather", [shape, index], None, hint=f"{node.name}.size{dim}", axis=0))
        else:
            names.append(writing.tensor(f"{node.name}.one", np.array([1])))
    target = writing.add("Concat", names, None, hint=f"{node.name}.shape", axis=0)
    writing.add("Expand", [writing.value(source(node)), target], node)


def read_tile(reading: Reading, node: NodeProto) -> fx.Node:
    """Tile-6, 13, not of the batch."""
    reading.attributes(node)
    x = reading.activation(node, 0)
    repeats = reading.integers(node, 1)
    if len(repeats) != len(x.meta["shape"]) or not all(1 <= times <= 65_535 for times in repeats):
        raise reading.refused(node, f"repeats {repeats} of an input of rank {len(x.meta['shape'])}")
    if repeats[0] != 1:
        raise reading.misplaced(node, f"repeats the batch {repeats[0]} times", "1 in front of the repeats")
    return reading.call(aten.repeat.default, x, repeats) if set(repeats) != {1} else x


def repeat_rule(p: Propagation, node: fx.Node) -> Tensor:
    """ATen's own `repeat`, on the ids. Dimensions along which nothing varies stay expanded views. One channel may be
    spread over many."""
    if (copies := _copies(p, node)) is not None:
        return copies
    (small,) = compressed(p.ids[source(node)])
    repeats = [times if size > 1 else 1 for times, size in zip(argument(node, 1), small.shape, strict=True)]
    return small.repeat(repeats).expand(node.meta["shape"])


def resize_repeat(survivors: Survivors, old: fx.Node, new: fx.Node) -> None:
    """Of one channel, as many copies as are left of what it meets."""
    repeats = list(argument(old, 1))
    for dim, size in enumerate(source(old).meta["shape"]):
        if dim and size == 1:
            repeats[dim] = int(survivors.keeps(old, dim).sum())
    new.args = (new.args[0], repeats)


def write_tile(writing: Writing, node: fx.Node) -> None:
    repeats = writing.tensor(f"{node.name}.repeats", np.array(argument(node, 1), dtype=np.int64))
    writing.add("Tile", [writing.value(source(node)), repeats], node)


# --- nothing at all ------------------------------------------------------------------------------------------------


def read_identity(reading: Reading, node: NodeProto) -> fx.Node | Turned:
    reading.attributes(node)
    return reading.settled(reading.moved(node, 0))


READERS = {
    "Squeeze": read_squeeze,
    "Unsqueeze": read_unsqueeze,
    "Transpose": read_transpose,
    "Expand": read_expand,
    "Tile": read_tile,
    "Identity": read_identity,
}
FORMS: dict[Any, Form] = {
    aten.squeeze.dims: Form(running_rule, _write_axes("Squeeze")),
    aten.unsqueeze.default: Form(running_rule, _write_axes("Unsqueeze")),
    aten.permute.default: Form(running_rule, write_transpose),
    aten.expand.default: Form(copies_rule, write_expand, resize=resize_expand),
    expand_like: Form(expand_rule, write_expand_like),
    aten.repeat.default: Form(repeat_rule, write_tile, resize=resize_repeat),
}
