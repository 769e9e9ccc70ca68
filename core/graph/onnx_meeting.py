"""Where constants as long as the batch, or as another open size, meet activations number by number: they are
broadcast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto

from core.graph.sizes import BATCH, Size

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading

BROADCASTING = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "Where", "And", "Or", "Xor",
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
})  # fmt: skip
_BATCH_PAIR = ("batch", "batch")


def met(reading: Reading, node: NodeProto) -> NodeProto:
    """`node`, reading a plain constant in place of one that is as long as what it meets there."""
    if node.op_type not in BROADCASTING:
        return node
    spreads = {index: found for index in range(len(node.input)) if (found := reading.spread(node, index))}
    if reading.static_batch == 1:  # what is as long as the batch is a plain constant already
        spreads = {index: found for index, found in spreads.items() if not reading.is_constant(node.input[index])}
    if not spreads:
        return node
    shape: list[Any] = []  # of the activations together, the last dimension first: the sizes in both examples
    for index in range(len(node.input)):
        if index not in spreads and not reading.is_constant(node.input[index]):
            x = reading.activation(node, index)
            pairs = [_BATCH_PAIR, *zip(x.meta["shape"][1:], reading.other_shape(x)[1:], strict=True)][::-1]
            shape += [(1, 1)] * (len(pairs) - len(shape))
            shape[: len(pairs)] = [a if b == (1, 1) else b for a, b in zip(shape, pairs, strict=False)]
    changed = NodeProto()
    changed.CopyFrom(node)
    for index, item in spreads.items():
        sizes = [
            _BATCH_PAIR if size == BATCH else size.examples if isinstance(size, Size) else (size, size)
            for size in item.sizes
        ]
        if len(sizes) > len(shape) or any(a not in ((1, 1), b) for a, b in zip(sizes[::-1], shape, strict=False)):
            continue  # it is larger than what it meets
        array = (
            item.array if item.number is None else np.full([1] * item.array.ndim, item.number, dtype=item.array.dtype)
        )
        name = f"{node.input[index]}.row"
        while name in reading.activations or not np.array_equal(reading.constants.setdefault(name, array), array):
            name += "_"
        changed.input[index] = name
    return changed
