"""Element by element, one input: Relu, LeakyRelu, Sigmoid, Tanh, Clip, HardSigmoid, HardSwish, Dropout, Softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx, nn

from core.graph.ids import Propagation, argument, source
from core.graph.operators.form import Form

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten


def pass_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Each element by itself: the ids stay. What f makes of 0 does not matter: channels are zeroed behind it."""
    return p.ids[source(node)]


def _reader(target: Any) -> Callable[[Reading, NodeProto], fx.Node]:
    def read(reading: Reading, node: NodeProto) -> fx.Node:
        reading.attributes(node)
        return reading.call(target, reading.activation(node, 0))

    return read


def _writer(op_type: str) -> Callable[[Writing, fx.Node], None]:
    def write(writing: Writing, node: fx.Node) -> None:
        writing.add(op_type, [writing.value(source(node))], node)

    return write


def read_leaky_relu(reading: Reading, node: NodeProto) -> fx.Node:
    """LeakyRelu-6, 16."""
    alpha = reading.attributes(node, alpha=0.01)["alpha"]
    return reading.call(aten.leaky_relu.default, reading.activation(node, 0), float(alpha))


def write_leaky_relu(writing: Writing, node: fx.Node) -> None:
    writing.add("LeakyRelu", [writing.value(source(node))], node, alpha=float(argument(node, 1, 0.01)))


def read_clip(reading: Reading, node: NodeProto) -> fx.Node:
    """Clip-6 (bounds as attributes), Clip-11, 12, 13 (as constant inputs, each may be missing)."""
    if reading.opset < 11:
        attributes = reading.attributes(node, min=None, max=None)
        low, high = attributes["min"], attributes["max"]
    else:
        reading.attributes(node)
        low = reading.scalar(node, 1) if reading.given(node, 1) else None
        high = reading.scalar(node, 2) if reading.given(node, 2) else None
    if low is None and high is None:
        return reading.activation(node, 0)
    return reading.call(aten.clamp.default, reading.activation(node, 0), low, high)


def write_clip(writing: Writing, node: fx.Node) -> None:
    given = {"min": argument(node, 1), "max": argument(node, 2)}
    bounds: dict[str, Any] = {name: float(value) for name, value in given.items() if value is not None}
    if writing.opset < 11:
        writing.add("Clip", [writing.value(source(node))], node, **bounds)
        return
    inputs = [
        writing.tensor(f"{node.name}.{name}", np.float32(bounds[name])) if name in bounds else ""
        for name in ("min", "max")
    ]
    writing.add("Clip", [writing.value(source(node)), *inputs], node)


def read_hard_sigmoid(reading: Reading, node: NodeProto) -> fx.Node:
    """HardSigmoid-6, 22: clip(alpha x + beta, 0, 1)."""
    attributes = reading.attributes(node, alpha=0.2, beta=0.5)
    x = reading.activation(node, 0)
    if np.float32(attributes["alpha"]) == np.float32(1 / 6) and attributes["beta"] == 0.5:
        return reading.call(aten.hardsigmoid.default, x)
    scaled = reading.call(aten.mul.Tensor, x, float(attributes["alpha"]))
    return reading.call(aten.clamp.default, reading.call(aten.add.Tensor, scaled, float(attributes["beta"])), 0.0, 1.0)


def write_hard_sigmoid(writing: Writing, node: fx.Node) -> None:
    writing.add("HardSigmoid", [writing.value(source(node))], node, alpha=1 / 6, beta=0.5)


def write_hard_swish(writing: Writing, node: fx.Node) -> None:
    """HardSwish-14; before it x HardSigmoid(x)."""
    x = writing.value(source(node))
    if writing.opset >= 14:
        writing.add("HardSwish", [x], node)
        return
    gate = writing.add("HardSigmoid", [x], None, hint=f"{node.name}.gate", alpha=1 / 6, beta=0.5)
    writing.add("Mul", [x, gate], node)


