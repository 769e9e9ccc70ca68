"""From element-wise ATen calls to canonical forms: activations, arithmetic, comparisons, softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from core.graph.aten_parts import part
from core.graph.pt2_lowering import Lowering
from core.graph.pt2_turned import seen, settled
from core.graph.pt2_values import Call
from core.graph.turned import Turned

aten = torch.ops.aten
Lower = Callable[[Lowering, Call], Any]

SELU = (1.6732632423543772, 1.0507009873554805)  # alpha and scale


def number(low: Lowering, call: Call, key: str) -> float:
    value = low.operand(call[key])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise low.unknown(call, f"{low.described(value)} as {key!r}, which must be a number")
    return float(value)


# --- one input -------------------------------------------------------------------------------------------------------


def unary(target: Any, *keys: str) -> Lower:
    """The same form, with the numbers named in `keys` behind the input."""

    def lower(low: Lowering, call: Call) -> Any:
        return low.pointwise(call, target, call["self"], *(number(low, call, key) for key in keys))

    return lower


def chain(*steps: tuple[Any, ...]) -> Lower:
    """Forms applied one after another, each (form, numbers behind its input)."""

    def lower(low: Lowering, call: Call) -> Any:
        value = call["self"]
        for target, *numbers in steps:
            value = low.pointwise(call, target, value, *numbers)
        return value

    return lower


def clamp(low: Lowering, call: Call) -> Any:
    """clamp, clamp_min, clamp_max, hardtanh, relu6."""
    if call.operator == "relu6.default":
        bounds: list[float | None] = [0.0, 6.0]
    else:
        keys = (("min", "min_val"), ("max", "max_val"))
        given = [next((call.args[key] for key in pair if key in call.args), None) for pair in keys]
        bounds = [None if item is None else low.operand(item) for item in given]
    if any(isinstance(bound, bool) or not isinstance(bound, int | float | None) for bound in bounds):
        raise low.unknown(call, "bounds that are not numbers")
    low_bound, high = (None if bound is None else float(bound) for bound in bounds)
    if low_bound is None and high is None:
        return call["self"]
    return low.pointwise(call, aten.clamp.default, call["self"], low_bound, high)


def elu(low: Lowering, call: Call) -> Any:
    """scale * (max(0, x) + min(0, alpha * (exp(input_scale * x) - 1))): ELU, SELU and CELU are of this form."""
    alpha, scale, inner = (number(low, call, key) for key in ("alpha", "scale", "input_scale"))
    x = call["self"]
    if (alpha, scale, inner) == (*SELU, 1.0):
        return low.pointwise(call, aten.selu.default, x)
    if inner == 1:
        result = low.pointwise(call, aten.elu.default, x, alpha)
    elif alpha and math.isclose(inner * alpha, 1.0, rel_tol=1e-6):
        result = low.pointwise(call, aten.celu.default, x, alpha)
    else:
        raise low.unknown(call, f"alpha {alpha} with input_scale {inner}")
    return result if scale == 1 else low.pointwise(call, aten.mul.Tensor, result, scale)


def softplus(low: Lowering, call: Call) -> Any:
    """log(1 + exp(beta x)) / beta; the threshold only keeps it from overflowing."""
    beta, threshold = number(low, call, "beta"), number(low, call, "threshold")
    if threshold < 20 or beta == 0:
        raise low.unknown(call, f"beta {beta} with threshold {threshold}")
    if beta == 1:
        return low.pointwise(call, aten.softplus.default, call["self"])
    inner = low.pointwise(call, aten.softplus.default, low.pointwise(call, aten.mul.Tensor, call["self"], beta))
    return low.pointwise(call, aten.mul.Tensor, inner, 1 / beta)


def gelu(low: Lowering, call: Call) -> Any:
    if call["approximate"] == "none":
        return low.pointwise(call, aten.gelu.default, call["self"])
    if call["approximate"] != "tanh":
        raise low.refused(call, f"approximate {call['approximate']!r}")
    return low.pointwise(call, aten.gelu.default, call["self"], approximate="tanh")


def leaky_rrelu(low: Lowering, call: Call) -> Any:
    """RReLU in eval mode: the mean of its slopes."""
    if call["training"]:
        raise low.unknown(call, "random slopes (it was exported in training mode)")
    slope = (number(low, call, "lower") + number(low, call, "upper")) / 2
    return low.pointwise(call, aten.leaky_relu.default, call["self"], slope)


def gated(low: Lowering, call: Call) -> Any:
    """glu: one half times the sigmoid of the other."""
    shape = low.shape(call["self"])
    dim = low.dim(call, low.integer(call, "dim"), len(shape))
    size = low.fixed(call, shape[dim], "size")
    first, second = (part(low, call, call["self"], dim, bounds) for bounds in ((0, size // 2), (size // 2, size)))
    return low.pointwise(call, aten.mul.Tensor, first, low.pointwise(call, aten.sigmoid.default, second))


def composed(function: Callable[[Callable[..., Any], Any], Any]) -> Lower:
    """`function(apply, x)`, where `apply(form, *operands)` adds an element-wise form."""

    def lower(low: Lowering, call: Call) -> Any:
        return function(lambda target, *operands: low.pointwise(call, target, *operands), call["self"])

    return lower


# --- two inputs ------------------------------------------------------------------------------------------------------


def binary(target: Any, *, reverse: bool = False) -> Lower:
    """add, sub, mul, div and their kin; `alpha` is a factor on the second. A number may be on either side."""

    def lower(low: Lowering, call: Call) -> Any:
        a, b = (low.operand(call[key]) for key in ("self", "other"))
        a, b = (b, a) if reverse else (a, b)
        alpha = number(low, call, "alpha") if "alpha" in call.args else 1.0
        if alpha != 1:
            b = b * alpha if isinstance(b, int | float) else low.pointwise(call, aten.mul.Tensor, b, alpha)
        return combined(low, call, target, a, b)

    return lower


def combined(low: Lowering, call: Call, target: Any, a: Any, b: Any) -> Any:
    """`target(a, b)` with a number only behind a tensor."""
    a, b = (float(item) if isinstance(item, bool | int) else item for item in (a, b))
    if target in (aten.maximum.default, aten.minimum.default) and isinstance(a, float) is not isinstance(b, float):
        number, value = (a, b) if isinstance(a, float) else (b, a)
        bounds = (number, None) if target is aten.maximum.default else (None, number)
        return low.pointwise(call, aten.clamp.default, value, *bounds)
    if not isinstance(a, float):
        return low.pointwise(call, BY_NUMBER.get(target, target) if isinstance(b, float) else target, a, b)
    if isinstance(b, float):
        raise low.unknown(call, "two numbers")
    if target in (aten.add.Tensor, aten.mul.Tensor):
        return low.pointwise(call, target, b, a)
    if target is aten.sub.Tensor:  # kept a number: a constant would be rounded to float32
        return low.pointwise(call, aten.add.Tensor, low.pointwise(call, aten.neg.default, b), a)
    if target is aten.div.Tensor:
        return low.pointwise(call, aten.mul.Tensor, low.pointwise(call, aten.reciprocal.default, b), a)
    if target in FLIPPED:
        return low.pointwise(call, BY_NUMBER[FLIPPED[target]], b, a)
    return low.pointwise(call, target, *low.numbers(a), b)


def divided(low: Lowering, call: Call) -> Any:
    """div.Tensor_mode and floor_divide."""
    mode = call.args.get("rounding_mode", "floor")
    result = combined(low, call, aten.div.Tensor, low.operand(call["self"]), low.operand(call["other"]))
    if mode is None:
        return result
    if mode != "floor":
        raise low.unknown(call, f"rounding mode {mode!r}")
    return low.pointwise(call, aten.floor.default, result)


def power(low: Lowering, call: Call) -> Any:
    base, exponent = (low.operand(call[key]) for key in ("self", "exponent"))
    if isinstance(exponent, int | float):
        if exponent == 1:
            return base
        return low.pointwise(call, aten.pow.Tensor_Scalar, base, float(exponent))
    if isinstance(base, int | float):
        if base <= 0:
            raise low.unknown(call, f"a power of {base}")
        scaled = low.pointwise(call, aten.mul.Tensor, exponent, math.log(base))
        return low.pointwise(call, aten.exp.default, scaled)
    return low.pointwise(call, aten.pow.Tensor_Tensor, base, exponent)


def fused(target: Any) -> Lower:
    """addcmul and addcdiv: self + value * (tensor1 op tensor2)."""

    def lower(low: Lowering, call: Call) -> Any:
        a, b, c = (low.operand(call[key]) for key in ("self", "tensor1", "tensor2"))
        product = combined(low, call, target, b, c)
        if (factor := number(low, call, "value")) != 1:
            product = low.pointwise(call, aten.mul.Tensor, product, factor)
        return combined(low, call, aten.add.Tensor, a, product)

    return lower


def lerp(low: Lowering, call: Call) -> Any:
    """a + weight (b - a)."""
    a, b, weight = (low.operand(call[key]) for key in ("self", "end", "weight"))
    way = combined(low, call, aten.mul.Tensor, combined(low, call, aten.sub.Tensor, b, a), weight)
    return combined(low, call, aten.add.Tensor, a, way)


def any_along(low: Lowering, call: Call) -> Any:
    """Whether one is true along a dimension (what attention asks of its masks)."""
    node = low.activation(call, "self")
    dim = low.dim(call, low.integer(call, "dim"), len(node.meta["shape"]))
    if dim == 0:
        raise low.unknown(call, "a reduction over the batch")
    numbers: Any = node
    if low.is_bool(node):
        numbers = low.pointwise(call, aten.where.self, node, *low.numbers(1.0, 0.0))
    most = low.call(aten.amax.default, numbers, [dim], bool(call["keepdim"]))
    return low.call(aten.gt.Scalar, most, 0.5) if low.is_bool(node) else low.call(aten.ne.Scalar, most, 0.0)


def where(low: Lowering, call: Call) -> Any:
    condition, *sides = call["condition"], *(low.operand(call[key]) for key in ("self", "other"))
    if isinstance(low.operand(condition), bool):
        return sides[not low.operand(condition)]
    sides = [low.numbers(float(item))[0] if isinstance(item, bool | int | float) else item for item in sides]
    return low.pointwise(call, aten.where.self, condition, *sides)


def masked_fill(low: Lowering, call: Call) -> Any:
    value = number(low, call, "value")
    return low.pointwise(call, aten.where.self, call["mask"], *low.numbers(value), call["self"])


# --- softmax ---------------------------------------------------------------------------------------------------------


def softmax(target: Any) -> Lower:
    def lower(low: Lowering, call: Call) -> Any:
        value = call["self"]
        dim = low.dim(call, low.integer(call, "dim"), len(low.shape(value)))
        if call.args.get("dtype") not in (None, torch.float32):
            raise low.unknown(call, f"numbers of type {str(call['dtype']).removeprefix('torch.')}")
        value = seen(value if isinstance(value, Turned) else low.activation(call, "self"))
        inner = value.dim(dim)
        if inner == 0:
            raise low.unknown(call, "a softmax over the batch")
        return settled(low, Turned(low.call(target, value.node, inner), value.order))

    return lower


_UNARY = (
    "relu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "silu", "mish", "selu", "erf", "exp", "log", "sqrt",
    "reciprocal", "abs", "neg", "sign", "floor", "ceil", "round", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
    "cosh", "asinh", "acosh", "atanh", "logical_not",
)  # fmt: skip
FLIPPED = {
    aten.gt.Tensor: aten.lt.Tensor, aten.lt.Tensor: aten.gt.Tensor, aten.ge.Tensor: aten.le.Tensor,
    aten.le.Tensor: aten.ge.Tensor, aten.eq.Tensor: aten.eq.Tensor, aten.ne.Tensor: aten.ne.Tensor,
}  # fmt: skip
BY_NUMBER = {
    aten.gt.Tensor: aten.gt.Scalar, aten.lt.Tensor: aten.lt.Scalar, aten.ge.Tensor: aten.ge.Scalar,
    aten.le.Tensor: aten.le.Scalar, aten.eq.Tensor: aten.eq.Scalar, aten.ne.Tensor: aten.ne.Scalar,
    aten.fmod.Tensor: aten.fmod.Scalar, aten.remainder.Tensor: aten.remainder.Scalar,
}  # fmt: skip
_BINARY = {
    "add": aten.add.Tensor, "sub": aten.sub.Tensor, "mul": aten.mul.Tensor, "div": aten.div.Tensor,
    "gt": aten.gt.Tensor, "lt": aten.lt.Tensor, "ge": aten.ge.Tensor, "le": aten.le.Tensor, "eq": aten.eq.Tensor,
    "ne": aten.ne.Tensor,
}  # fmt: skip
LOWERINGS: Mapping[str, Lower] = {
    **{f"{name}.default": unary(getattr(aten, name).default) for name in _UNARY},
    "sgn.default": unary(aten.sign.default),
    "negative.default": unary(aten.neg.default),
    "absolute.default": unary(aten.abs.default),
    "leaky_relu.default": unary(aten.leaky_relu.default, "negative_slope"),
    "celu.default": unary(aten.celu.default, "alpha"),
    "elu.default": elu,
    "softplus.default": softplus,
    "gelu.default": gelu,
    "rrelu.default": leaky_rrelu,
    "rrelu_with_noise.default": leaky_rrelu,
    "rrelu_with_noise_functional.default": leaky_rrelu,
    "threshold.default": unary(aten.threshold.default, "threshold", "value"),
    "hardshrink.default": unary(aten.hardshrink.default, "lambd"),
    "softshrink.default": unary(aten.softshrink.default, "lambd"),
    "glu.default": gated,
    **dict.fromkeys(("clamp.default", "clamp_min.default", "clamp_max.default", "clip.default", "hardtanh.default",
                     "relu6.default"), clamp),
    "rsqrt.default": chain((aten.sqrt.default,), (aten.reciprocal.default,)),
    "square.default": chain((aten.pow.Tensor_Scalar, 2.0)),
    "expm1.default": chain((aten.exp.default,), (aten.add.Tensor, -1.0)),
    "log1p.default": chain((aten.add.Tensor, 1.0), (aten.log.default,)),
    "exp2.default": chain((aten.mul.Tensor, math.log(2)), (aten.exp.default,)),
    "log2.default": chain((aten.log.default,), (aten.mul.Tensor, 1 / math.log(2))),
    "log10.default": chain((aten.log.default,), (aten.mul.Tensor, 1 / math.log(10))),
    "log_sigmoid.default": chain((aten.neg.default,), (aten.softplus.default,), (aten.neg.default,)),
    "log_sigmoid_forward.default": chain((aten.neg.default,), (aten.softplus.default,), (aten.neg.default,)),
    "tanhshrink.default": composed(lambda apply, x: apply(aten.sub.Tensor, x, apply(aten.tanh.default, x))),
    "softsign.default": composed(
        lambda apply, x: apply(aten.div.Tensor, x, apply(aten.add.Tensor, apply(aten.abs.default, x), 1.0))
    ),
    **{f"{name}.{kind}": binary(target) for name, target in _BINARY.items() for kind in ("Tensor", "Scalar")},
    **{f"{name}.Tensor": binary(_BINARY[short]) for name, short in
       (("subtract", "sub"), ("multiply", "mul"), ("divide", "div"), ("true_divide", "div"))},
    "rsub.Tensor": binary(aten.sub.Tensor, reverse=True),
    "rsub.Scalar": binary(aten.sub.Tensor, reverse=True),
    "fmod.Scalar": binary(aten.fmod.Tensor),
    "fmod.Tensor": binary(aten.fmod.Tensor),
    "remainder.Scalar": binary(aten.remainder.Tensor),
    "remainder.Tensor": binary(aten.remainder.Tensor),
    "maximum.default": binary(aten.maximum.default),
    "minimum.default": binary(aten.minimum.default),
    "max.other": binary(aten.maximum.default),
    "min.other": binary(aten.minimum.default),
    "div.Tensor_mode": divided,
    "div.Scalar_mode": divided,
    "floor_divide.default": divided,
    **dict.fromkeys(("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar"), power),
    "addcmul.default": fused(aten.mul.Tensor),
    "addcdiv.default": fused(aten.div.Tensor),
    "lerp.Scalar": lerp,
    "lerp.Tensor": lerp,
    **dict.fromkeys(("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar"), where),
    "any.dim": any_along,
    "masked_fill.Scalar": masked_fill,
    "masked_fill.Tensor": masked_fill,
    "softmax.int": softmax(aten.softmax.int),
    "_softmax.default": softmax(aten.softmax.int),
    "log_softmax.int": softmax(aten.log_softmax.int),
    "_log_softmax.default": softmax(aten.log_softmax.int),
}  # fmt: skip
