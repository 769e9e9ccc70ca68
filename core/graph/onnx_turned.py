"""Operators on values whose batch is not in front (`turned.py`): each is read as if it were, on the node behind it.

Only what works on every example by itself comes through: element by element, or along dimensions that are not the
batch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto
from torch import fx

from core.graph.onnx_folding import Array
from core.graph.onnx_reading import Reading
from core.graph.operators.linear import gemm
from core.graph.turned import Layout, Turned, laid_out

Reader = Callable[[Reading, NodeProto], fx.Node | Turned]

POINTWISE = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Floor",
    "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max",
    "Mean", "Min", "Mish", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign",
    "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where", "Xor",
})  # fmt: skip
NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
REDUCTIONS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
})  # fmt: skip
LIFTED = POINTWISE | NORMS | REDUCTIONS | {"Concat", "Gemm", "LogSoftmax", "MatMul", "Softmax"}


# --- operators on each example ---------------------------------------------------------------------------------------


def lifted(reading: Reading, node: NodeProto, reader: Reader) -> fx.Node | Turned:
    """`node` read by `reader` on the nodes behind its inputs, batch in front, and put back where the batch was."""
    if any(name in reading.spreads for name in node.input):
        raise reading.unknown(node, "a constant as long as the batch beside values whose batch is not in front")
    values = {
        index: reading.moved(node, index)
        for index, name in enumerate(node.input)
        if name and not reading.is_constant(name)
    }
    rank, layout = _common(reading, node, list(values.values()))
    copy = NodeProto()
    copy.CopyFrom(node)
    given: dict[int, fx.Node | Array] = {index: _straight(reading, node.input[index]) for index in values}
    if node.op_type in POINTWISE:
        constants = (index for index, name in enumerate(node.input) if name and index not in values)
        given |= {index: _constant(reading, node, index, rank, layout) for index in constants}
    elif node.op_type in ("Gemm", "MatMul"):
        _check_product(reading, node, rank - 1 - layout.before)
        reader = gemm if node.op_type == "Gemm" else reader
    elif node.op_type in REDUCTIONS:
        axes = reading.integers(node, 1) if reading.given(node, 1) else _attribute(node, "axes", None)
        made = _placed(reading, node, axes, rank, layout)
        if reading.given(node, 1):
            given[1] = np.array(made, dtype=np.int64)
        else:
            _set_attribute(copy, "axes", made)
        gone = 0 if _attribute(node, "keepdims", 1) else sum(axis > 0 for axis in made)
        layout = Layout(layout.before - gone, layout.left, layout.right)
    else:
        if len(values) != len(node.input) and node.op_type == "Concat":
            raise reading.unknown(node, "a constant beside values whose batch is not in front")
        to_the_end = node.op_type in NORMS or (reading.opset < 13 and node.op_type != "Concat")
        default = 0 if node.op_type == "Concat" else 1 if to_the_end and node.op_type not in NORMS else -1
        axes = [_attribute(node, "axis", default)]
        _set_attribute(copy, "axis", _placed(reading, node, axes, rank, layout, to_the_end)[0])
    with _named(reading, copy, given):
        result = reader(reading, copy)
    assert isinstance(result, fx.Node), "the batch of what is read is in front"
    return reading.settled(layout.of(result))


@contextmanager
def _named(reading: Reading, node: NodeProto, given: Mapping[int, fx.Node | Array]) -> Iterator[None]:
    """`node` with the inputs `given`, under names of their own while it is read."""
    names: list[str] = []
    for index, value in given.items():
        name = node.input[index]
        while any(name in known for known in (reading.constants, reading.spreads, reading.activations, reading.turned)):
            name += "'"
        reading.alias(name, node.input[index])
        node.input[index] = name
        names.append(name)
        if isinstance(value, fx.Node):
            reading.activations[name] = value
        else:
            reading.constants[name] = value
    yield
    for name in names:
        reading.activations.pop(name, None)
        reading.constants.pop(name, None)


def _straight(reading: Reading, name: str) -> fx.Node:
    """The node behind a value, its dimensions in the order of `Layout`: made once."""
    if name not in reading.turned:
        return reading.activations[name]
    if name not in reading.straight:
        value = reading.turned[name]
        order, _ = laid_out(value)
        in_order = order == sorted(order)
        reading.straight[name] = (
            value.node if in_order else reading.call(torch.ops.aten.permute.default, value.node, order)
        )
    return reading.straight[name]


def _common(reading: Reading, node: NodeProto, values: list[Turned]) -> tuple[int, Layout]:
    """The rank and the layout of all inputs. Refuses inputs whose batch lies in different places."""
    found = set()
    for value in values:
        _, layout = laid_out(value)
        folded = tuple((value.node.meta["shape"][dim], reading.other_shape(value.node)[dim])
                       for dim in value.dims(value.batch))  # fmt: skip
        found.add((len(value.order), layout, folded))
    if len(found) != 1:
        raise reading.unknown(node, "inputs whose batch lies in different places")
    rank, layout, _ = found.pop()
    return rank, layout


def _constant(reading: Reading, node: NodeProto, index: int, rank: int, layout: Layout) -> Any:
    """A constant that meets the value, in the dimensions of its node. It must be the same for all examples."""
    array = reading.constants[node.input[index]]
    behind = rank - 1 - layout.before
    if array.ndim <= behind or array.size == 1:
        return array if array.size != 1 or array.ndim <= behind else array.reshape(())
    if array.ndim > rank or array.shape[array.ndim - 1 - behind] != 1:
        raise reading.unknown(node, f"a constant of shape {list(array.shape)} that meets the batch")
    front = (1,) * (rank - array.ndim) + array.shape[: array.ndim - 1 - behind]
    rest = array.shape[array.ndim - behind :]
    return array.reshape((1, *front, *(1,) * (layout.left + layout.right), *rest))


def _check_product(reading: Reading, node: NodeProto, behind: int) -> None:
    """Refuses products that reach the batch: matrices are in the last two dimensions, rows may lie in front of them."""
    ranks = [reading.constants[name].ndim if reading.is_constant(name) else None for name in node.input[:2]]
    if any(rank is not None and rank > 2 for rank in ranks):
        raise reading.unknown(node, "a stack of constant matrices, one for each of the batch")
    if behind < (1 if ranks[1] is not None else 2):
        raise reading.unknown(node, "a product along the batch")


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    found = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return found.get(name, default)


def _set_attribute(node: NodeProto, name: str, value: Any) -> None:
    others = [item for item in node.attribute if item.name != name]
    node.ClearField("attribute")
    node.attribute.extend([*others, onnx.helper.make_attribute(name, value)])


def _placed(
    reading: Reading, node: NodeProto, axes: Sequence[int] | None, rank: int, layout: Layout, to_the_end: bool = False
) -> list[int]:
    """`axes` of the value as those of its node: counted from the back where they are behind the batch."""
    if not axes:
        raise reading.unknown(node, "no axes, so that it goes over the batch")
    found = [reading.axis(node, int(axis), rank) for axis in axes]
    if any(axis == layout.before or (to_the_end and axis < layout.before) for axis in found):
        raise reading.unknown(node, f"the dimensions {list(axes)}, of which one is the batch's")
    return [axis - rank if axis > layout.before else axis + 1 for axis in found]
