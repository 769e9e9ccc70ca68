"""What makes and reads truth values: Equal, Greater, Less ..., Not, And, Or, Xor, IsNaN, IsInf, and Where."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto
from torch import fx

from core.graph.ids import argument, source
from core.graph.operators.elementwise import binary_writer, elementwise_rule, operands, sides
from core.graph.operators.form import Form
from core.graph.operators.unary import pass_rule, unary_reader, unary_writer

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten

COMPARISONS: dict[str, tuple[Any, str]] = {
    "Equal": (aten.eq, "Equal"),
    "Greater": (aten.gt, "Less"),
    "GreaterOrEqual": (aten.ge, "LessOrEqual"),
    "Less": (aten.lt, "Greater"),
    "LessOrEqual": (aten.le, "GreaterOrEqual"),
}
"""ONNX operator -> its ATen call, and the operator that says the same with its sides changed."""


def _comparison_reader(op_type: str) -> Callable[[Reading, NodeProto], fx.Node]:
    def read(reading: Reading, node: NodeProto) -> fx.Node:
        """Of equal types; a constant of one element becomes an argument, on the right."""
        reading.attributes(node)
        a, b = operands(reading, node)
        target, turned = COMPARISONS[op_type]
        if not isinstance(a, fx.Node):
            a, b, target = b, a, COMPARISONS[turned][0]
        return reading.call(target.Tensor if isinstance(b, fx.Node) else target.Scalar, a, b)

    return read


def _logical_reader(target: Any) -> Callable[[Reading, NodeProto], fx.Node]:
    def read(reading: Reading, node: NodeProto) -> fx.Node:
        reading.attributes(node)
        if any(reading.kind(node, index) != "bool" for index in range(len(node.input))):
            raise reading.refused(node, "its inputs must be of type bool")
        found = [reading.activation(node, index) for index in range(len(node.input))]
        if all(map(reading.is_constant, node.input)):
            raise reading.unknown(node, "constants only, which cannot be folded")
        return reading.call(target, *found)

    return read


def read_is_inf(reading: Reading, node: NodeProto) -> fx.Node:
    """IsInf-10, 20: of both signs or of one."""
    given = reading.attributes(node, detect_negative=1, detect_positive=1)
    x = reading.activation(node, 0)
    signs = (bool(given["detect_negative"]), bool(given["detect_positive"]))
    if signs == (True, True):
        return reading.call(aten.isinf.default, x)
    if signs == (False, False):
        raise reading.refused(node, "neither sign of infinity is to be detected")
    return reading.call(aten.eq.Scalar, x, float("inf") if signs[1] else float("-inf"))


def read_where(reading: Reading, node: NodeProto) -> fx.Node:
    """Where-9, 16: a condition, and two values of one type."""
    reading.attributes(node)
    if reading.kind(node, 0) != "bool" or reading.kind(node, 1) != reading.kind(node, 2):
        raise reading.refused(node, "the condition must be of type bool, the other two of one type")
    if all(map(reading.is_constant, node.input)):
        raise reading.unknown(node, "constants only, which cannot be folded")
    return reading.call(aten.where.self, *(reading.activation(node, index) for index in range(3)))


# --- writers: Equal of floats is of opset 11, GreaterOrEqual and LessOrEqual of 12 -----------------------------------


def _not_a_number(writing: Writing, node: fx.Node, a: str, b: str) -> str:
    """The name of "a or b is NaN"; of a number it is known."""
    other = argument(node, 1)
    known = not isinstance(other, fx.Node) and not math.isnan(other)
    left = writing.step(node, "IsNaN", a)
    return left if known else writing.step(node, "Or", left, writing.step(node, "IsNaN", b))


def _is_float(node: fx.Node) -> bool:
    return bool(source(node).meta["dtype"].is_floating_point)


def _unequal(writing: Writing, node: fx.Node, a: str, b: str) -> tuple[str, str]:
    """Two conditions, one of which holds where a is not b, for opsets whose Equal does not take floats. NaN is equal to
    nothing."""
    apart = writing.step(node, "Or", writing.step(node, "Less", a, b), writing.step(node, "Greater", a, b))
    return apart, _not_a_number(writing, node, a, b)


def write_equal(writing: Writing, node: fx.Node) -> None:
    a, b = sides(writing, node)
    if writing.opset >= 11 or not _is_float(node):
        writing.add("Equal", [a, b], node)
    else:
        writing.add("Not", [writing.step(node, "Or", *_unequal(writing, node, a, b))], node)


def write_not_equal(writing: Writing, node: fx.Node) -> None:
    """ONNX has no operator for it."""
    a, b = sides(writing, node)
    if writing.opset >= 11 or not _is_float(node):
        writing.add("Not", [writing.step(node, "Equal", a, b)], node)
    else:
        writing.add("Or", list(_unequal(writing, node, a, b)), node)


def _or_equal_writer(op_type: str, opposite: str) -> Callable[[Writing, fx.Node], None]:
    def write(writing: Writing, node: fx.Node) -> None:
        """Before opset 12: that neither the opposite holds nor a side is NaN."""
        a, b = sides(writing, node)
        if writing.opset >= 12:
            writing.add(op_type, [a, b], node)
            return
        fails = writing.step(node, opposite, a, b)
        if _is_float(node):
            fails = writing.step(node, "Or", fails, _not_a_number(writing, node, a, b))
        writing.add("Not", [fails], node)

    return write


def _logical_writer(op_type: str) -> Callable[[Writing, fx.Node], None]:
    def write(writing: Writing, node: fx.Node) -> None:
        writing.add(op_type, [writing.value(item) for item in node.args], node)

    return write


def write_is_inf(writing: Writing, node: fx.Node) -> None:
    """IsInf-10; before it: what is larger than the largest number."""
    x = writing.value(source(node))
    if writing.opset >= 10:
        writing.add("IsInf", [x], node)
        return
    largest = writing.number(node, float(np.finfo(np.float32).max), "largest")
    writing.add("Greater", [writing.step(node, "Abs", x), largest], node)


def write_where(writing: Writing, node: fx.Node) -> None:
    """Where-9. Of truth values it is written as (c and a) or (not c and b): ONNX Runtime has no other."""
    condition, a, b = (writing.value(item) for item in node.args)
    if node.meta["dtype"] != torch.bool:
        writing.add("Where", [condition, a, b], node)
        return
    otherwise = writing.step(node, "And", writing.step(node, "Not", condition), b)
    writing.add("Or", [writing.step(node, "And", condition, a), otherwise], node)


READERS = {
    **{op_type: _comparison_reader(op_type) for op_type in COMPARISONS},
    "Not": _logical_reader(aten.logical_not.default),
    "And": _logical_reader(aten.logical_and.default),
    "Or": _logical_reader(aten.logical_or.default),
    "Xor": _logical_reader(aten.logical_xor.default),
    "IsNaN": unary_reader(aten.isnan.default),
    "IsInf": read_is_inf,
    "Where": read_where,
}
_WRITERS = {
    aten.eq: write_equal,
    aten.ne: write_not_equal,
    aten.lt: binary_writer("Less"),
    aten.gt: binary_writer("Greater"),
    aten.le: _or_equal_writer("LessOrEqual", "Greater"),
    aten.ge: _or_equal_writer("GreaterOrEqual", "Less"),
}
FORMS = {
    **{target.Tensor: Form(elementwise_rule, write) for target, write in _WRITERS.items()},
    **{target.Scalar: Form(elementwise_rule, write) for target, write in _WRITERS.items()},
    aten.logical_not.default: Form(pass_rule, _logical_writer("Not")),
    aten.logical_and.default: Form(elementwise_rule, _logical_writer("And")),
    aten.logical_or.default: Form(elementwise_rule, _logical_writer("Or")),
    aten.logical_xor.default: Form(elementwise_rule, _logical_writer("Xor")),
    aten.isnan.default: Form(pass_rule, unary_writer("IsNaN")),
    aten.isinf.default: Form(pass_rule, write_is_inf),
    aten.where.self: Form(elementwise_rule, write_where),
}
