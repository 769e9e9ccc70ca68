"""From ATen calls that move numbers without changing them to canonical forms: views and permutations.

Everything here keeps the batch in front, or carries it elsewhere as `Turned` until it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from core.graph.operators.reshape import unflatten_like
from core.graph.pt2_lowering import Lowering
from core.graph.pt2_sizes import Size, product, quotient, values_of
from core.graph.pt2_turned import around, placed, seen, settled
from core.graph.pt2_values import Call, Constant, Filled, Merged, Spread
from core.graph.turned import Place, Turned

aten = torch.ops.aten
MOVED = "which moves the batch"


# --- views -----------------------------------------------------------------------------------------------------------


def reshaped(low: Lowering, call: Call, value: Any, wanted: Sequence[Any]) -> Any:
    """`value` in the sizes `wanted`, of which one may be -1."""
    sizes = list(wanted)
    shape = low.shape(value)
    total = product(shape)
    if sizes.count(-1) == 1:
        known = product(size for size in sizes if size != -1)
        follows = quotient(total, known)
        if follows is None:
            raise low.refused(call, f"a view of {text(shape)} as {text(sizes)}: the sizes do not say one shape")
        sizes[sizes.index(-1)] = follows
    if -1 in sizes or product(sizes) != total:
        raise low.refused(call, f"a view of {text(shape)} as {text(sizes)}")
    if isinstance(value, Filled):
        return Filled(value.number, tuple(sizes))
    if isinstance(value, Spread):
        own = list(value.constant.value.shape)
        if any(len(given) <= len(own) or given[len(given) - len(own) :] != own for given in (shape, sizes)):
            raise low.unknown(call, f"a view of {text(shape)} as {text(sizes)}, {MOVED}")
        return Spread(value.constant, tuple(sizes))
    if sizes == shape:
        return value
    if isinstance(value, Merged):
        if sizes == low.shape(value.node):
            return value.node
        raise low.unknown(call, f"a view of {text(shape)} as {text(sizes)}, {MOVED}")
    if isinstance(value, fx.Node):
        if sizes and sizes[0] == low.batch:
            return _view(low, call, value, sizes[1:])
        if len(shape) > 2 and sizes == [1, shape[0] * shape[1], *shape[2:]]:
            return Merged(value)
    found = around(low, seen(value), sizes)
    if found is None:
        raise low.unknown(call, f"a view of {text(shape)} as {text(sizes)}, {MOVED}")
    node, behind, layout = found
    return placed(low, _view(low, call, node, behind), layout)


def _view(low: Lowering, call: Call, node: fx.Node, sizes: list[Any]) -> fx.Node:
    """`node` with `sizes` behind the batch."""
    given = low.shape(node)[1:]
    if sizes == given:
        return node
    if any(isinstance(size, Size) and size.follows_batch for size in sizes):
        raise low.unknown(call, f"a view of {text(given)} per example as {text(sizes)}, {MOVED}")
    if not given:
        for _ in sizes:  # ones
            node = low.call(aten.unsqueeze.default, node, 1)
        return node
    if not any(isinstance(size, Size) for size in (*given, *sizes)):
        if len(sizes) == 1:
            return low.call(aten.flatten.using_ints, node, 1, -1)
        if not sizes:
            return low.call(aten.squeeze.dims, node, list(range(1, len(given) + 1)))
        return low.call(aten.reshape.default, node, [-1, *sizes])
    place = 1
    for left, right in _segments(low, call, given, sizes):
        if left != right:
            if len(left) > 1:
                node = low.call(aten.flatten.using_ints, node, place, place + len(left) - 1)
            if len(right) > 1:
                node = _parted(low, call, node, place, right)
        place += len(right)
    return node


def _segments(low: Lowering, call: Call, given: list[Any], wanted: list[Any]) -> list[tuple[list[Any], list[Any]]]:
    """Both shapes in as many parts, the parts holding as many numbers for every image; each as short as can be."""
    found: list[tuple[list[Any], list[Any]]] = []
    a, b = 0, 0
    while a < len(given) and b < len(wanted):
        left, right = [given[a]], [wanted[b]]
        a, b = a + 1, b + 1
        while (sizes := (product(left), product(right)))[0] != sizes[1]:
            more_left = a < len(given) and (values_of(sizes[0]) < values_of(sizes[1]) or b >= len(wanted))
            if not more_left and b >= len(wanted):
                raise low.unknown(call, f"a view of {text(given)} per example as {text(wanted)}")
            if more_left:
                left.append(given[a])
                a += 1
            else:
                right.append(wanted[b])
                b += 1
        found.append((left, right))
    found[-1][0].extend(given[a:])  # ones
    found[-1][1].extend(wanted[b:])
    return found


def _parted(low: Lowering, call: Call, node: fx.Node, dim: int, sizes: list[Any]) -> fx.Node:
    """`dim` as several `sizes`. Of open ones one follows from the rest, the others must be those of a value."""
    rest = [-1 if isinstance(size, Size) else size for size in sizes]
    if rest.count(-1) <= 1:
        return low.call(aten.unflatten.int, node, dim, rest)
    places = [index for index, size in enumerate(rest) if size == -1]
    for left_out in (None, *places):
        chosen = [index for index in places if index != left_out]
        held = low.holder([sizes[index] for index in chosen])
        if held is not None:
            dims = [held[1][chosen.index(index)] if index in chosen else -1 for index in range(len(rest))]
            return low.call(unflatten_like, node, held[0], dim, rest, dims)
    raise low.unknown(call, f"a view as {text(sizes)}, open sizes that no one value has")


def text(sizes: Sequence[Any]) -> str:
    return "(" + ", ".join(str(size)[:60] for size in sizes) + ")"


def view(low: Lowering, call: Call) -> Any:
    """view, reshape, _unsafe_view, and those that take the sizes of another tensor."""
    sizes = low.shape(call["other"]) if "other" in call.args else call["size" if "size" in call.args else "shape"]
    return reshaped(low, call, call["self"], sizes)


def flatten(low: Lowering, call: Call) -> Any:
    shape = low.shape(call["self"])
    start, end = (low.dim(call, low.integer(call, key), len(shape)) for key in ("start_dim", "end_dim"))
    if not shape or start > end:
        raise low.refused(call, f"dimensions {start} to {end}")
    return reshaped(low, call, call["self"], [*shape[:start], product(shape[start : end + 1]), *shape[end + 1 :]])


def unflatten(low: Lowering, call: Call) -> Any:
    shape = low.shape(call["self"])
    dim = low.dim(call, low.integer(call, "dim"), len(shape))
    sizes = list(call["sizes"])
    if sizes.count(-1) == 1:
        known = product(size for size in sizes if size != -1)
        follows = quotient(shape[dim], known)
        if follows is None:
            raise low.refused(call, f"{text([shape[dim]])} as {text(sizes)}")
        sizes[sizes.index(-1)] = follows
    return reshaped(low, call, call["self"], [*shape[:dim], *sizes, *shape[dim + 1 :]])


def as_strided(low: Lowering, call: Call) -> Any:
    """Only where it is a view in plain order of what is in plain order, or leaves its input as it is (decompositions of
    poolings end in one)."""
    sizes, strides = list(call["size"]), list(call["stride"])
    given = call.strides.get("self")
    if given is None or call["storage_offset"] or len(sizes) != len(strides):
        raise low.unknown(call, "strides of its own")

    def plain(shape: Sequence[Any], steps: Sequence[Any]) -> bool:
        expected: Any = 1
        for size, step in zip(reversed(shape), reversed(steps), strict=True):
            if size != 1 and step != expected:
                return False
            expected = product((expected, size))
        return True

    def wide(shape: Sequence[Any], steps: Sequence[Any]) -> list[tuple[Any, Any]]:
        return [(size, step) for size, step in zip(shape, steps, strict=True) if size != 1]

    untouched = list(given[0]) == sizes and wide(*given) == wide(sizes, strides)
    if not untouched and not (plain(*given) and plain(sizes, strides)):
        raise low.unknown(call, "strides of its own")
    return reshaped(low, call, call["self"], sizes)


# --- permutations ----------------------------------------------------------------------------------------------------


def _order(low: Lowering, call: Call, rank: int) -> list[int]:
    dims = list(range(rank))
    name = call.operator.partition(".")[0]
    if name == "permute":
        return [low.dim(call, dim, rank) for dim in low.integers(call, "dims")]
    if name in ("movedim", "moveaxis"):
        keys = ("source", "destination")
        source, destination = (
            [low.dim(call, dim, rank) for dim in (call[key] if isinstance(call[key], list) else [call[key]])]
            for key in keys
        )
        rest = iter(dim for dim in dims if dim not in source)
        return [source[destination.index(dim)] if dim in destination else next(rest) for dim in dims]
    given = tuple(call.args.get(f"dim{place}", call.args.get(f"axis{place}")) for place in (0, 1))
    last = (rank - 2, rank - 1)
    first, second = {"t": (0, 1), "numpy_T": (0, 1), "mT": last, "adjoint": last}.get(name, given)
    if rank < 2 or (name in ("t", "numpy_T") and rank != 2):
        raise low.unknown(call, f"an input of rank {rank}")
    first, second = (low.dim(call, low.fixed(call, dim, "dim"), rank) for dim in (first, second))
    dims[first], dims[second] = dims[second], dims[first]
    return dims


def permute(low: Lowering, call: Call) -> Any:
    """permute, transpose, t, movedim and their other names."""
    value = call["self"]
    rank = len(low.shape(value))
    order = _order(low, call, rank)
    if sorted(order) != list(range(rank)):
        raise low.refused(call, f"the order {order} of {rank} dimensions")
    if isinstance(value, Filled):
        return Filled(value.number, tuple(value.sizes[dim] for dim in order))
    lying = low.seen(call, value)
    return settled(low, Turned(lying.node, tuple(lying.order[dim] for dim in order)))


# --- dimensions of one -----------------------------------------------------------------------------------------------


def squeeze(low: Lowering, call: Call) -> Any:
    """Dimensions that are not 1 stay, as ATen has it; the batch is never squeezed."""
    value = call["self"]
    shape = low.shape(value)
    given = call.args.get("dim")
    batch = value.batch if isinstance(value, Turned) else 0
    every = [dim for dim in range(len(shape)) if dim != batch]
    dims = every if given is None else given if isinstance(given, list) else [given]
    dims = [low.dim(call, low.fixed(call, dim, "dim"), len(shape)) for dim in dims]
    if isinstance(value, Filled):
        return Filled(value.number, tuple(size for dim, size in enumerate(shape) if dim not in dims or size != 1))
    if given is None and low.static_batch == 1:
        raise low.unknown(call, "no dimensions on a batch of 1, which it would squeeze too")
    return squeezed(low, call, value, [dim for dim in dims if shape[dim] == 1])


def squeezed(low: Lowering, call: Call, value: Any, dims: list[int]) -> Any:
    if not dims:
        return value
    lying = low.seen(call, value)
    gone = sorted(lying.dim(dim) for dim in dims)
    if 0 in gone:
        raise low.unknown(call, "a squeeze of the batch")
    return settled(low, Turned(low.call(aten.squeeze.dims, lying.node, gone), lying.without(set(dims))))


def unsqueeze(low: Lowering, call: Call) -> Any:
    value = call["self"]
    rank = len(low.shape(value)) + 1
    return unsqueezed(low, call, value, low.dim(call, low.integer(call, "dim"), rank))


def unsqueezed(low: Lowering, call: Call, value: Any, dim: int) -> Any:
    if isinstance(value, Filled):
        return Filled(value.number, (*value.sizes[:dim], 1, *value.sizes[dim:]))
    if isinstance(value, Constant):
        return Constant(
            value.value.unsqueeze(dim), low.key("unsqueeze", value.key, dim), value.parameter, value.trained
        )
    lying = low.seen(call, value)
    before = lying.order[dim] if dim < len(lying.order) else None
    at = before if isinstance(before, int) and before > 0 else len(lying.node.meta["shape"])

    def moved(place: Place) -> Place:
        return place + (place >= at) if isinstance(place, int) else tuple(item + (item >= at) for item in place)

    order = [moved(place) for place in lying.order]
    order.insert(dim, at)
    return settled(low, Turned(low.call(aten.unsqueeze.default, lying.node, at), tuple(order)))


LOWERINGS: Mapping[str, Callable[[Lowering, Call], Any]] = {
    **dict.fromkeys(
        ("view.default", "reshape.default", "_unsafe_view.default", "view_copy.default", "_reshape_copy.default",
         "view_as.default", "reshape_as.default"), view,
    ),
    "flatten.using_ints": flatten,
    "unflatten.int": unflatten,
    "as_strided.default": as_strided,
    **dict.fromkeys(
        ("permute.default", "transpose.int", "t.default", "numpy_T.default", "mT.default", "movedim.int",
         "movedim.intlist", "moveaxis.int", "swapaxes.default", "swapdims.default", "adjoint.default"), permute,
    ),
    **dict.fromkeys(("squeeze.default", "squeeze.dim", "squeeze.dims"), squeeze),
    "unsqueeze.default": unsqueeze,
}  # fmt: skip
