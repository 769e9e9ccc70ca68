"""What the folders of `onnx_constants.py` work with: the inputs and attributes of one node, and the caps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import ModelTooLarge
from core.graph.limits import MAX_FOLDED_ELEMENTS, MAX_RANK

Array = npt.NDArray[Any]


class CannotFold(Exception):
    """This node is not folded (it needs the value of an open size, or works in a way that is not on the list)."""


@dataclass(frozen=True)
class Folding:
    """One node: `inputs` are arrays (of objects where sizes in them are open), None where one is left out. `opset` says
    what the operator means."""

    inputs: list[Array | None]
    attributes: dict[str, Any]
    outputs: int = 1
    opset: int = 13

    def __getitem__(self, index: int) -> Array:
        value = self.inputs[index]
        if value is None:
            raise CannotFold
        return value

    def number(self, index: int) -> Array:
        """An input without open sizes."""
        value = self[index]
        if value.dtype == object:
            raise CannotFold
        return value

    def has(self, index: int) -> bool:
        return len(self.inputs) > index and self.inputs[index] is not None

    def axes(self, index: int, name: str = "axes") -> list[int] | None:
        """From an input (of newer opsets), else from an attribute (of older ones)."""
        if self.has(index):
            return [int(axis) for axis in self.number(index).reshape(-1)]
        return list(self.attributes[name]) if name in self.attributes else None


Folder = Callable[[Folding], Any]
"""The value of a node with one result; a tuple of values where it has several."""


def bounded(shape: Any) -> tuple[int, ...]:
    """`shape`, where an array of that shape may be made. Raises `ModelTooLarge`."""
    sizes = tuple(int(size) for size in shape)
    if len(sizes) > MAX_RANK or any(size < 0 for size in sizes) or math.prod(sizes) > MAX_FOLDED_ELEMENTS:
        raise ModelTooLarge(
            f"a constant of shape {list(sizes)[:16]}; at most {MAX_FOLDED_ELEMENTS} elements are folded"
        )
    return sizes


def objects(values: Array, shape: tuple[int, ...]) -> Array:
    """An array of objects (numpy would look into a list of them)."""
    array = np.empty(shape, dtype=object)
    array[...] = values
    return array
