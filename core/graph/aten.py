"""Every ATen operator that a `.pt2` may hold: how it is lowered, which are folded where all they read is constant.

`LOWERINGS` is by the operator's name without "aten.", in-place ones by that of the operator that makes a new tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from core.graph import (
    aten_elementwise,
    aten_layers,
    aten_norms,
    aten_pads,
    aten_parts,
    aten_pooling,
    aten_products,
    aten_shape,
)
from core.graph.pt2_lowering import Lowering
from core.graph.pt2_sizes import Size
from core.graph.pt2_values import Call

LOWERINGS: Mapping[str, Callable[[Lowering, Call], Any]] = {
    **aten_elementwise.LOWERINGS,
    **aten_layers.LOWERINGS,
    **aten_norms.LOWERINGS,
    **aten_pads.LOWERINGS,
    **aten_parts.LOWERINGS,
    **aten_pooling.LOWERINGS,
    **aten_products.LOWERINGS,
    **aten_shape.LOWERINGS,
}

FOLDED_ONLY = frozenset({
    "arange.default", "arange.start", "arange.start_step", "linspace.default", "scalar_tensor.default", "eye.default",
    "eye.m", "tril.default", "triu.default", "cumsum.default", "meshgrid.default", "meshgrid.indexing",
    "bitwise_not.default", "bitwise_and.Tensor", "bitwise_or.Tensor", "logical_and.default", "logical_or.default",
    "argsort.default", "fill.Scalar", "fill.Tensor", "_weight_norm.default", "_weight_norm_interface.default",
    "mv.default", "vdot.default", "dot.default",
})  # fmt: skip
"""Known on constants only."""

UNFOLDED = frozenset({
    *aten_layers.LOWERINGS, *aten_products.LOWERINGS, *aten_pooling.RESIZED, "expand.default", "expand_as.default",
})  # fmt: skip
"""Never computed at import, even of constants: what they cost does not follow the size of what they make (an expansion
costs nothing, but is for a batch)."""


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > 8:
        raise ValueError(f"a power of {exponent}")
    return base**exponent


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of numbers; sizes that follow the input stay what they are."""
    return lambda number: number if isinstance(number, Size) else function(number)


def _equal(a: Any, b: Any) -> bool:
    """Raises `Undecided` where it is so for some images only."""
    if not isinstance(a, Size) and not isinstance(b, Size):
        return bool(a == b)
    return a == b or not (a > b or a < b)


SCALARS: Mapping[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in (
        "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "abs", "lt", "le", "gt", "ge",
        "and_", "or_", "not_",
    )},
    "_operator.eq": _equal,
    "_operator.ne": lambda a, b: not _equal(a, b),
    "_operator.pow": _power,
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    **{f"builtins.{function.__name__}": function for function in (max, min, abs, round)},
    "builtins.int": lambda number: math.trunc(number) if isinstance(number, Size) else int(number),
    "builtins.float": _unchanged(float),
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_float": _unchanged(float),
    "torch.sym_int": lambda number: math.trunc(number) if isinstance(number, Size) else int(number),
    "torch.sym_not": operator.not_,
    "torch.sym_ite": lambda condition, yes, no: yes if condition else no,
    "torch.sym_sum": lambda *numbers: sum(numbers),
    "torch._sym_sqrt": math.sqrt,
}  # fmt: skip
"""Python's own functions on sizes."""

ROUNDED = frozenset({"math.floor", "math.ceil", "math.trunc", "builtins.int", "torch.sym_int", "torch.sym_float"})
"""What may follow a quotient that a float cannot hold: rounded, it is a whole number again."""

MAX_NUMBER = 2**53
"""What a size may become on the way."""
