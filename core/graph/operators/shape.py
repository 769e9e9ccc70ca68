"""What moves numbers without changing them: Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Pad, Identity, Cast."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, source
from core.graph.operators.form import Form, Survivors

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten


def running_rule(p: Propagation, node: fx.Node) -> Tensor:
    """ATen itself, run on the ids."""
    args = fx.map_arg(node.args, lambda item: p.ids[item])
    assert callable(node.target)
    result: Tensor = node.target(*args)
    return result


# --- Reshape and Flatten: the batch stays in front, other sizes are written out where they are not dynamic -----------


def read_reshape(reading: Reading, node: NodeProto) -> fx.Node:
    """Reshape-5, 13, 14, 19 and up to a constant shape (of a dynamic batch: folded shape arithmetic)."""
    allow_zero = reading.attributes(node, allowzero=0)["allowzero"]
    x = reading.activation(node, 0)
    shape = x.meta["shape"]
    wanted = list(reading.shape(node, 1))
    sizes: list[int] = []
    copied = set()
    for index, size in enumerate(wanted[1:], start=1):
        if size == 0 and not allow_zero:
            if index >= len(shape):
                raise reading.refused(node, f"dimension {index} is copied from an input of rank {len(shape)}")
            size = shape[index]
            copied.add(index)
        sizes.append(reading.size(node, size))
    if not wanted or sizes.count(-1) > 1:
        raise reading.refused(node, f"the shape {wanted} does not say one shape")
    template = [0 if index in copied else size for index, size in enumerate(sizes, start=1)]
    total = math.prod(shape[1:])
    first = reading.is_batch(wanted[0]) or (wanted[0] == 0 and not allow_zero)
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        if not first or known == 0 or total % known:
            raise reading.unknown(
                node, f"a reshape of {list(shape[1:])} per example to {wanted}, which moves the batch"
            )
        sizes[sizes.index(-1)] = total // known
    if not (first or wanted[0] == -1) or math.prod(sizes) != total:
        raise reading.unknown(node, f"a reshape of {list(shape[1:])} per example to {wanted}, which moves the batch")
    other = reading.other_shape(x)
    others = _fitted(template, other)
    if other != shape and others is not None:
        return _open_reshape(reading, node, x, list(zip(sizes, others, strict=True)))
    if sizes == list(shape[1:]):
        return x
    if len(sizes) == 1:
        return reading.call(aten.flatten.using_ints, x, 1, -1)
    return reading.call(aten.reshape.default, x, [-1, *sizes])


def _fitted(template: list[int], shape: tuple[int, ...]) -> list[int] | None:
    """Sizes behind the batch, 0 for one to copy and -1 for the rest, filled in for `shape`; None where they do not."""
    sizes = [shape[index] if size == 0 else size for index, size in enumerate(template, start=1)]
    total, known = math.prod(shape[1:]), math.prod(size for size in sizes if size != -1)
    if -1 in sizes and known and total % known == 0:
        sizes[sizes.index(-1)] = total // known
    return sizes if math.prod(sizes) == total else None


def _open_reshape(reading: Reading, node: NodeProto, x: fx.Node, sizes: list[tuple[int, int]]) -> fx.Node:
    """A reshape of an input with dynamic sizes: what it does not touch in front stays as it is, the rest is flattened
    and parted again, with -1 for the one size that follows a dynamic one. `sizes` are for two examples."""
    given = list(zip(x.meta["shape"][1:], reading.other_shape(x)[1:], strict=True))
    if sizes == given:
        return x
    same = next((i for i, (a, b) in enumerate(zip(given, sizes, strict=False)) if a != b), min(len(given), len(sizes)))
    start = 1 + min(same, len(given) - 1, len(sizes) - 1)
    rest = [size if size == other else -1 for size, other in sizes[start - 1 :]]
    if rest.count(-1) > 1:
        raise reading.unknown(node, "a reshape to several sizes that follow dynamic dimensions of an input")
    if len(given) > start:
        x = reading.call(aten.flatten.using_ints, x, start, -1)
    return reading.call(aten.unflatten.int, x, start, rest) if len(rest) > 1 else x


def read_flatten(reading: Reading, node: NodeProto) -> fx.Node:
    """Flatten-9, 11, 13 and up: everything behind the batch into one dimension."""
    x = reading.activation(node, 0)
    shape = x.meta["shape"]
    axis = int(reading.attributes(node, axis=1)["axis"])
    axis = axis + len(shape) if axis < 0 else axis
    if axis < 1 or axis > len(shape) or any(size != 1 for size in shape[1:axis]):
        raise reading.unknown(node, f"Flatten with axis {axis}, which moves the batch")
    if len(shape) == 2:
        return x
    return reading.call(aten.flatten.using_ints, x, 1, -1)


def resize_reshape(survivors: Survivors, old: fx.Node, new: fx.Node) -> None:
    sizes = [int(survivors.keeps(old, dim).sum()) for dim in range(1, len(old.meta["shape"]))]
    new.args = (new.args[0], [-1, *sizes])


def write_reshape(writing: Writing, node: fx.Node) -> None:
    shape = np.array([-1, *node.meta["shape"][1:]], dtype=np.int64)
    writing.add("Reshape", [writing.value(source(node)), writing.tensor(f"{node.name}.shape", shape)], node)


def _write_from(writing: Writing, node: fx.Node, start: int, sizes: list[int]) -> None:
    """A Reshape that copies the sizes in front of dimension `start`, whatever they are."""
    shape = np.array([0] * start + sizes, dtype=np.int64)
    writing.add("Reshape", [writing.value(source(node)), writing.tensor(f"{node.name}.shape", shape)], node)


def write_unflatten(writing: Writing, node: fx.Node) -> None:
    """Of the last dimension: nothing else is read."""
    _write_from(writing, node, int(argument(node, 1)), list(argument(node, 2)))


def resize_unflatten(survivors: Survivors, old: fx.Node, new: fx.Node) -> None:
    dim = int(argument(old, 1))
    sizes = [
        size if size == -1 else int(survivors.keeps(old, dim + index).sum())
        for index, size in enumerate(argument(old, 2))
    ]
    new.args = (new.args[0], dim, sizes)


def write_flatten(writing: Writing, node: fx.Node) -> None:
    start, end = int(argument(node, 1, 0)), int(argument(node, 2, -1))
    rank = len(source(node).meta["shape"])
    if (start, end % rank) == (1, rank - 1):
        writing.add("Flatten", [writing.value(source(node))], node, axis=1)
    elif end % rank == rank - 1:
        _write_from(writing, node, start, [-1])
    else:
        write_reshape(writing, node)


# --- Squeeze, Unsqueeze, Transpose ---------------------------------------------------------------------------------


def _axes(reading: Reading, node: NodeProto, rank: int) -> list[int]:
    """An attribute up to opset 12, then a constant input."""
    axes = reading.attributes(node, axes=None)["axes"]
    axes = reading.integers(node, 1) if reading.given(node, 1) else axes
    if not axes:
        raise reading.unknown(node, f"{node.op_type} without axes")
    dims = sorted(reading.axis(node, axis, rank) for axis in axes)
    if 0 in dims or len(set(dims)) != len(dims):
        raise reading.unknown(node, f"{node.op_type} with axes {axes}, which moves the batch or repeats an axis")
    return dims


def read_squeeze(reading: Reading, node: NodeProto) -> fx.Node:
    x = reading.activation(node, 0)
    dims = _axes(reading, node, len(x.meta["shape"]))
    if any(x.meta["shape"][dim] != 1 for dim in dims):
        raise reading.refused(node, f"dimensions {dims} of {list(x.meta['shape'])} are not all 1")
    return reading.call(aten.squeeze.dims, x, dims)


def read_unsqueeze(reading: Reading, node: NodeProto) -> fx.Node:
    x = reading.activation(node, 0)
    attribute = reading.attributes(node, axes=None)["axes"]
    count = len(reading.integers(node, 1) if reading.given(node, 1) else attribute or [])
    for dim in _axes(reading, node, len(x.meta["shape"]) + count):
        x = reading.call(aten.unsqueeze.default, x, dim)
    return x


def _write_axes(op_type: str) -> Any:
    def write(writing: Writing, node: fx.Node) -> None:
        given = argument(node, 1)
        dims = list(given) if isinstance(given, list | tuple) else [given]
        x = writing.value(source(node))
        if writing.opset < 13:
            writing.add(op_type, [x], node, axes=dims)
        else:
            writing.add(op_type, [x, writing.tensor(f"{node.name}.axes", np.array(dims, dtype=np.int64))], node)

    return write


def read_transpose(reading: Reading, node: NodeProto) -> fx.Node:
    x = reading.activation(node, 0)
    rank = len(x.meta["shape"])
    perm = list(reading.attributes(node, perm=None)["perm"] or reversed(range(rank)))
    if sorted(perm) != list(range(rank)):
        raise reading.refused(node, f"perm is {perm}; it must hold each of 0 to {rank - 1} once")
    if perm[0] != 0:
        raise reading.unknown(node, f"Transpose with perm {perm}, which moves the batch")
    return reading.call(aten.permute.default, x, perm)


def write_transpose(writing: Writing, node: fx.Node) -> None:
    writing.add("Transpose", [writing.value(source(node))], node, perm=list(argument(node, 1)))


# --- Pad: torch counts from the last dimension, (before, after) for each ----------------------------------------------


def read_pad(reading: Reading, node: NodeProto) -> fx.Node:
    """Pad-2 (attributes), 11, 13, 18 and up (constant inputs, the last with axes), with a constant value."""
    given = reading.attributes(node, mode=b"constant", pads=None, value=0.0)
    if given["mode"] != b"constant":
        raise reading.unknown(node, f"padding mode {given['mode'].decode()!r}")
    x = reading.activation(node, 0)
    rank = len(x.meta["shape"])
    pads, value, axes = given["pads"], given["value"], list(range(rank))
    if reading.opset >= 11:
        pads = reading.integers(node, 1)
        value = reading.scalar(node, 2) if reading.given(node, 2) else 0.0
        axes = (
            [reading.axis(node, axis, rank) for axis in reading.integers(node, 3)] if reading.given(node, 3) else axes
        )
    if pads is None or len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise reading.refused(node, f"pads needs {2 * len(axes)} numbers, a pair for each of {len(axes)} axes")
    pairs = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    if any(not 0 <= amount <= 65_535 for pair in pairs.values() for amount in pair):
        raise reading.unknown(node, f"pads {list(pads)}: only 0 to 65535 are taken")
    if any(pairs.get(0, (0, 0))):
        raise reading.unknown(node, "padding of the batch")
    amounts = [amount for dim in reversed(range(1, rank)) for amount in pairs.get(dim, (0, 0))]
    if not any(amounts):
        return x
    return reading.call(aten.constant_pad_nd.default, x, amounts, float(value))


def pad_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Along space a padded place belongs to its channel. Along the channels it is a new channel, of constants."""
    ids = p.ids[source(node)]
    for dim, (before, after) in _pairs(node).items():
        first = ids.narrow(dim, 0, 1)
        if bool((ids == first).all()):
            sizes = list(ids.shape)
            sizes[dim] += before + after
            ids = first.expand(sizes)
            continue
        parts = []
        for amount in (before, after):
            view, sizes = [1] * ids.dim(), list(ids.shape)
            view[dim] = sizes[dim] = amount
            parts.append(p.fresh(amount).reshape(view).expand(sizes))
        ids = torch.cat([parts[0], ids, parts[1]], dim)
    return ids


