"""Activation functions, element by element: the Relu family, bounds, and the smooth ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto
from torch import fx

from core.graph.ids import argument, source
from core.graph.operators.form import Form
from core.graph.operators.unary import pass_rule, unary_reader

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
"""As ONNX has them: the numbers of the paper, rounded to float32."""

SOFTPLUS_IS_LINEAR = 15.0
"""From here on log(1 + e^x) is x in float32."""


# --- of straight lines -----------------------------------------------------------------------------------------------


def read_leaky_relu(reading: Reading, node: NodeProto) -> fx.Node:
    """LeakyRelu-6, 16."""
    alpha = reading.attributes(node, alpha=0.01)["alpha"]
    return reading.call(aten.leaky_relu.default, reading.activation(node, 0), float(alpha))


def write_leaky_relu(writing: Writing, node: fx.Node) -> None:
    writing.add("LeakyRelu", [writing.value(source(node))], node, alpha=float(argument(node, 1, 0.01)))


def read_thresholded_relu(reading: Reading, node: NodeProto) -> fx.Node:
    """ThresholdedRelu-10, 22: x where x > alpha, else 0."""
    alpha = reading.attributes(node, alpha=1.0)["alpha"]
    return reading.call(aten.threshold.default, reading.activation(node, 0), float(alpha), 0.0)


def write_threshold(writing: Writing, node: fx.Node) -> None:
    """x where x > threshold, else a value: ThresholdedRelu-10 where that is 0."""
    x, threshold, value = writing.value(source(node)), float(argument(node, 1)), float(argument(node, 2))
    if value == 0 and writing.opset >= 10:
        writing.add("ThresholdedRelu", [x], node, alpha=threshold)
        return
    above = writing.step(node, "Greater", x, writing.number(node, threshold, "threshold"))
    writing.add("Where", [above, x, writing.number(node, value)], node)


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
    if len(bounds) == 2:  # crossed bounds give the upper one; ONNX Runtime refuses them as attributes
        bounds["min"] = min(bounds.values())
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


def read_softsign(reading: Reading, node: NodeProto) -> fx.Node:
    """Softsign-1, 22: x / (1 + |x|)."""
    reading.attributes(node)
    x = reading.activation(node, 0)
    below = reading.call(aten.add.Tensor, reading.call(aten.abs.default, x), 1.0)
    return reading.call(aten.div.Tensor, x, below)


def read_shrink(reading: Reading, node: NodeProto) -> fx.Node:
    """Shrink-9: x + bias below -lambd, x - bias above lambd, else 0."""
    given = reading.attributes(node, bias=0.0, lambd=0.5)
    bias, bound = float(given["bias"]), float(given["lambd"])
    x = reading.activation(node, 0)
    if bound >= 0 and bias in (0, bound):
        return reading.call(aten.softshrink.default if bias else aten.hardshrink.default, x, bound)
    zero = reading.add_constant("constants.zero", torch.zeros(()))
    above = reading.call(aten.where.self, reading.call(aten.gt.Scalar, x, bound),
                         reading.call(aten.sub.Tensor, x, bias), zero)  # fmt: skip
    return reading.call(aten.where.self, reading.call(aten.lt.Scalar, x, -bound),
                        reading.call(aten.add.Tensor, x, bias), above)  # fmt: skip


def write_hardshrink(writing: Writing, node: fx.Node) -> None:
    writing.add("Shrink", [writing.value(source(node))], node, bias=0.0, lambd=float(argument(node, 1, 0.5)))


def write_softshrink(writing: Writing, node: fx.Node) -> None:
    bound = float(argument(node, 1, 0.5))
    writing.add("Shrink", [writing.value(source(node))], node, bias=bound, lambd=bound)


# --- of exponentials -------------------------------------------------------------------------------------------------


def read_elu(reading: Reading, node: NodeProto) -> fx.Node:
    """Elu-6, 22: alpha (e^x - 1) below 0."""
    alpha = reading.attributes(node, alpha=1.0)["alpha"]
    return reading.call(aten.elu.default, reading.activation(node, 0), float(alpha))


def read_selu(reading: Reading, node: NodeProto) -> fx.Node:
    """Selu-6, 22: gamma times an Elu of alpha."""
    given = reading.attributes(node, alpha=SELU_ALPHA, gamma=SELU_GAMMA)
    x = reading.activation(node, 0)
    if (given["alpha"], given["gamma"]) == (SELU_ALPHA, SELU_GAMMA):
        return reading.call(aten.selu.default, x)
    return reading.call(aten.elu.default, x, float(given["alpha"]), float(given["gamma"]))


def read_celu(reading: Reading, node: NodeProto) -> fx.Node:
    """Celu-12: alpha (e^(x / alpha) - 1) below 0."""
    alpha = reading.attributes(node, alpha=1.0)["alpha"]
    if alpha == 0:
        raise reading.refused(node, "alpha is 0, by which it divides")
    return reading.call(aten.celu.default, reading.activation(node, 0), float(alpha))


def write_elu(writing: Writing, node: fx.Node) -> None:
    """Elu-6; with a scale, Selu-6."""
    alpha, scale, input_scale = (float(argument(node, index, 1.0)) for index in (1, 2, 3))
    x = writing.value(source(node))
    if input_scale != 1:
        _write_elu_by_exp(writing, node, alpha, scale, input_scale)
    elif scale == 1:
        writing.add("Elu", [x], node, alpha=alpha)
    else:
        writing.add("Selu", [x], node, alpha=alpha, gamma=scale)


def write_selu(writing: Writing, node: fx.Node) -> None:
    writing.add("Selu", [writing.value(source(node))], node, alpha=SELU_ALPHA, gamma=SELU_GAMMA)


def write_celu(writing: Writing, node: fx.Node) -> None:
    """Celu-12."""
    alpha = float(argument(node, 1, 1.0))
    if writing.opset >= 12:
        writing.add("Celu", [writing.value(source(node))], node, alpha=alpha)
    else:
        _write_elu_by_exp(writing, node, alpha, 1.0, 1 / alpha)


def _write_elu_by_exp(writing: Writing, node: fx.Node, alpha: float, scale: float, input_scale: float) -> None:
    """scale max(x, 0) + scale alpha (e^(input_scale min(x, 0)) - 1)"""
    x = writing.value(source(node))
    below = writing.step(node, "Min", x, writing.number(node, 0.0, "zero"))
    exponent = writing.step(node, "Mul", below, writing.number(node, input_scale, "input_scale"))
    power = writing.step(node, "Sub", writing.step(node, "Exp", exponent), writing.number(node, 1.0, "one"))
    lower = writing.step(node, "Mul", power, writing.number(node, scale * alpha, "alpha"))
    upper = writing.step(node, "Mul", writing.step(node, "Relu", x), writing.number(node, scale, "scale"))
    writing.add("Add", [upper, lower], node)


def write_softplus(writing: Writing, node: fx.Node) -> None:
    """Softplus-1: log(1 + e^x). torch's is log(1 + e^(beta x)) / beta, and x itself where beta x > threshold."""
    beta, threshold = float(argument(node, 1, 1.0)), float(argument(node, 2, 20.0))
    x = writing.value(source(node))
    if beta == 1 and threshold >= SOFTPLUS_IS_LINEAR:
        writing.add("Softplus", [x], node)
        return
    factor = writing.number(node, beta, "beta")
    scaled = writing.step(node, "Mul", x, factor)
    curve = [writing.step(node, "Softplus", scaled), factor]
    if threshold >= SOFTPLUS_IS_LINEAR:
        writing.add("Div", curve, node)
        return
    above = writing.step(node, "Greater", scaled, writing.number(node, threshold, "threshold"))
    writing.add("Where", [above, x, writing.step(node, "Div", *curve)], node)


