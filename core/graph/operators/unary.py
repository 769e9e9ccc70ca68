"""Element by element, one input, as arithmetic knows it: Abs, Neg, Sign, Exp, Log, Sqrt, Erf, roundings, angles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from onnx import NodeProto, TensorProto
from torch import Tensor, fx

from core.graph.ids import Propagation, source
from core.graph.operators.form import Form

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten


def pass_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Each element by itself: the ids stay. What f makes of 0 does not matter: channels are zeroed behind it."""
    return p.ids[source(node)]


def unary_reader(target: Any) -> Callable[[Reading, NodeProto], fx.Node]:
    """Of an operator without attributes that ATen has as it is."""

    def read(reading: Reading, node: NodeProto) -> fx.Node:
        reading.attributes(node)
        return reading.call(target, reading.activation(node, 0))

    return read


def unary_writer(op_type: str) -> Callable[[Writing, fx.Node], None]:
    def write(writing: Writing, node: fx.Node) -> None:
        writing.add(op_type, [writing.value(source(node))], node)

    return write


def write_round(writing: Writing, node: fx.Node) -> None:
    """Round-11, halves to the even number. Before it: the integer below, and one more where what is left says so."""
    x = writing.value(source(node))
    if writing.opset >= 11:
        writing.add("Round", [x], node)
        return
    half = writing.number(node, 0.5, "half")
    below = writing.step(node, "Floor", x)
    left = writing.step(node, "Sub", x, below)
    halved = writing.step(node, "Mul", below, half)
    part = writing.step(node, "Sub", halved, writing.step(node, "Floor", halved))  # 0.5 where `below` is odd, else 0
    odd = writing.step(node, "Greater", part, writing.number(node, 0.25, "quarter"))
    at_least_half = writing.step(node, "Not", writing.step(node, "Less", left, half))
    more_than_half = writing.step(node, "Greater", left, half)
    up = writing.step(node, "Or", more_than_half, writing.step(node, "And", at_least_half, odd))
    writing.add("Add", [below, writing.step(node, "Cast", up, to=TensorProto.FLOAT)], node)


UNARY = {
    "Abs": aten.abs.default,
    "Acos": aten.acos.default,
    "Acosh": aten.acosh.default,
    "Asin": aten.asin.default,
    "Asinh": aten.asinh.default,
    "Atan": aten.atan.default,
    "Atanh": aten.atanh.default,
    "Ceil": aten.ceil.default,
    "Cos": aten.cos.default,
    "Cosh": aten.cosh.default,
    "Erf": aten.erf.default,
    "Exp": aten.exp.default,
    "Floor": aten.floor.default,
    "Log": aten.log.default,
    "Neg": aten.neg.default,
    "Reciprocal": aten.reciprocal.default,
    "Relu": aten.relu.default,
    "Round": aten.round.default,
    "Sigmoid": aten.sigmoid.default,
    "Sign": aten.sign.default,
    "Sin": aten.sin.default,
    "Sinh": aten.sinh.default,
    "Sqrt": aten.sqrt.default,
    "Tan": aten.tan.default,
    "Tanh": aten.tanh.default,
}
"""ONNX operator <-> ATen call. Each is in opset 9 already, but for Round."""

READERS = {op_type: unary_reader(target) for op_type, target in UNARY.items()}
FORMS = {
    **{target: Form(pass_rule, unary_writer(op_type)) for op_type, target in UNARY.items()},
    aten.round.default: Form(pass_rule, write_round),
}
