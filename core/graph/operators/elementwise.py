"""Element by element, two inputs (Add, Sub, Mul, Div), and Concat: where paths of a network meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, compressed, source
from core.graph.operators.form import Form
from core.graph.operators.linear import raise_bias

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten


def _reader(target: Any) -> Callable[[Reading, NodeProto], fx.Node]:
    def read(reading: Reading, node: NodeProto) -> fx.Node:
        """Version 7 and up (broadcasting as numpy does). A constant of one element becomes an argument."""
        reading.attributes(node)
        if target is aten.add.Tensor and (raised := raise_bias(reading, node)) is not None:
            return raised
        a, b = reading.operand(node, 0), reading.operand(node, 1)
        if not isinstance(a, fx.Node) and not isinstance(b, fx.Node):
            raise reading.unknown(node, "two constants that cannot be folded")
        if not isinstance(a, fx.Node):  # number (op) tensor: only the tensor may come first
            if target in (aten.add.Tensor, aten.mul.Tensor):
                return reading.call(target, b, a)
            a = reading.constant_node(node, 0)
        return reading.call(target, a, b)

    return read


def _writer(op_type: str) -> Callable[[Writing, fx.Node], None]:
    def write(writing: Writing, node: fx.Node) -> None:
        other = argument(node, 1)
        is_number = not isinstance(other, fx.Node)
        right = writing.tensor(f"{node.name}.value", np.float32(other)) if is_number else writing.value(other)
        writing.add(op_type, [writing.value(source(node)), right], node)

    return write


def elementwise_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Ids that meet go together. One channel that is broadcast along the other side's channels must stay; where a gate
    per group of channels is broadcast inside the groups, each gate goes with its group."""
    shape = node.meta["shape"]
    sides = [p.ids[side] for side in node.args if isinstance(side, fx.Node)]
    sides = [side.reshape([1] * (len(shape) - side.dim()) + list(side.shape)) for side in sides]
    if len(sides) == 1:
        return sides[0].expand(shape)
    a, b = sides
    both = any(_varies(a, dim) and _varies(b, dim) for dim in range(len(shape)))
    for dim, size in enumerate(shape):
        for one, other in ((a, b), (b, a)):
            if one.shape[dim] == 1 and size > 1 and _varies(other, dim) and not both:
                p.freeze(one, node, "it is broadcast along the channels of another tensor")
                return other if other.shape == torch.Size(shape) else other.expand(shape)
    a, b = a.expand(shape), b.expand(shape)
    p.unite(a, b)
    return a if compressed(a)[0].numel() <= compressed(b)[0].numel() else b


def _varies(ids: Tensor, dim: int) -> bool:
    (small,) = compressed(ids)
    return small.shape[dim] > 1 and bool((small != small.narrow(dim, 0, 1)).any())


def read_concat(reading: Reading, node: NodeProto) -> fx.Node:
    """Concat-4, 11, 13."""
    inputs = [reading.activation(node, index) for index in range(len(node.input))]
    axis = reading.axis(node, reading.attributes(node, axis=1)["axis"], len(inputs[0].meta["shape"]))
    if axis == 0:
        raise reading.unknown(node, "a concatenation along the batch")
    return reading.call(aten.cat.default, inputs, axis)


def concat_rule(p: Propagation, node: fx.Node) -> Tensor:
    """ATen's own `cat`, on ids. Dimensions along which nothing varies stay expanded views, and take no memory."""
    dim = int(argument(node, 1, 0)) % len(node.meta["shape"])
    inputs = [p.ids[item] for item in argument(node, 0)]
    for other in range(len(node.meta["shape"])):
        if other != dim and all(ids.stride(other) == 0 or ids.shape[other] == 1 for ids in inputs):
            inputs = [ids.narrow(other, 0, 1) for ids in inputs]
    return torch.cat(inputs, dim).expand(node.meta["shape"])


def write_concat(writing: Writing, node: fx.Node) -> None:
    inputs = [writing.value(item) for item in argument(node, 0)]
    writing.add("Concat", inputs, node, axis=int(argument(node, 1, 0)))


READERS = {
    "Add": _reader(aten.add.Tensor),
    "Sub": _reader(aten.sub.Tensor),
    "Mul": _reader(aten.mul.Tensor),
    "Div": _reader(aten.div.Tensor),
    "Concat": read_concat,
}
FORMS = {
    aten.add.Tensor: Form(elementwise_rule, _writer("Add")),
    aten.sub.Tensor: Form(elementwise_rule, _writer("Sub")),
    aten.mul.Tensor: Form(elementwise_rule, _writer("Mul")),
    aten.div.Tensor: Form(elementwise_rule, _writer("Div")),
    aten.cat.default: Form(concat_rule, write_concat),
}
