"""Folding: what an ONNX graph computes from constants and shapes alone, worked out while it is read.

Sizes that are not fixed take part as `Size` objects in arrays of objects (`core/graph/sizes.py`): they are moved about
and computed with exactly, so that no size of an example ends up in the network. Nothing here makes more than
`MAX_FOLDED_ELEMENTS` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from core.errors import ModelRefused
from core.graph import onnx_folding_numbers, onnx_folding_shapes
from core.graph.limits import MAX_RANK
from core.graph.onnx_folding import Array, CannotFold, Folder, Folding
from core.graph.sizes import Size

__all__ = ["FOLDERS", "CannotFold", "fold", "fold_all", "plain", "shape_vector", "work"]

FOLDERS: dict[str, Folder] = {**onnx_folding_shapes.FOLDERS, **onnx_folding_numbers.FOLDERS}


def shape_vector(sizes: Sequence[Any]) -> Array:
    """The value of `Shape` of what has these sizes. Those that are open stay so."""
    vector = np.empty(len(sizes), dtype=object)
    vector[:] = sizes
    return vector


def fold(node: NodeProto, inputs: list[Array | None]) -> Array:
    """The first result of a node whose inputs are all constant. Raises `CannotFold`."""
    return fold_all(node, inputs)[0]


def fold_all(node: NodeProto, inputs: list[Array | None], opset: int = 13) -> tuple[Array, ...]:
    """The results of a node whose inputs are all constant. Raises `CannotFold`."""
    function = FOLDERS.get(node.op_type)
    if function is None:
        raise CannotFold
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    try:
        with np.errstate(all="ignore"):
            value = function(Folding(inputs, attributes, len(node.output), opset))
            results = tuple(map(_array, value if isinstance(value, tuple) else (value,)))
    except (IndexError, ValueError, TypeError, KeyError, ArithmeticError, AttributeError):
        raise CannotFold from None
    for result in results:
        if result.ndim > MAX_RANK:
            raise ModelRefused(
                f"node {node.name!r} makes a constant of rank {result.ndim}; at most {MAX_RANK} is taken"
            )
    return tuple(map(plain, results))


def work(node: NodeProto, inputs: list[Array | None], results: tuple[Array, ...]) -> int:
    """How many numbers were made, or gone through to make fewer."""
    if node.op_type == "Identity":
        return 0
    made = sum(result.size for result in results)
    if not node.op_type.startswith("Reduce") and node.op_type not in ("MatMul", "NonZero"):
        return made
    return max(made, *(0 if item is None else item.size for item in inputs))


def plain(array: Array) -> Array:
    """An array of objects without open sizes as one of numbers: whole ones, or float32."""
    if array.dtype != object:
        return array
    if all(isinstance(item, int | np.integer) for item in array.flat):
        return array.astype(np.int64)
    return array if any(isinstance(item, Size) for item in array.flat) else array.astype(np.float32)


def _array(value: Any) -> Array:
    """numpy hands out the bare object where an array of objects is indexed or computed down to one."""
    if isinstance(value, Size):
        array = np.empty((), dtype=object)
        array[()] = value
        return array
    return np.asarray(value)
