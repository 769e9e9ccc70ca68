"""From ATen calls that take a tensor apart or join several to canonical forms: slices, splits, concatenations.

A split is one slice per part. The batch is never taken apart, nor made longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from core.graph.aten_shape import MOVED, squeezed, text, unsqueezed
from core.graph.operators.fitting import pad_like
from core.graph.operators.shape import expand_like
from core.graph.pt2_lowering import Lowering
from core.graph.pt2_sizes import Size, decided, product
from core.graph.pt2_turned import aligned, beside, seen, settled
from core.graph.pt2_values import Call, Constant, Filled, Spread
from core.graph.turned import Turned

aten = torch.ops.aten


# --- parts -----------------------------------------------------------------------------------------------------------


def part(low: Lowering, call: Call, value: Any, dim: int, bounds: tuple[Any, Any], step: int = 1) -> Any:
    """`value[start:end:step]` along `dim`; bounds as Python has them, and None."""
    size = low.shape(value)[dim]
    if step < 1:
        raise low.refused(call, f"a step of {step}")
    if not isinstance(size, Size):
        start, end, _ = slice(*(_whole(low, call, bound) for bound in bounds)).indices(size)
    else:
        start = _bound(low, call, 0 if bounds[0] is None else bounds[0], size)
        end = _bound(low, call, bounds[1], size)
    if start == 0 and (end is None or end == size) and step == 1:
        return value
    if isinstance(value, Filled):
        return Filled(
            value.number, (*value.sizes[:dim], _length(low, call, start, end, size, step), *value.sizes[dim + 1 :])
        )
    if isinstance(value, Constant):
        index: list[Any] = [slice(None)] * dim + [slice(start, end, step)]
        key = low.key("slice", value.key, dim, start, end, step)
        return Constant(value.value[tuple(index)], key, value.parameter, value.trained)
    value = low.seen(call, value)
    node, inner = value.node, value.dim(dim)
    if inner == 0:
        raise low.unknown(call, "a part of the batch")
    if isinstance(start, Size) or isinstance(end, Size):
        made = _cropped(low, call, node, inner, (start, end), size, step)
    else:
        if end is not None and 0 <= end <= start:
            raise low.unknown(call, "a part of no elements")
        made = low.call(aten.slice.Tensor, node, inner, start, 2**63 - 1 if end is None or end == size else end, step)
    return settled(low, Turned(made, value.order))


def _whole(low: Lowering, call: Call, bound: Any) -> int | None:
    return None if bound is None else low.fixed(call, bound, "bound")


def _bound(low: Lowering, call: Call, bound: Any, size: Size) -> Any:
    """A bound on an open `size`: None for the end, an int from the front or (negative) the back, else a `Size` from the
    front that lies inside."""
    if bound is None or not isinstance(bound, Size):
        return None if bound is None or bound >= 2**31 - 1 else int(bound)
    if decided(lambda: bound < 0):
        bound = size + bound
    if not decided(lambda: bound >= 0):
        raise low.unknown(call, f"a bound of {text([bound])}, which may be below 0")
    behind = bound - size
    if not isinstance(behind, Size):
        return None if behind >= 0 else int(behind)
    if decided(lambda: behind > 0):
        return None
    if isinstance(bound, Size) and not decided(lambda: behind <= 0):
        raise low.unknown(call, f"a bound of {text([bound])} on {text([size])}, which may lie past the end")
    return bound


def _length(low: Lowering, call: Call, start: Any, end: Any, size: Any, step: int) -> Any:
    if isinstance(start, int) and start < 0:
        start = size + start
    end = size if end is None else size + end if isinstance(end, int) and end < 0 else end
    length = end - start
    if not decided(lambda: length >= 0) or step != 1:
        if isinstance(length, int):
            return max(0, -(-length // step))
        raise low.unknown(call, "a part of a constant that follows a dynamic dimension of an input")
    return length


def _cropped(low: Lowering, call: Call, node: fx.Node, dim: int, bounds: tuple[Any, Any], size: Any, step: int) -> Any:
    """A part as long as a dimension of another value, from the front or up to the end."""
    start, end = bounds
    length = (size if end is None else size + end if isinstance(end, int) and end < 0 else end) - start
    held = low.holder([length]) if isinstance(length, Size) else None
    half = size - length
    front = (
        "none" if start == 0 else "all" if end is None
        else "ceil" if start == half // 2 else "floor" if start == half - half // 2 else None
    )  # fmt: skip
    if held is None or front is None or step != 1:
        raise low.unknown(
            call, f"a part of {text([size])} from {text([start])} to {text([end])}, which is no other value's size"
        )
    return low.call(pad_like, node, held[0], [dim], held[1], [front], 0.0)


def _along(low: Lowering, call: Call) -> tuple[Any, int, Any]:
    shape = low.shape(call["self"])
    dim = low.dim(call, low.integer(call, "dim"), len(shape))
    return call["self"], dim, shape[dim]


def slice_(low: Lowering, call: Call) -> Any:
    value, dim, _ = _along(low, call)
    return part(low, call, value, dim, (call["start"], call["end"]), low.integer(call, "step"))


def narrow(low: Lowering, call: Call) -> Any:
    value, dim, size = _along(low, call)
    start = call["start"]
    if decided(lambda: start < 0):
        start = start + size
    return part(low, call, value, dim, (start, start + call["length"]))


def select(low: Lowering, call: Call) -> Any:
    value, dim, size = _along(low, call)
    index = call["index"]
    if isinstance(index, Size) or not isinstance(size, Size):
        index = index + size if decided(lambda: index < 0) else index
    return _selected(low, call, value, dim, index)


def _selected(low: Lowering, call: Call, value: Any, dim: int, index: Any) -> Any:
    piece = part(low, call, value, dim, (index, None if index == -1 else index + 1))
    if isinstance(piece, Constant):
        return Constant(piece.value.squeeze(dim), low.key("squeeze", piece.key, dim), piece.parameter, piece.trained)
    return squeezed(low, call, piece, [dim])


def unbind(low: Lowering, call: Call) -> list[Any]:
    value, dim, size = _along(low, call)
    return [_selected(low, call, value, dim, index) for index in range(_count(low, call, size))]


def _count(low: Lowering, call: Call, size: Any) -> int:
    count = low.fixed(call, size, "size")
    if count > 10_000:
        raise low.unknown(call, f"{count} parts")
    return count


def split(low: Lowering, call: Call) -> list[Any]:
    """split, split_with_sizes, chunk, tensor_split: one slice per part."""
    value, dim, size = _along(low, call)
    name = call.operator.partition(".")[0]
    if name == "tensor_split":
        if "indices" in call.args:
            bounds = [0, *low.integers(call, "indices"), low.fixed(call, size, "size")]
        else:
            sections, whole = low.integer(call, "sections"), low.fixed(call, size, "size")
            wide = [whole // sections + (index < whole % sections) for index in range(_count(low, call, sections))]
            bounds = [sum(wide[:index]) for index in range(sections + 1)]
    elif call.args.get("split_sizes") is not None or isinstance(call.args.get("split_size"), list):
        key = "split_sizes" if "split_sizes" in call.args else "split_size"
        lengths = list(call[key])
        bounds = [0]
        for length in lengths:
            bounds.append(bounds[-1] + length)
        if bounds[-1] != size:
            raise low.refused(call, f"parts of {text(lengths)} of {text([size])}")
    else:
        whole = low.fixed(call, size, "size")
        if name in ("chunk", "unsafe_chunk"):
            chunks = low.integer(call, "chunks")
            if chunks < 1:
                raise low.refused(call, f"{chunks} chunks")
            length = -(-whole // chunks)
        else:
            length = low.integer(call, "split_size")
        if length < 1:
            raise low.refused(call, f"parts of {length}")
        _count(low, call, -(-whole // length))
        bounds = [*range(0, whole, length), whole]
    return [part(low, call, value, dim, ends) for ends in pairwise(bounds)]


# --- joins -----------------------------------------------------------------------------------------------------------


def joined(low: Lowering, call: Call, values: list[Any], dim: int) -> Any:
    """Concatenation along `dim`; what is one number throughout becomes padding."""
    values = [item for item in values if low.shape(item) != [0]]
    whole = [item for item in values if not isinstance(item, Filled)]
    if len(whole) != len(values):
        if len(whole) != 1 or not isinstance(whole[0], fx.Node | Turned):
            raise low.unknown(call, "several activations and a constant")
        lying = [seen(whole[0])]
        inner = lying[0].dim(dim)
        if inner == 0:
            raise low.unknown(call, "a concatenation along the batch")
        place = values.index(whole[0])
        numbers = {item.number for item in values if isinstance(item, Filled)}
        if len(numbers) != 1:
            raise low.unknown(call, "constants of several numbers")
        before, after = (
            sum(low.fixed(call, item.sizes[dim], "size") for item in group)
            for group in (values[:place], values[place + 1 :])
        )
        amounts = [0, 0] * (len(low.shape(lying[0].node)) - 1 - inner) + [before, after]
        made = low.call(aten.constant_pad_nd.default, lying[0].node, amounts, numbers.pop())
        return settled(low, Turned(made, lying[0].order))
    if len(values) == 1:
        return values[0]
    activations = [item for item in values if isinstance(item, fx.Node | Turned)]
    if not activations or not all(isinstance(item, fx.Node | Turned | Constant | Spread) for item in values):
        raise low.unknown(call, "no activation among what it joins")
    lying = aligned(low, call, activations, in_order=len(activations) < len(values))
    inner = lying[0].dim(dim)
    if inner == 0:
        raise low.unknown(call, "a concatenation along the batch")
    first, rest = lying[0], iter(lying)
    nodes = [
        beside(low, call, item, first, dim) if isinstance(item, Constant | Spread) else next(rest).node
        for item in values
    ]
    return settled(low, Turned(low.call(aten.cat.default, nodes, inner), first.order))


def cat(low: Lowering, call: Call) -> Any:
    values = list(call["tensors"])
    ranks = [len(low.shape(item)) for item in values if low.shape(item) != [0]]
    if not ranks:
        raise low.refused(call, "nothing to join")
    return joined(low, call, values, low.dim(call, low.integer(call, "dim"), ranks[0]))


def stack(low: Lowering, call: Call) -> Any:
    values = list(call["tensors"])
    if not values:
        raise low.refused(call, "nothing to join")
    dim = low.dim(call, low.integer(call, "dim"), len(low.shape(values[0])) + 1)
    return joined(low, call, [unsqueezed(low, call, item, dim) for item in values], dim)


def roll(low: Lowering, call: Call) -> Any:
    """Two slices the other way round, per dimension."""
    value = call["self"]
    shape = low.shape(value)
    shifts, dims = low.integers(call, "shifts"), low.integers(call, "dims")
    if len(shifts) != len(dims):
        raise low.unknown(call, f"shifts {shifts} along dimensions {dims}")
    for shift, given in zip(shifts, dims, strict=True):
        dim = low.dim(call, given, len(shape))
        size = shape[dim]
        at = -shift if isinstance(size, Size) else -(shift % size)
        if at:
            ends = ((at, None), (None, at))
            value = joined(low, call, [part(low, call, value, dim, bounds) for bounds in ends], dim)
    return value


def expand(low: Lowering, call: Call) -> Any:
    """The batch is not made by it: a constant that is expanded along the batch stays as it is, and is broadcast."""
    value = call["self"]
    sizes = list(low.shape(call["other"]) if "other" in call.args else call["size"])
    shape = low.shape(value)
    if len(sizes) < len(shape):
        raise low.refused(call, f"an expansion of {text(shape)} to {text(sizes)}")
    shape = [1] * (len(sizes) - len(shape)) + shape
    sizes = [old if new == -1 else new for old, new in zip(shape, sizes, strict=True)]
    if isinstance(value, Filled):
        return Filled(value.number, tuple(sizes))
    if isinstance(value, Constant):
        if value.value.numel() == 1 and not value.trained:
            return Filled(float(value.value.reshape(())), tuple(sizes))
        own = list(value.value.shape)
        in_front = len(own) < len(sizes) and sizes[0] == low.batch and sizes[len(sizes) - len(own) :] == own
        if in_front or any(isinstance(size, Size) for size in sizes):
            return Spread(value, tuple(sizes))
        expanded = value.value.expand(sizes)  # where that is the batch, `met` and `beside` take one of them
        return Constant(expanded, low.key("expand", value.key, *sizes), value.parameter, value.trained)
    if sizes == shape:
        return value
    if not isinstance(value, fx.Node) or len(sizes) != len(low.shape(value)) or sizes[0] != shape[0]:
        raise low.unknown(call, f"an expansion of {text(shape)} to {text(sizes)}, {MOVED}")
    open_dims = [dim for dim, size in enumerate(sizes) if isinstance(size, Size) and size != shape[dim]]
    if any(shape[dim] != 1 for dim in open_dims):
        raise low.refused(call, f"an expansion of {text(shape)} to {text(sizes)}")
    held = low.holder([sizes[dim] for dim in open_dims], open_dims) if open_dims else None
    for dims in [open_dims] if held is not None else [[dim] for dim in open_dims]:
        held = low.holder([sizes[dim] for dim in dims], dims)
        if held is None:
            raise low.unknown(
                call, f"an expansion of {text(shape)} to {text(sizes)}, open sizes that no value has there"
            )
        value = low.call(expand_like, value, held[0], dims)
    new = [
        -1 if wanted == old or dim in open_dims else low.fixed(call, wanted, "size")
        for dim, (old, wanted) in enumerate(zip(shape, sizes, strict=True))
    ]
    return low.call(aten.expand.default, value, new) if set(new) != {-1} else value


def repeat(low: Lowering, call: Call) -> Any:
    value = call["self"]
    if isinstance(value, Constant) and value.value.dim() == 1 and list(call["repeats"]) == [low.batch]:
        return Spread(value, (low.batch * value.value.numel(),))
    if isinstance(value, Constant):
        repeats, own = list(call["repeats"]), list(value.value.shape)
        own = [1] * (len(repeats) - len(own)) + own
        if len(own) == len(repeats) and all(1 in (size, times) for size, times in zip(own, repeats, strict=True)):
            sizes = [product(pair) for pair in zip(own, repeats, strict=True)]
            return expand(low, replace(call, args={"self": value, "size": sizes}))
    x = low.activation(call, "self")
    repeats = low.integers(call, "repeats")
    if len(repeats) != len(x.meta["shape"]) or repeats[0] != 1 or min(repeats) < 1:
        raise low.unknown(call, f"{repeats} repeats of an input of shape {text(low.shape(x))}")
    return x if set(repeats) == {1} else low.call(aten.repeat.default, x, repeats)


LOWERINGS: Mapping[str, Callable[[Lowering, Call], Any]] = {
    "slice.Tensor": slice_,
    "narrow.default": narrow,
    "select.int": select,
    "unbind.int": unbind,
    **dict.fromkeys(
        ("split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default", "unsafe_split.Tensor",
         "unsafe_chunk.default", "unsafe_split_with_sizes.default", "tensor_split.sections", "tensor_split.indices"),
        split,
    ),
    **dict.fromkeys(("cat.default", "concat.default", "concatenate.default"), cat),
    "stack.default": stack,
    "roll.default": roll,
    **dict.fromkeys(("expand.default", "expand_as.default"), expand),
    "repeat.default": repeat,
}  # fmt: skip