def read_dropout(reading: Reading, node: NodeProto) -> fx.Node:
    """Dropout-7, 10, 12, 13, 22 in inference mode; it drops when the network is trained."""
    attributes = reading.attributes(node, ratio=0.5, seed=None)
    if len([name for name in node.output if name]) > 1 and reading.uses(node.output[1]):
        raise reading.unknown(node, "a Dropout whose mask is read")
    ratio = attributes["ratio"]
    if reading.opset >= 12:
        ratio = reading.scalar(node, 1) if reading.given(node, 1) else 0.5
        if reading.given(node, 2) and reading.scalar(node, 2):
            raise reading.unknown(node, "Dropout in training mode")
    if not 0 <= ratio < 1:
        raise reading.refused(node, f"a dropout ratio of {ratio}; it lies in [0, 1)")
    return reading.layer(node, "", lambda: nn.Dropout(float(ratio)), reading.activation(node, 0))


def write_dropout(writing: Writing, node: fx.Node) -> None:
    """Opset 12 made the ratio an input."""
    layer = writing.module.get_submodule(str(node.target))
    assert isinstance(layer, nn.Dropout)
    ratio = layer.p
    x = writing.value(source(node))
    if writing.opset < 12:
        writing.add("Dropout", [x], node, ratio=ratio)
    else:
        writing.add("Dropout", [x, writing.tensor(f"{node.target}.ratio", np.float32(ratio))], node)


def _softmax_reader(target: Any) -> Callable[[Reading, NodeProto], fx.Node]:
    def read(reading: Reading, node: NodeProto) -> fx.Node:
        """Softmax-1, 11 work on all dimensions from `axis` on, Softmax-13 along `axis`."""
        x = reading.activation(node, 0)
        shape = x.meta["shape"]
        axis = reading.axis(node, reading.attributes(node, axis=-1 if reading.opset >= 13 else 1)["axis"], len(shape))
        if reading.opset < 13:
            wide = [dim for dim in range(axis, len(shape)) if shape[dim] != 1]
            if len(wide) > 1:
                raise reading.unknown(node, f"a softmax over the dimensions {wide} together")
            axis = wide[0] if wide else axis
        if axis == 0:
            raise reading.unknown(node, "a softmax over the batch")
        return reading.call(target, x, axis)

    return read


def _softmax_writer(op_type: str) -> Callable[[Writing, fx.Node], None]:
    def write(writing: Writing, node: fx.Node) -> None:
        shape = node.meta["shape"]
        axis = int(argument(node, 1)) % len(shape)
        if writing.opset < 13 and any(size != 1 for size in shape[axis + 1 :]):
            raise writing.too_old(op_type, node, f"along dimension {axis} of {len(shape)}", 13)
        writing.add(op_type, [writing.value(source(node))], node, axis=axis)

    return write


def softmax_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Along the channels every output needs every input: frozen."""
    ids = p.ids[source(node)]
    moved = ids.movedim(int(argument(node, 1)), 0)
    if moved.stride(0) == 0 or bool((moved == moved[:1]).all()):
        return ids
    return p.frozen_result([ids], node, "a softmax along the channels needs all of them")


READERS = {
    "Relu": _reader(aten.relu.default),
    "Sigmoid": _reader(aten.sigmoid.default),
    "Tanh": _reader(aten.tanh.default),
    "HardSwish": _reader(aten.hardswish.default),
    "HardSigmoid": read_hard_sigmoid,
    "LeakyRelu": read_leaky_relu,
    "Clip": read_clip,
    "Dropout": read_dropout,
    "Softmax": _softmax_reader(aten.softmax.int),
    "LogSoftmax": _softmax_reader(aten.log_softmax.int),
}
FORMS = {
    aten.relu.default: Form(pass_rule, _writer("Relu")),
    aten.sigmoid.default: Form(pass_rule, _writer("Sigmoid")),
    aten.tanh.default: Form(pass_rule, _writer("Tanh")),
    aten.hardswish.default: Form(pass_rule, write_hard_swish),
    aten.hardsigmoid.default: Form(pass_rule, write_hard_sigmoid),
    aten.leaky_relu.default: Form(pass_rule, write_leaky_relu),
    aten.clamp.default: Form(pass_rule, write_clip),
    nn.Dropout: Form(pass_rule, write_dropout),
    aten.softmax.int: Form(softmax_rule, _softmax_writer("Softmax")),
    aten.log_softmax.int: Form(softmax_rule, _softmax_writer("LogSoftmax")),
}
