"""Values of an exported program whose batch is not in front (`turned.py`): laid beside each other, and put back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx

from core.graph.operators.shape import expand_like
from core.graph.pt2_sizes import Size, decided, product, quotient, values_of
from core.graph.pt2_values import Activation, Call, Constant, Spread
from core.graph.turned import Layout, Turned, laid_out

if TYPE_CHECKING:
    from core.graph.pt2_lowering import Lowering

aten = torch.ops.aten


def seen(value: Activation) -> Turned:
    """An activation as one whose dimensions may be in any order."""
    return value if isinstance(value, Turned) else Turned(value, tuple(range(len(value.meta["shape"]))))


def settled(low: Lowering, value: Turned) -> Activation:
    """As a node of the graph, its dimensions put in order, where the batch is alone in front."""
    if value.order[0] != 0:
        return value
    return permuted(low, value.node, [value.dim(axis) for axis in range(len(value.order))])


def permuted(low: Lowering, node: fx.Node, order: Sequence[int]) -> fx.Node:
    """`node` with its dimensions in another order, the batch in front."""
    source, wanted = node, list(order)
    if node.target is aten.permute.default:  # of two permutations one is made
        source, first = cast("tuple[fx.Node, list[int]]", node.args)
        wanted = [first[dim] for dim in wanted]
    return source if wanted == sorted(wanted) else low.once(aten.permute.default, source, wanted)


def straight(low: Lowering, value: Activation) -> tuple[fx.Node, Layout]:
    """The node behind a value with its dimensions as they follow each other in the value, and where the batch lies."""
    if not isinstance(value, Turned):
        return value, Layout()
    order, layout = laid_out(value)
    return permuted(low, value.node, order), layout


def placed(low: Lowering, node: fx.Node, layout: Layout) -> Activation:
    """What `straight` has taken apart."""
    return settled(low, layout.of(node))


def aligned(low: Lowering, call: Call, values: Sequence[Activation], in_order: bool = False) -> list[Turned]:
    """Values whose dimensions are those of their nodes in one order, so that nodes meet as the values do; `in_order`:
    that of a `Layout`. Of fewer dimensions than others, a value gets ones in front, as ATen has it.

    Raises `OperatorUnknown` for those whose batch lies in different places.
    """
    found = [seen(value) for value in values]
    if in_order or len({value.order for value in found}) > 1:
        rank = max(len(value.order) for value in found)
        found = [_in_order(low, value, rank - len(value.order)) for value in found]
    folded = {tuple(low.shape(value.node)[dim] for dim in value.dims(value.batch)) for value in found}
    places = {(value.order[value.batch], value.batch - len(value.order)) for value in found}
    if len(folded) > 1 or len(places) > 1:
        raise low.unknown(call, "operands whose batch lies in different places")
    return found


def _in_order(low: Lowering, value: Turned, missing: int) -> Turned:
    node, layout = straight(low, value)
    for _ in range(missing):
        node = low.call(aten.unsqueeze.default, node, 1)
    return Layout(layout.before + missing, layout.left, layout.right).of(node)


def _repeated(tensor: Tensor, dim: int) -> bool:
    """Whether it is the same all along `dim`."""
    first = tensor.narrow(dim, 0, 1)
    return tensor.stride(dim) == 0 or bool(torch.equal(tensor, first.expand_as(tensor)))


def once_per_example(low: Lowering, constant: Constant) -> Constant:
    """A constant that an export of a fixed batch size repeats for every example in front, once."""
    tensor = constant.value
    if tensor.dim() < 2 or tensor.shape[0] != low.static_batch or tensor.shape[0] == 1 or not _repeated(tensor, 0):
        return constant
    return Constant(tensor[:1], low.key("once", constant.key), constant.parameter, constant.trained)


def met(low: Lowering, call: Call, constant: Constant, value: Turned) -> Constant:
    """A constant that meets a value in the order of a `Layout`, in the dimensions of its node. It must be the same for
    all examples."""
    rank, before = len(value.order), value.batch
    behind = rank - 1 - before
    tensor = constant.value
    if tensor.dim() <= behind:
        return constant
    at = tensor.dim() - 1 - behind
    if _repeated(tensor, at):  # for every example
        tensor = tensor.narrow(at, 0, 1)
    if tensor.dim() > rank or tensor.shape[at] != 1:
        raise low.unknown(call, "a constant that meets the batch where it is not in front")
    front = (*(1,) * (rank - tensor.dim()), *tensor.shape[:at])
    folded = (1,) * (len(value.dims(before)) - 1)
    shape = (1, *front, *folded, *tensor.shape[at + 1 :])
    if shape == tuple(tensor.shape):
        return constant
    key = low.key("placed", constant.key, shape)
    return Constant(tensor.reshape(shape), key, constant.parameter, constant.trained)


def beside(low: Lowering, call: Call, item: Constant | Spread, value: Turned, dim: int) -> fx.Node:
    """A constant that is joined along `dim` to a value in the order of a `Layout`: a node as long as the batch and as
    the open dimensions of the value."""
    sizes, wanted = low.shape(item), low.shape(value)
    alike = len(sizes) == len(wanted) and all(
        axis in (dim, value.batch) or size == wanted[axis] for axis, size in enumerate(sizes)
    )
    if not alike or isinstance(sizes[dim], Size):
        raise low.unknown(call, "a constant beside activations of other or of open sizes")
    constant = item.constant if isinstance(item, Spread) else item
    full = constant.value.reshape((1,) * (len(sizes) - constant.value.dim()) + tuple(constant.value.shape))
    shape = [1 if axis == value.batch or isinstance(size, Size) else size for axis, size in enumerate(sizes)]
    if _repeated(full, value.batch):
        full = full.narrow(value.batch, 0, 1)
    if full.shape[value.batch] != 1:
        raise low.unknown(call, "a constant that is not the same for every example beside activations")
    key = low.key("beside", constant.key, tuple(shape))
    whole = Constant(full.expand(shape), key, constant.parameter, constant.trained)
    node = low.bare(call, met(low, call, whole, value))
    inner = value.dim(dim)
    given = low.shape(value.node)
    dims = [
        axis
        for axis, size in enumerate(node.meta["shape"])
        if axis != inner and size == 1 and (axis == 0 or given[axis] != 1)
    ]
    return low.call(expand_like, node, value.node, dims)


def around(low: Lowering, value: Turned, sizes: Sequence[Any]) -> tuple[fx.Node, list[Any], Layout] | None:
    """`value` in as many `sizes` that hold the same numbers, wherever that puts the batch: a node, its sizes behind the
    batch once it is reshaped, and where the batch lies then. None where that parts the batch.

    The numbers of a value lie in rows: what counts slower than the batch does so in the result too, and what counts
    faster.
    """
    node, layout = straight(low, value)
    own = low.shape(node)
    at = 1 + layout.before + layout.left
    slower, faster = own[1:at], own[at:]
    found = []
    is_folded = len(value.dims(value.batch)) > 1
    for place, size in enumerate(sizes):
        left = quotient(product(slower), product(sizes[:place]))
        right = quotient(product(faster), product(sizes[place + 1 :]))
        if left is None or right is None or not _positive(left, right):
            continue
        if product((left, low.batch, right)) == size:
            found.append((values_of(product((left, right)))[0], place, left, right))
    if not found:
        return None

    # where the batch is of one, it may be said to lie in several places, which all hold the same numbers: of a matrix
    # the rows are taken (a linear layer follows), else the place where it was if it was alone there (heads are parted),
    # else the one where the least is folded into it
    def rank(item: tuple[int, int, Any, Any]) -> tuple[Any, ...]:
        cost, place, *_ = item
        if len(sizes) == 2:
            return (cost != 1, place)
        return (is_folded or place != value.batch, cost, place)

    _, place, left, right = min(found, key=rank)
    lefts, rights = _last(slower[::-1], left)[::-1], _last(faster, right)
    new = [*sizes[:place], *lefts, *rights, *sizes[place + 1 :]]
    return node, new, Layout(place, len(lefts), len(rights))


def _positive(*sizes: Any) -> bool:
    return all(decided(lambda size=size: size >= 1) for size in sizes)  # type: ignore[misc]


def _last(sizes: list[Any], size: Any) -> list[Any]:
    """As many of `sizes` as hold `size` numbers, else that alone: none for 1."""
    if size == 1:
        return []
    return next((sizes[:count] for count in range(1, len(sizes) + 1) if product(sizes[:count]) == size), [size])
