"""Concat, and what constants become that are joined to activations: padding, or tensors as long as the batch."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, compressed
from core.graph.onnx_spreads import Spread
from core.graph.operators.form import Form
from core.graph.operators.padding import padded

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten


def read_concat(reading: Reading, node: NodeProto) -> fx.Node:
    """Concat-4, 11, 13. A constant of one number that is as long as the batch is padding of what it stands beside."""
    spreads = {index: found for index in range(len(node.input)) if (found := reading.spread(node, index))}
    fillings = {index: found for index, found in spreads.items() if _is_filling(found)}

    def part(index: int) -> fx.Node:
        found = spreads.get(index)
        return reading.activation(node, index) if found is None else reading.spread_node(node, index, found)

    shape = part(next((index for index in range(len(node.input)) if index not in spreads), 0)).meta["shape"]
    axis = reading.axis(node, reading.attributes(node, axis=1)["axis"], len(shape))
    if axis == 0:
        raise reading.misplaced(node, "joins its inputs along the batch", "an axis of 1 or more")
    fillings = {index: item for index, item in fillings.items() if _is_beside(item, shape, axis)}
    if len(fillings) == len(node.input):
        fillings.pop(0)
    pieces: list[fx.Node] = []
    ahead: list[Spread] = []
    for is_filling, indices in groupby(range(len(node.input)), fillings.__contains__):
        if not is_filling:
            joined = [part(index) for index in indices]
            joined[0] = _padded(reading, joined[0], axis, ahead[::-1], front=True)
            ahead = []
            pieces += joined
        elif pieces:
            pieces[-1] = _padded(reading, pieces[-1], axis, [fillings[index] for index in indices], front=False)
        else:
            ahead = [fillings[index] for index in indices]
    return reading.call(aten.cat.default, pieces, axis) if len(pieces) > 1 else pieces[0]


def _is_filling(item: Spread) -> bool:
    """Whether it is one number throughout, of float32, and its batch is in front."""
    return item.number is not None and item.along_batch and item.array.dtype == np.float32


def _is_beside(item: Spread, shape: tuple[int, ...], axis: int) -> bool:
    """Whether it is as large as an activation of `shape`, but for a fixed size along `axis`."""
    sizes = [size.examples[0] if not isinstance(size, int) else size for size in item.sizes]
    return isinstance(item.sizes[axis], int) and [*sizes[1:axis], *sizes[axis + 1 :]] == [
        *shape[1:axis],
        *shape[axis + 1 :],
    ]


def _padded(reading: Reading, x: fx.Node, axis: int, items: list[Spread], *, front: bool) -> fx.Node:
    """`x` with what `items` hold on one side of it, the nearest first."""
    for number, run in groupby(items, lambda item: float(item.number)):
        amount = sum(item.sizes[axis] for item in run)
        x = padded(reading, x, {axis: (amount, 0) if front else (0, amount)}, number)
    return x


def concat_rule(p: Propagation, node: fx.Node) -> Tensor:
    """ATen's own `cat`, on ids. Dimensions along which nothing varies stay expanded views, and take no memory."""
    dim = int(argument(node, 1, 0)) % len(node.meta["shape"])
    inputs = [p.ids[item] for item in argument(node, 0)]
    _tie_beside(p, inputs, dim)
    for other in range(len(node.meta["shape"])):
        if other != dim and all(ids.stride(other) == 0 or ids.shape[other] == 1 for ids in inputs):
            inputs = [ids.narrow(other, 0, 1) for ids in inputs]
    return torch.cat(inputs, dim).expand(node.meta["shape"])


def _tie_beside(p: Propagation, inputs: list[Tensor], dim: int) -> None:
    """What is joined along space or tokens has one set of channels: those of the inputs go together."""
    steady = [
        ids.narrow(dim, 0, 1)
        for ids in inputs
        if not _varies(ids, dim) and any(_varies(ids, other) for other in range(ids.dim()))
    ]
    if steady:
        for ids in inputs:
            p.unite(steady[0].expand_as(ids), ids)


def _varies(ids: Tensor, dim: int) -> bool:
    (small,) = compressed(ids)
    return small.shape[dim] > 1 and bool((small != small.narrow(dim, 0, 1)).any())


def write_concat(writing: Writing, node: fx.Node) -> None:
    inputs = [writing.value(item) for item in argument(node, 0)]
    writing.add("Concat", inputs, node, axis=int(argument(node, 1, 0)))


READERS = {"Concat": read_concat}
FORMS: dict[Any, Form] = {aten.cat.default: Form(concat_rule, write_concat)}
