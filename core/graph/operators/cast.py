"""From one type of numbers to another: Cast and CastLike, among float32, bool, int32 and int64.

A network computes in float32, or in float64 where a cut is proved: "to float" is therefore said as `type_as` another
value that is floating-point, never as a fixed type.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch
from onnx import NodeProto, TensorProto, helper
from torch import fx

from core.graph.ids import argument, source
from core.graph.operators.form import Form
from core.graph.operators.unary import pass_rule

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten
TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
}
NUMBERS = {kind: number for number, kind in TYPES.items()}


def read_cast(reading: Reading, node: NodeProto) -> fx.Node:
    """Cast-9, 13 and up. To an integer it cuts off what is behind the point; to bool it asks for what is not 0."""
    to = reading.attributes(node, to=None, saturate=1, round_mode=b"up")["to"]
    if to not in TYPES:
        kind = TensorProto.DataType.Name(to) if to in TensorProto.DataType.values() else str(to)
        raise reading.unknown(node, f"a cast to {kind}")
    x = reading.activation(node, 0)
    if x.meta["dtype"] == TYPES[to]:
        return x
    if to == TensorProto.FLOAT:
        return reading.call(aten.type_as.default, x, floating_point_source(x))
    if to == TensorProto.BOOL:
        return reading.call(aten.ne.Scalar, x, 0)
    return reading.call(aten.to.dtype, x, TYPES[to])


def floating_point_source(x: fx.Node) -> fx.Node:
    """The nearest floating-point value that `x` is made from: every integer and truth value is made from one, or from
    constants, beside which the network's input serves."""
    waiting, seen = deque([x]), {x}
    while waiting:
        node = waiting.popleft()
        if node.meta["dtype"].is_floating_point:
            return node
        waiting.extend(item for item in node.all_input_nodes if item not in seen)
        seen.update(node.all_input_nodes)
    first: fx.Node = next(node for node in x.graph.nodes if node.op == "placeholder")
    return first


def as_cast(reading: Reading, node: NodeProto) -> NodeProto:
    """CastLike-15 as the Cast that it is: only the type of its second input matters."""
    kind = getattr(torch, reading.kind(node, 1), None)
    if kind not in NUMBERS:
        raise reading.unknown(node, f"a cast to {reading.kind(node, 1)}")
    return helper.make_node("Cast", [node.input[0]], list(node.output), name=node.name, to=NUMBERS[kind])


def read_cast_like(reading: Reading, node: NodeProto) -> fx.Node:
    return read_cast(reading, as_cast(reading, node))


def write_cast(writing: Writing, node: fx.Node) -> None:
    to = NUMBERS[argument(node, 1)] if node.target is aten.to.dtype else TensorProto.FLOAT
    writing.add("Cast", [writing.value(source(node))], node, to=to)


READERS = {"Cast": read_cast, "CastLike": read_cast_like}
FORMS = {
    aten.to.dtype: Form(pass_rule, write_cast),
    aten.type_as.default: Form(pass_rule, write_cast),
}
