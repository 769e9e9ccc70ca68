"""Element by element, several inputs (Add, Sub, Mul, Div, Pow, Mod, Max, Min, Sum, Mean): where paths of a
network meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
COMMUTATIVE = (aten.add.Tensor, aten.mul.Tensor, aten.maximum.default, aten.minimum.default)


def operands(reading: Reading, node: NodeProto) -> list[fx.Node | float]:
    """All inputs: nodes of one type, and numbers for constants of one element that add no dimension."""
    if all(map(reading.is_constant, node.input)):
        raise reading.unknown(node, "constants only, which cannot be folded")
    kinds = {reading.kind(node, index) for index in range(len(node.input))}
    if len(kinds) > 1:
        raise reading.refused(node, f"its inputs are of the types {', '.join(sorted(kinds))}, not of one")
    if node.op_type in ARITHMETIC and "bool" in kinds:
        raise reading.unknown(node, "an input of type bool, where numbers are computed with")
    ranks = [
        len(reading.activation(node, index).meta["shape"])
        for index, name in enumerate(node.input)
        if not reading.is_constant(name)
    ]
    found: list[fx.Node | float] = []
    for index, name in enumerate(node.input):
        array = reading.constants.get(name)
        if array is not None and array.size == 1 and array.ndim <= max(ranks, default=0) and array.dtype != bool:
            found.append(array.reshape(()).item())
        else:
            found.append(reading.activation(node, index))
    return found


def _reader(target: Any) -> Callable[[Reading, NodeProto], fx.Node]:
    def read(reading: Reading, node: NodeProto) -> fx.Node:
        """Version 7 and up (broadcasting as numpy does). A constant of one element becomes an argument."""
        reading.attributes(node)
        if target is aten.add.Tensor and (raised := raise_bias(reading, node)) is not None:
            return raised
        a, b = operands(reading, node)
        return _call(reading, node, target, (a, 0), (b, 1))

    return read


def _call(
    reading: Reading, node: NodeProto, target: Any, a: tuple[fx.Node | float, int], b: tuple[fx.Node | float, int]
) -> fx.Node:
    """`target` of two operands, each with the input that it is: of a number and a tensor, the tensor comes first."""
    if isinstance(a[0], fx.Node):
        return reading.call(target, a[0], b[0])
    if target in COMMUTATIVE:
        return reading.call(target, b[0], a[0])
    return reading.call(target, reading.constant_node(node, a[1]), b[0])


def read_pow(reading: Reading, node: NodeProto) -> fx.Node:
    """Pow-7, 12, 13, 15: since 12 the exponent may be of another type, which is taken of a constant."""
    reading.attributes(node)
    x = reading.activation(node, 0)
    exponent = reading.constants.get(node.input[1])
    if exponent is None or exponent.dtype.kind not in "iu":
        given = operands(reading, node)[1]
    elif exponent.size == 1 and exponent.ndim <= len(x.meta["shape"]):
        given = float(exponent.reshape(()))
    else:
        given = reading.add_constant("constants.exponent", reading.tensor(exponent))
    target = aten.pow.Tensor_Tensor if isinstance(given, fx.Node) else aten.pow.Tensor_Scalar
    return reading.call(target, x, given)


def read_mod(reading: Reading, node: NodeProto) -> fx.Node:
    """Mod-10, 13, 28. With fmod = 1 the rest has the sign of the dividend, else (of floats since 28) of the divisor."""
    call = aten.fmod if reading.attributes(node, fmod=0)["fmod"] else aten.remainder
    a, b = operands(reading, node)
    if not isinstance(b, fx.Node):
        return reading.call(call.Scalar, a, b)
    return _call(reading, node, call.Tensor, (a, 0), (b, 1))


def _variadic(target: Any) -> Callable[[Reading, NodeProto], fx.Node]:
    def read(reading: Reading, node: NodeProto) -> fx.Node:
        """Max, Min, Sum, Mean-8, 12, 13 of any number of inputs: two at a time."""
        reading.attributes(node)
        found = operands(reading, node)
        # from the first that is no constant on: a constant by itself has no batch
        order = sorted(range(len(found)), key=lambda index: reading.is_constant(node.input[index]))
        x = found[order[0]]
        assert isinstance(x, fx.Node)
        for item in (found[index] for index in order[1:]):
            x = _bounded(reading, target, x, item) if target in BOUNDS else reading.call(target, x, item)
        return reading.call(aten.div.Tensor, x, float(len(found))) if node.op_type == "Mean" else x

    return read


def _bounded(reading: Reading, target: Any, x: fx.Node, other: fx.Node | float) -> fx.Node:
    """The larger or smaller of `x` and another tensor, or of `x` and a number: a bound."""
    if isinstance(other, fx.Node):
        return reading.call(target, x, other)
    low, high = (other, None) if target is aten.maximum.default else (None, other)
    return reading.call(aten.clamp.default, x, low, high)


def binary_writer(op_type: str) -> Callable[[Writing, fx.Node], None]:
    """Of an operator of two inputs, the second of which may be a number."""

    def write(writing: Writing, node: fx.Node) -> None:
        writing.add(op_type, sides(writing, node), node)

    return write


def sides(writing: Writing, node: fx.Node) -> list[str]:
    """The names of both inputs; a number becomes an initialiser."""
    other = argument(node, 1)
    right = writing.value(other) if isinstance(other, fx.Node) else writing.number(node, other)
    return [writing.value(source(node)), right]


def write_fmod(writing: Writing, node: fx.Node) -> None:
    """Mod-10."""
    writing.add("Mod", _rest_of(writing, node), node, fmod=1)


def write_remainder(writing: Writing, node: fx.Node) -> None:
    """Mod-28; before it a rest with the sign of the dividend, and the divisor added where that is the other one."""
    a, b = _rest_of(writing, node)
    if writing.opset >= 28:
        writing.add("Mod", [a, b], node, fmod=0)
        return
    rest = writing.step(node, "Mod", a, b, fmod=1)
    zero = writing.number(node, 0.0, "zero")
    signs = [(writing.step(node, "Less", x, zero), writing.step(node, "Greater", x, zero)) for x in (rest, b)]
    (rest_below, rest_above), (below, above) = signs
    first, second = writing.step(node, "And", rest_below, above), writing.step(node, "And", rest_above, below)
    other = writing.step(node, "Or", first, second)
    writing.add("Where", [other, writing.step(node, "Add", rest, b), rest], node)


def _rest_of(writing: Writing, node: fx.Node) -> list[str]:
    """Both inputs. a - b trunc(a / b) would not do before Mod-10: the quotient is rounded."""
    if writing.opset < 10:
        raise writing.too_old("Mod", node, "of floating-point numbers", 10)
    return sides(writing, node)


# --- the rule --------------------------------------------------------------------------------------------------------


def elementwise_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Ids that meet go together, of any number of inputs. One channel that is broadcast along the other side's channels
    must stay; where a gate per group of channels is broadcast inside the groups, each gate goes with its group. A
    constant of one element meets all alike, and ties nothing."""
    shape = node.meta["shape"]
    inputs = node.all_input_nodes
    many = [item for item in inputs if item.op != "get_attr" or p.ids[item].numel() > 1]
    result, *others = (_ranked(p.ids[item], len(shape)) for item in many or inputs[:1])
    for other in others:
        result = _meet(p, node, result, other)
    return result.expand(shape)


