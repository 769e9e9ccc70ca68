"""Einsum of one or two inputs, of ONNX or ATen, read as what it is: transposes, a Linear, a product, a sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from onnx import NodeProto
from torch import fx

from core.errors import ModelRefused
from core.graph.operators.linear import linear

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading

aten = torch.ops.aten


Operand = fx.Node | npt.NDArray[Any]


class Making(Protocol):
    """A canonical graph in the making, from ONNX or from ATen calls. `where` is the node that is read."""

    def call(self, target: Any, *args: Any) -> fx.Node: ...
    def other_shape(self, x: fx.Node) -> tuple[int, ...]: ...
    def unknown(self, where: Any, what: str) -> ModelRefused: ...
    def refused(self, where: Any, what: str) -> ModelRefused: ...


Layer = Callable[[npt.NDArray[Any], fx.Node, int, tuple[Any, ...]], fx.Node]
"""Applies a Linear, made of a matrix (out, in), to a node. The matrix is of the operand of that number; calls that
agree in what comes last may share it."""


def read_einsum(reading: Reading, node: NodeProto) -> fx.Node:
    """Einsum-12."""
    equation = reading.attributes(node, equation=b"")["equation"].decode()
    operands = [
        reading.weight(node, index) if reading.is_constant(name) else reading.activation(node, index)
        for index, name in enumerate(node.input)
    ]

    def layer(matrix: npt.NDArray[Any], x: fx.Node, index: int, shared: tuple[Any, ...]) -> fx.Node:
        name = node.input[index]
        return reading.layer(node, name, lambda: linear(reading, matrix), x, shared=(name, index, *shared))

    return einsum(reading, node, equation, operands, layer)


def einsum(making: Making, where: Any, equation: str, operands: Sequence[Operand], layer: Layer) -> fx.Node:
    """The batch is the first dimension of every activation and of the result."""
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        right = "".join(sorted(letter for letter in set(left) - {","} if left.count(letter) == 1))
    letters = [*terms, right]
    if len(terms) not in (1, 2) or len(terms) != len(operands):
        raise making.unknown(where, f"the equation {equation!r}: one or two inputs are taken")
    if any(not term.isalpha() or len(set(term)) != len(term) for term in letters if term):
        raise making.unknown(where, f"the equation {equation!r}: each dimension by a letter of its own is taken")
    if not set(right) <= set(left):
        raise making.refused(where, f"the equation {equation!r} makes a dimension of nothing")
    for operand, term in zip(operands, terms, strict=True):
        rank = len(operand.meta["shape"]) if isinstance(operand, fx.Node) else operand.ndim
        if rank != len(term):
            raise making.refused(where, f"{term!r} of the equation {equation!r} meets an input of rank {rank}")
    moving = [term for operand, term in zip(operands, terms, strict=True) if isinstance(operand, fx.Node)]
    batch = moving[0][:1] if moving else ""
    if not batch or right[:1] != batch or any(term[:1] != batch for term in moving):
        raise making.unknown(where, f"the equation {equation!r}, which moves the batch or sums over it")
    first, second = operands[0], operands[-1]
    if len(terms) == 2 and isinstance(first, fx.Node) and isinstance(second, fx.Node):
        return _of_two(making, where, (first, second), terms, right)
    index = 0 if isinstance(first, fx.Node) else 1
    x, constant = operands[index], operands[1 - index] if len(terms) == 2 else None
    assert isinstance(x, fx.Node), "one of them is"
    if constant is None:
        return _arranged(making, x, terms[0], right)
    assert not isinstance(constant, fx.Node), "two activations are above"
    return _by_constant(making, where, (x, constant), terms, right, 1 - index, layer)


def _arranged(making: Making, x: fx.Node, term: str, wanted: str) -> fx.Node:
    """Sums over what is not wanted, and puts the rest in order."""
    gone = [dim for dim, letter in enumerate(term) if letter not in wanted]
    x = making.call(aten.sum.dim_IntList, x, gone, False) if gone else x
    left = [letter for letter in term if letter in wanted]
    order = [left.index(letter) for letter in wanted]
    return x if order == sorted(order) else making.call(aten.permute.default, x, order)


def _by_constant(
    making: Making, where: Any, operands: tuple[fx.Node, npt.NDArray[Any]], terms: list[str], right: str, index: int,
    layer: Layer,
) -> fx.Node:  # fmt: skip
    """Every output is a sum over the dimensions that the constant shares with the input: a Linear along those."""
    constant, term = terms[index], terms[1 - index]
    x, weight = operands
    if any(letter in right and letter in term for letter in constant):
        raise making.unknown(
            where, f"the equation {','.join(terms)}->{right}: one constant for each place of a dimension"
        )
    x = _arranged(making, x, term, "".join(item for item in term if item in right or item in constant))
    term = "".join(item for item in term if item in right or item in constant)
    summed = [letter for letter in constant if letter in term]
    if not summed:
        raise making.unknown(where, f"the equation {','.join(terms)}->{right}, which sums over nothing")
    made = [letter for letter in constant if letter in right]
    lost = tuple(place for place, letter in enumerate(constant) if letter not in term and letter not in right)
    kept = [letter for letter in constant if letter in term or letter in right]
    weight = weight.sum(axis=lost) if lost else weight
    sizes = dict(zip(kept, weight.shape, strict=True))
    for letter in summed:
        if sizes[letter] != x.meta["shape"][term.index(letter)]:
            raise making.refused(where, f"{letter!r} is {sizes[letter]} and {x.meta['shape'][term.index(letter)]}")
    ordered = np.transpose(weight, [kept.index(letter) for letter in (*made, *summed)])
    matrix = ordered.reshape(math.prod(sizes[letter] for letter in made), -1)
    rest = [letter for letter in term if letter not in summed]
    x = _arranged(making, x, term, "".join((*rest, *summed)))
    x = making.call(aten.flatten.using_ints, x, len(rest), -1) if len(summed) > 1 else x
    x = layer(matrix, x, index, (*terms, right))
    if not made:
        x = making.call(aten.squeeze.dims, x, [len(rest)])
    elif len(made) > 1:
        x = making.call(aten.unflatten.int, x, len(rest), [sizes[letter] for letter in made])
    return _arranged(making, x, "".join((*rest, *made)), right)


def _of_two(making: Making, where: Any, operands: tuple[fx.Node, fx.Node], terms: list[str], right: str) -> fx.Node:
    """Two activations: a product of matrices (shared…, rows, summed) by (shared…, summed, columns), or where nothing is
    summed a product of elements."""
    one, other = _wanted(terms, right)
    a = _arranged(making, operands[0], terms[0], one)
    b = _arranged(making, operands[1], terms[1], other)
    both = [letter for letter in one if letter in other and letter in right]
    summed = [letter for letter in one if letter in other and letter not in right]
    rows, columns = ([letter for letter in term if letter not in (*both, *summed)] for term in (one, other))
    a = _arranged(making, a, one, "".join((*both, *rows, *summed)))
    b = _arranged(making, b, other, "".join((*both, *summed, *columns)))
    place = len(both)
    if not summed:
        for _ in columns:
            a = making.call(aten.unsqueeze.default, a, place + len(rows))
        for _ in rows:
            b = making.call(aten.unsqueeze.default, b, place)
        made = making.call(aten.mul.Tensor, a, b)
        return _arranged(making, made, "".join((*both, *rows, *columns)), right)
    sizes = dict(zip((*both, *rows), a.meta["shape"], strict=False))
    sizes |= dict(zip((*both, *summed, *columns), b.meta["shape"], strict=True))
    a = _one(making, _one(making, a, place + len(rows), summed), place, rows)
    b = _one(making, _one(making, b, place + len(summed), columns), place, summed)
    if any(making.other_shape(item) != item.meta["shape"] for item in (a, b)) and max(len(rows), len(columns)) > 1:
        raise making.unknown(where, f"the equation {','.join(terms)}->{right} of several dimensions that are dynamic")
    made = making.call(aten.matmul.default, a, b)
    for start, letters in ((place + 1, columns), (place, rows)):
        if not letters:
            made = making.call(aten.squeeze.dims, made, [start])
        elif len(letters) > 1:
            made = making.call(aten.unflatten.int, made, start, [sizes[letter] for letter in letters])
    return _arranged(making, made, "".join((*both, *rows, *columns)), right)


def _one(making: Making, x: fx.Node, start: int, letters: list[str]) -> fx.Node:
    """The dimensions `letters` from `start` on as one."""
    if not letters:
        return making.call(aten.unsqueeze.default, x, start)
    return making.call(aten.flatten.using_ints, x, start, start + len(letters) - 1) if len(letters) > 1 else x


def _wanted(terms: list[str], right: str) -> tuple[str, str]:
    """Of each term, the letters that the other or the result has: the rest is summed first."""
    one, other = terms
    return (
        "".join(letter for letter in one if letter in other or letter in right),
        "".join(letter for letter in other if letter in one or letter in right),
    )


READERS = {"Einsum": read_einsum}
