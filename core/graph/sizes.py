"""Sizes that are not fixed, as numbers to compute with: sums of products of open dimensions with whole coefficients.

Shape arithmetic of a graph is folded with them, so that no size of an example ends up in the network. What they cannot
hold exactly (a division that leaves a rest, a comparison that depends on the image) is not folded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from torch import fx


@dataclass(frozen=True)
class Dimension:
    """Dimension `dim` of `node` (None: the batch), and its size in the two examples that shapes are worked out for."""

    node: fx.Node | None
    dim: int
    examples: tuple[int, int]

    def order(self) -> tuple[str, int]:
        return ("" if self.node is None else self.node.name), self.dim


Terms = Mapping[tuple[Dimension, ...], Fraction]


class Size:
    """A number that follows open dimensions. It is computed with by +, -, * and exact division; the result is a plain
    number where nothing open is left in it."""

    def __init__(self, terms: Terms) -> None:
        self.terms = dict(terms)

    @property
    def examples(self) -> tuple[int, int]:
        """Its values in the two examples."""
        first, second = (
            sum(factor * math.prod(item.examples[which] for item in term) for term, factor in self.terms.items())
            for which in (0, 1)
        )
        return int(first), int(second)

    @property
    def whole(self) -> bool:
        """Whether it is a whole number, whatever the open sizes are."""
        return all(factor.denominator == 1 for factor in self.terms.values())

    def multiple(self) -> tuple[Dimension, Fraction] | None:
        """(d, k) where it is k times the dimension d."""
        ((term, factor),) = self.terms.items() if len(self.terms) == 1 else (((), Fraction(0)),)
        return (term[0], factor) if len(term) == 1 else None

    def positive(self) -> bool:
        """Whether it is above 0 for every image: all of its terms are."""
        return all(factor > 0 for factor in self.terms.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    def __add__(self, other: Any) -> Any:
        added = _terms(other)
        if added is None:
            return NotImplemented
        return _simplest({key: self.terms.get(key, _ZERO) + added.get(key, _ZERO) for key in {**self.terms, **added}})

    def __neg__(self) -> Any:
        return _simplest({key: -factor for key, factor in self.terms.items()})

    def __sub__(self, other: Any) -> Any:
        return NotImplemented if _terms(other) is None else self + -_number(other)

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __mul__(self, other: Any) -> Any:
        factors = _terms(other)
        if factors is None:
            return NotImplemented
        found: dict[tuple[Dimension, ...], Fraction] = {}
        for a, x in self.terms.items():
            for b, y in factors.items():
                key = tuple(sorted((*a, *b), key=Dimension.order))
                found[key] = found.get(key, _ZERO) + x * y
        return _simplest(found)

    def __truediv__(self, other: Any) -> Any:
        """By a number, or by one product of dimensions that is in every term."""
        parts = _terms(other)
        if parts is None:
            return NotImplemented
        if len(parts) != 1:
            raise ArithmeticError("a division by nothing or by a sum of open sizes")
        ((term, factor),) = parts.items()
        found = {}
        for key, own in self.terms.items():
            left = list(key)
            for item in term:
                left.remove(item)  # ValueError where it is not a factor: the quotient is no sum of products
            found[tuple(left)] = own / factor
        return _simplest(found)

    def __rtruediv__(self, other: Any) -> Any:
        raise ArithmeticError("a number divided by an open size")

    def __repr__(self) -> str:
        return f"Size{self.examples}"

    __radd__ = __add__
    __rmul__ = __mul__


_ZERO = Fraction(0)


def _number(value: Any) -> Any:
    """As a `Size` or a `Fraction`; None for what is neither."""
    if isinstance(value, Size):
        return value
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int | np.integer | Fraction):
        return value if isinstance(value, Fraction) else Fraction(int(value))
    if isinstance(value, float | np.floating) and math.isfinite(value):
        return Fraction(float(value))
    return None


def _terms(value: Any) -> Terms | None:
    value = _number(value)
    if value is None or isinstance(value, Size):
        return None if value is None else value.terms
    return {(): value} if value else {}


def _simplest(terms: Terms) -> Any:
    kept = {key: factor for key, factor in terms.items() if factor}
    if not kept or set(kept) == {()}:
        number = kept.get((), _ZERO)
        return int(number) if number.denominator == 1 else float(number)
    return Size(kept)


BATCH = Size({(Dimension(None, 0, (1, 1)),): Fraction(1)})
"""The batch size, whatever it is."""


def size_of(node: fx.Node, dim: int, examples: tuple[int, int]) -> Any:
    """Dimension `dim` of `node` as a number to compute with: a plain one where both examples agree on it."""
    if dim == 0:
        return BATCH
    if examples[0] == examples[1]:
        return examples[0]
    return Size({(Dimension(node, dim, examples),): Fraction(1)})


def at_batch(size: Any, batch: int | None) -> Any:
    """`size` where the batch has that size; as it is where `batch` is None."""
    if batch is None or not isinstance(size, Size):
        return size
    found: dict[tuple[Dimension, ...], Fraction] = {}
    for term, factor in size.terms.items():
        rest = tuple(item for item in term if item.node is not None)
        found[rest] = found.get(rest, _ZERO) + factor * batch ** (len(term) - len(rest))
    return _simplest(found)


def follows_batch(size: Any) -> bool:
    return isinstance(size, Size) and any(item.node is None for term in size.terms for item in term)


def described_sizes(sizes: Iterable[Any]) -> str:
    """Sizes as a person reads them: [batch, 8, ?]."""
    words = ("batch" if size == BATCH else "?" if isinstance(size, Size) else str(size) for size in sizes)
    return f"[{', '.join(words)}]"
