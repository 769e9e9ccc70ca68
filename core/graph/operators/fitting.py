"""`pad_like`: padded or cropped to the open sizes of another value, as a U-Net fits what it upsamples to its skip.

No operator of ONNX is read as it. It is written as a `Pad` whose amounts are computed from both shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, source
from core.graph.operators.form import Form

if TYPE_CHECKING:
    from core.graph.onnx_writing import Writing

Front = Literal["none", "all", "floor", "ceil"]
"""How much of the difference comes in front: nothing, all of it, or half of it rounded down or up. The rest is behind;
what is less than nothing is cut off."""


def pad_like(x: Tensor, other: Tensor, dims: list[int], places: list[int], front: list[Front], value: float) -> Tensor:
    """`x` with `value` around it along `dims`, as long there as `other` along `places`."""
    amounts = [0] * (2 * x.dim())
    for dim, place, how in zip(dims, places, front, strict=True):
        missing = other.shape[place] - x.shape[dim]
        before = {"none": 0, "all": missing, "floor": missing // 2, "ceil": missing - missing // 2}[how]
        last = 2 * (x.dim() - 1 - dim)
        amounts[last : last + 2] = [before, missing - before]
    return F.pad(x, amounts, value=value)


def pad_like_rule(p: Propagation, node: fx.Node) -> Tensor:
    """A padded place belongs to its channel. Channels that lie along what is padded stay."""
    ids = p.ids[source(node)]
    first = ids
    for dim in argument(node, 2):
        first = first.narrow(int(dim), 0, 1)
    if not bool((ids == first).all()):
        return p.frozen_result([ids], node, "it pads or crops channels by the size of another value")
    return first.expand(node.meta["shape"])


def write_pad_like(writing: Writing, node: fx.Node) -> None:
    """Amounts are an input since opset 11."""
    if writing.opset < 11:
        raise writing.too_old("Pad", node, "to the sizes of another value", 11)
    x, dims, front = source(node), list(argument(node, 2)), list(argument(node, 4))
    rank = len(x.meta["shape"])

    def sizes(value: fx.Node, places: list[int]) -> str:
        shape = writing.add("Shape", [writing.value(value)], None, hint=f"{node.name}.shape")
        indices = writing.tensor(f"{node.name}.dims", np.array(places, dtype=np.int64))
        return writing.add("Gather", [shape, indices], None, hint=f"{node.name}.sizes", axis=0)

    def step(op_type: str, *inputs: str) -> str:
        return writing.add(op_type, list(inputs), None, hint=f"{node.name}.{op_type.lower()}")

    two = writing.tensor(f"{node.name}.two", np.array([2]))
    missing = step("Sub", sizes(source(node, 1), list(argument(node, 3))), sizes(x, dims))
    down = step("Div", step("Sub", missing, step("Mod", missing, two)), two)  # Div alone rounds towards 0
    up = step("Sub", missing, down)
    nothing = step("Sub", missing, missing)
    befores = {"none": nothing, "all": missing, "floor": down, "ceil": up}
    afters = {"none": missing, "all": nothing, "floor": up, "ceil": down}
    zero = writing.tensor(f"{node.name}.zero", np.array([0]))
    names = []
    for amounts in (befores, afters):
        for dim in range(rank):
            if dim not in dims:
                names.append(zero)
                continue
            place = writing.tensor(f"{node.name}.place{dims.index(dim)}", np.array([dims.index(dim)]))
            given = amounts[front[dims.index(dim)]]
            names.append(writing.add("Gather", [given, place], None, hint=f"{node.name}.amount", axis=0))
    pads = writing.add("Concat", names, None, hint=f"{node.name}.pads", axis=0)
    value = writing.number(node, float(argument(node, 5)))
    writing.add("Pad", [writing.value(x), pads, value], node, mode="constant")


FORMS = {pad_like: Form(pad_like_rule, write_pad_like)}
