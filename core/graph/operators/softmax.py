"""Softmax and LogSoftmax, along one dimension or, as before opset 13, over several together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, source
from core.graph.operators.form import Form

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten


def _softmax_reader(target: Any) -> Callable[[Reading, NodeProto], fx.Node]:
    def read(reading: Reading, node: NodeProto) -> fx.Node:
        """Softmax-13 works along `axis`; 1 and 11 on all dimensions from `axis` on, which are flattened for it."""
        x = reading.activation(node, 0)
        shape = x.meta["shape"]
        axis = reading.axis(node, reading.attributes(node, axis=-1 if reading.opset >= 13 else 1)["axis"], len(shape))
        if reading.opset < 13:
            wide = [dim for dim in range(axis, len(shape)) if shape[dim] != 1]
            if axis > 0 and len(wide) > 1:
                return _together(reading, node, target, x, wide[0])
            axis = wide[0] if axis > 0 and wide else axis
        if axis == 0:
            raise reading.unknown(node, "a softmax over the batch")
        return reading.call(target, x, axis)

    return read


def _together(reading: Reading, node: NodeProto, target: Any, x: fx.Node, axis: int) -> fx.Node:
    """Over all numbers from dimension `axis` on."""
    sizes = [
        size if size == other else -1
        for size, other in zip(x.meta["shape"][axis:], reading.other_shape(x)[axis:], strict=True)
    ]
    if sizes.count(-1) > 1:
        raise reading.unknown(node, "a softmax over several dynamic dimensions together")
    flat = reading.call(target, reading.call(aten.flatten.using_ints, x, axis, -1), axis)
    return reading.call(aten.unflatten.int, flat, axis, sizes)


def _softmax_writer(op_type: str) -> Callable[[Writing, fx.Node], None]:
    def write(writing: Writing, node: fx.Node) -> None:
        """Before opset 13 it works on all dimensions from `axis` on: the one is moved to the end and back."""
        shape = node.meta["shape"]
        axis = int(argument(node, 1)) % len(shape)
        x = writing.value(source(node))
        if writing.opset >= 13 or axis == len(shape) - 1:
            writing.add(op_type, [x], node, axis=axis)
            return
        last = [dim for dim in range(len(shape)) if dim != axis] + [axis]
        back = [last.index(dim) for dim in range(len(shape))]
        turned = writing.step(node, op_type, writing.step(node, "Transpose", x, perm=last), axis=len(shape) - 1)
        writing.add("Transpose", [turned], node, perm=back)

    return write


def softmax_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Along the channels every output needs every input: frozen. Along a stack of branches they are united."""
    ids = p.ids[source(node)]
    if p.merged(ids, [int(argument(node, 1))]) is None:
        return p.frozen_result([ids], node, "a softmax along the channels needs all of them")
    return ids


READERS = {
    "Softmax": _softmax_reader(aten.softmax.int),
    "LogSoftmax": _softmax_reader(aten.log_softmax.int),
}
FORMS = {
    aten.softmax.int: Form(softmax_rule, _softmax_writer("Softmax")),
    aten.log_softmax.int: Form(softmax_rule, _softmax_writer("LogSoftmax")),
}