def _ranked(ids: Tensor, rank: int) -> Tensor:
    return ids.reshape([1] * (rank - ids.dim()) + list(ids.shape))


def _meet(p: Propagation, node: fx.Node, a: Tensor, b: Tensor) -> Tensor:
    """The ids of two sides of one rank, in the shape that they have together."""
    if a.shape != b.shape:
        shape = [max(sizes) for sizes in zip(a.shape, b.shape, strict=True)]
        varies = _varying(a), _varying(b)
        both = varies[0] & varies[1]
        for dim, size in enumerate(shape):
            for one, other, along in ((a, b, varies[1]), (b, a, varies[0])):
                if one.shape[dim] == 1 and size > 1 and dim in along and not both:
                    p.freeze(one, node, "it is broadcast along the channels of another tensor")
                    return other.expand(shape)
        a, b = a.expand(shape), b.expand(shape)
    p.unite(a, b)
    return a if compressed(a)[0].numel() <= compressed(b)[0].numel() else b


def _varying(ids: Tensor) -> set[int]:
    """The dimensions along which the ids differ."""
    (small,) = compressed(ids)
    return {dim for dim, size in enumerate(small.shape) if size > 1 and bool((small != small.narrow(dim, 0, 1)).any())}


ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Sum", "Mean")
BOUNDS = (aten.maximum.default, aten.minimum.default)
READERS = {
    "Add": _reader(aten.add.Tensor),
    "Sub": _reader(aten.sub.Tensor),
    "Mul": _reader(aten.mul.Tensor),
    "Div": _reader(aten.div.Tensor),
    "Pow": read_pow,
    "Mod": read_mod,
    "Max": _variadic(aten.maximum.default),
    "Min": _variadic(aten.minimum.default),
    "Sum": _variadic(aten.add.Tensor),
    "Mean": _variadic(aten.add.Tensor),
}
FORMS = {
    aten.add.Tensor: Form(elementwise_rule, binary_writer("Add")),
    aten.sub.Tensor: Form(elementwise_rule, binary_writer("Sub")),
    aten.mul.Tensor: Form(elementwise_rule, binary_writer("Mul")),
    aten.div.Tensor: Form(elementwise_rule, binary_writer("Div")),
    aten.pow.Tensor_Scalar: Form(elementwise_rule, binary_writer("Pow")),
    aten.pow.Tensor_Tensor: Form(elementwise_rule, binary_writer("Pow")),
    aten.fmod.Scalar: Form(elementwise_rule, write_fmod),
    aten.fmod.Tensor: Form(elementwise_rule, write_fmod),
    aten.remainder.Scalar: Form(elementwise_rule, write_remainder),
    aten.remainder.Tensor: Form(elementwise_rule, write_remainder),
    aten.maximum.default: Form(elementwise_rule, binary_writer("Max")),
    aten.minimum.default: Form(elementwise_rule, binary_writer("Min")),
}