def _pairs(node: fx.Node) -> dict[int, tuple[int, int]]:
    """Dimension -> (before, after), where one of them is not 0."""
    amounts: list[int] = list(argument(node, 1))
    rank = len(node.meta["shape"])
    pairs = {rank - 1 - i: (amounts[2 * i], amounts[2 * i + 1]) for i in range(len(amounts) // 2)}
    return {dim: pair for dim, pair in pairs.items() if any(pair)}


def resize_pad(survivors: Survivors, old: fx.Node, new: fx.Node) -> None:
    """Of the padded channels those that are removed go from the amounts."""
    amounts: list[int] = list(argument(old, 1))
    rank = len(old.meta["shape"])
    for dim, (before, after) in _pairs(old).items():
        keeps = survivors.keeps(old, dim)
        place = 2 * (rank - 1 - dim)
        amounts[place] = int(keeps[:before].sum())
        amounts[place + 1] = int(keeps[len(keeps) - after :].sum())
    new.args = (new.args[0], amounts, *new.args[2:])


def write_pad(writing: Writing, node: fx.Node) -> None:
    """Opset 11 made the amounts inputs."""
    pairs = _pairs(node)
    rank = len(node.meta["shape"])
    pads = [pairs.get(dim, (0, 0))[side] for side in (0, 1) for dim in range(rank)]
    value = float(argument(node, 2, 0.0))
    x = writing.value(source(node))
    if writing.opset < 11:
        writing.add("Pad", [x], node, mode="constant", pads=pads, value=value)
        return
    inputs = [
        writing.tensor(f"{node.name}.pads", np.array(pads, dtype=np.int64)),
        writing.tensor(f"{node.name}.value", np.float32(value)),
    ]
    writing.add("Pad", [x, *inputs], node, mode="constant")


def read_identity(reading: Reading, node: NodeProto) -> fx.Node:
    reading.attributes(node)
    return reading.activation(node, 0)


def read_cast(reading: Reading, node: NodeProto) -> fx.Node:
    """Cast from float32 to float32: exporters write it for `x.float()`."""
    to = reading.attributes(node, to=None, saturate=1, round_mode=b"up")["to"]
    if to != TensorProto.FLOAT:
        raise reading.unknown(node, f"a cast to {TensorProto.DataType.Name(to)}")
    return reading.activation(node, 0)


READERS = {
    "Cast": read_cast,
    "Reshape": read_reshape,
    "Flatten": read_flatten,
    "Squeeze": read_squeeze,
    "Unsqueeze": read_unsqueeze,
    "Transpose": read_transpose,
    "Pad": read_pad,
    "Identity": read_identity,
}
FORMS = {
    aten.reshape.default: Form(running_rule, write_reshape, resize=resize_reshape),
    aten.flatten.using_ints: Form(running_rule, write_flatten),
    aten.unflatten.int: Form(running_rule, write_unflatten, resize=resize_unflatten),
    aten.squeeze.dims: Form(running_rule, _write_axes("Squeeze")),
    aten.unsqueeze.default: Form(running_rule, _write_axes("Unsqueeze")),
    aten.permute.default: Form(running_rule, write_transpose),
    aten.constant_pad_nd.default: Form(pad_rule, write_pad, resize=resize_pad),
}