def read_gelu(reading: Reading, node: NodeProto) -> fx.Node:
    """Gelu-20: x times the normal distribution's function of x, or its approximation by a Tanh."""
    approximate = reading.attributes(node, approximate=b"none")["approximate"]
    x = reading.activation(node, 0)
    if approximate == b"none":
        return reading.call(aten.gelu.default, x)
    if approximate != b"tanh":
        raise reading.refused(node, f"approximate is {approximate!r}; it is 'none' or 'tanh'")
    return reading.call(aten.gelu.default, x, approximate="tanh")


def write_gelu(writing: Writing, node: fx.Node) -> None:
    """Gelu-20; before it x / 2 (1 + Erf(x / sqrt 2)), or x / 2 (1 + Tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    approximate = str(node.kwargs.get("approximate", "none"))
    x = writing.value(source(node))
    if writing.opset >= 20:
        writing.add("Gelu", [x], node, approximate=approximate)
        return
    if approximate == "none":
        part = writing.step(node, "Erf", writing.step(node, "Div", x, writing.number(node, math.sqrt(2), "root")))
    else:
        cube = writing.step(node, "Mul", writing.step(node, "Mul", x, x), x)
        bent = writing.step(node, "Mul", cube, writing.number(node, 0.044715, "bend"))
        inner = writing.step(node, "Add", x, bent)
        part = writing.step(
            node, "Tanh", writing.step(node, "Mul", inner, writing.number(node, math.sqrt(2 / math.pi), "root"))
        )
    gate = writing.step(node, "Add", part, writing.number(node, 1.0, "one"))
    half = writing.step(node, "Mul", x, writing.number(node, 0.5, "half"))
    writing.add("Mul", [half, gate], node)


def read_swish(reading: Reading, node: NodeProto) -> fx.Node:
    """Swish-24: x Sigmoid(alpha x)."""
    alpha = float(reading.attributes(node, alpha=1.0)["alpha"])
    x = reading.activation(node, 0)
    if alpha == 1:
        return reading.call(aten.silu.default, x)
    gate = reading.call(aten.sigmoid.default, reading.call(aten.mul.Tensor, x, alpha))
    return reading.call(aten.mul.Tensor, x, gate)


def write_silu(writing: Writing, node: fx.Node) -> None:
    """x Sigmoid(x) in every opset, as exporters write it: runtimes know the pair, and few know Swish-24."""
    x = writing.value(source(node))
    writing.add("Mul", [x, writing.step(node, "Sigmoid", x)], node)


def write_mish(writing: Writing, node: fx.Node) -> None:
    """Mish-18; before it x Tanh(Softplus(x))."""
    x = writing.value(source(node))
    if writing.opset >= 18:
        writing.add("Mish", [x], node)
    else:
        writing.add("Mul", [x, writing.step(node, "Tanh", writing.step(node, "Softplus", x))], node)


READERS = {
    "Celu": read_celu,
    "Clip": read_clip,
    "Elu": read_elu,
    "Gelu": read_gelu,
    "HardSigmoid": read_hard_sigmoid,
    "HardSwish": unary_reader(aten.hardswish.default),
    "LeakyRelu": read_leaky_relu,
    "Mish": unary_reader(aten.mish.default),
    "Selu": read_selu,
    "Shrink": read_shrink,
    "Softplus": unary_reader(aten.softplus.default),
    "Softsign": read_softsign,
    "Swish": read_swish,
    "ThresholdedRelu": read_thresholded_relu,
}
FORMS = {
    aten.celu.default: Form(pass_rule, write_celu),
    aten.clamp.default: Form(pass_rule, write_clip),
    aten.elu.default: Form(pass_rule, write_elu),
    aten.gelu.default: Form(pass_rule, write_gelu),
    aten.hardshrink.default: Form(pass_rule, write_hardshrink),
    aten.hardsigmoid.default: Form(pass_rule, write_hard_sigmoid),
    aten.hardswish.default: Form(pass_rule, write_hard_swish),
    aten.leaky_relu.default: Form(pass_rule, write_leaky_relu),
    aten.mish.default: Form(pass_rule, write_mish),
    aten.selu.default: Form(pass_rule, write_selu),
    aten.silu.default: Form(pass_rule, write_silu),
    aten.softplus.default: Form(pass_rule, write_softplus),
    aten.softshrink.default: Form(pass_rule, write_softshrink),
    aten.threshold.default: Form(pass_rule, write_threshold),
}
