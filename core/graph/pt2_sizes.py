"""Sizes of an exported program that are not fixed, as numbers to compute with, exactly, for every image.

A `Size` is a sum of products of open dimensions and of whole quotients (`floor(h / 2)`) with rational coefficients, in
a form that is the same for equal sums: `(h - 1) // 2 + 1` and `(h + 1) // 2` are one. Two sizes that differ in form are
never taken for equal, whatever they are in an example; a comparison that depends on the image raises `Undecided`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

MAX_TERMS = 64
"""Of one size: shape arithmetic of a network has a handful."""

MAX_DENOMINATOR = 2**12
"""Of a number that a size is computed with: what is no such fraction (0.7) torch rounds on the way."""

Values = tuple[Fraction, Fraction, Fraction]


class Undecided(ArithmeticError):
    """What depends on the image and cannot be said in advance."""


@dataclass(frozen=True)
class Atom:
    """An open dimension, or the whole quotient of `numerator` and `divisor`. Equal where `text` is.

    `values` are for (the first batch size, the first example), (the second batch size, the first example) and (the
    first batch size, the second example); `least` is a lower bound.
    """

    text: str
    values: Values = field(compare=False)
    least: int = field(default=1, compare=False)
    numerator: Size | None = field(default=None, compare=False)
    divisor: int = field(default=1, compare=False)


Term = tuple[Atom, ...]


class Size:
    """A number that follows the batch or an open size, computed with by +, -, *, //, %, and / without a rest."""

    def __init__(self, terms: Mapping[Term, Fraction]) -> None:
        if len(terms) > MAX_TERMS:
            raise Undecided(f"a size of more than {MAX_TERMS} terms")
        self.terms = dict(terms)

    @cached_property
    def text(self) -> str:
        """The same for equal sizes."""
        words = sorted(
            "*".join([str(factor)] * (factor != 1 or not term) + [atom.text for atom in term])
            for term, factor in self.terms.items()
        )
        return " + ".join(words)

    @cached_property
    def values(self) -> tuple[Any, Any, Any]:
        """In the three cases of `Atom.values`."""
        first, second, third = (
            _plain(sum(
                (factor * math.prod((atom.values[case] for atom in term), start=_ONE)
                 for term, factor in self.terms.items()), start=_ZERO,
            ))
            for case in range(3)
        )  # fmt: skip
        return first, second, third

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return self.text

    def __add__(self, other: Any) -> Any:
        found = dict(self.terms)
        for term, factor in _terms(other).items():
            found[term] = found.get(term, _ZERO) + factor
        return _simplest(found)

    def __neg__(self) -> Any:
        return _simplest({term: -factor for term, factor in self.terms.items()})

    def __pos__(self) -> Any:
        return self

    def __sub__(self, other: Any) -> Any:
        return self + (-_known(other))

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __mul__(self, other: Any) -> Any:
        found: dict[Term, Fraction] = {}
        for a, x in self.terms.items():
            for b, y in _terms(other).items():
                term = tuple(sorted((*a, *b), key=lambda atom: atom.text))
                found[term] = found.get(term, _ZERO) + x * y
        return _simplest(found)

    def __truediv__(self, other: Any) -> Any:
        return _divided(self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _divided(_known(other), self)

    def __floordiv__(self, other: Any) -> Any:
        return floor(_divided(self, other))

    def __rfloordiv__(self, other: Any) -> Any:
        return floor(_divided(_known(other), self))

    def __mod__(self, other: Any) -> Any:
        return self - (self // other) * other

    def __rmod__(self, other: Any) -> Any:
        return other - (other // self) * self

    def __pow__(self, other: Any) -> Any:
        if not isinstance(other, int) or not 0 <= other <= 8:
            raise Undecided(f"{self} to the power of {other}")
        return math.prod([self] * other) if other else 1

    def __abs__(self) -> Any:
        return self if self >= 0 else -self

    def __floor__(self) -> Any:
        return floor(self)

    def __ceil__(self) -> Any:
        return -floor(-self)

    def __trunc__(self) -> Any:
        return floor(self) if self >= 0 else -floor(-self)

    def __lt__(self, other: Any) -> bool:
        return not self >= other

    def __gt__(self, other: Any) -> bool:
        return not self <= other

    def __le__(self, other: Any) -> bool:
        return bool(other - self >= 0)

    def __ge__(self, other: Any) -> bool:
        """Raises `Undecided` where it is so for some images only."""
        difference = self - other
        if not isinstance(difference, Size):
            return bool(difference >= 0)
        least = difference.least()
        if least is not None and (least >= 0 or (difference.whole and least > -1)):
            return True
        most = (-difference).least()
        if most is not None and most > 0:
            return False
        raise Undecided(f"whether {self} is at least {other} depends on the image")

    def __bool__(self) -> bool:
        return self >= 1

    def __round__(self) -> Any:
        if not self.whole:
            raise Undecided(f"{self} rounded")
        return self

    __radd__ = __add__
    __rmul__ = __mul__

    @property
    def whole(self) -> bool:
        """Whether it is a whole number for every image."""
        return all(factor.denominator == 1 for factor in self.terms.values())

    def least(self) -> Fraction | None:
        """A lower bound for all images; None where none is found."""
        bounded: Any = self
        for _ in range(8):  # a quotient is between its numerator's bounds; those of the numerator may hold another
            quotients = [term for term in _terms(bounded) if len(term) == 1 and term[0].numerator is not None]
            if not quotients:
                break
            term = max(quotients, key=lambda item: len(item[0].text))
            factor, atom = _terms(bounded)[term], term[0]
            assert atom.numerator is not None
            rest = bounded - Size({term: factor})
            room = Fraction(atom.divisor - 1, atom.divisor) if factor > 0 else _ZERO
            bounded = rest + (atom.numerator * Fraction(1, atom.divisor) - room) * factor
        total = _ZERO
        for atoms, factor in _terms(bounded).items():
            if (atoms and factor < 0) or (len(atoms) > 1 and any(atom.least < 0 for atom in atoms)):
                return None
            total += factor * math.prod((Fraction(atom.least) for atom in atoms), start=_ONE)
        return total

    @property
    def rounded(self) -> bool:
        """Whether a float cannot hold it exactly, for some images."""
        return any(factor.denominator & (factor.denominator - 1) for factor in self.terms.values())

    @property
    def follows_batch(self) -> bool:
        return bool(self.values[0] != self.values[1])


_ZERO, _ONE = Fraction(0), Fraction(1)


def _plain(number: Fraction) -> Any:
    return int(number) if number.denominator == 1 else number


def _known(value: Any) -> Any:
    if isinstance(value, Size | Fraction):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Undecided(f"a size computed with {value!r}")
    if isinstance(value, int):
        return Fraction(value)
    exact = Fraction(value)
    if exact.denominator > MAX_DENOMINATOR:
        raise Undecided(f"a size computed with {value!r}, which is rounded")
    return exact


def _terms(value: Any) -> Mapping[Term, Fraction]:
    value = _known(value)
    return value.terms if isinstance(value, Size) else {(): value} if value else {}


def _simplest(terms: Mapping[Term, Fraction]) -> Any:
    kept = {term: factor for term, factor in terms.items() if factor}
    return Size(kept) if set(kept) - {()} else _plain(kept.get((), _ZERO))


def floor(size: Any) -> Any:
    """The largest whole number that is not above `size`. What is whole in it is taken out, and quotients of quotients
    become one, so that equal ones have one form."""
    if not isinstance(size, Size):
        return math.floor(size)
    whole: Any = _simplest({term: Fraction(math.floor(factor)) for term, factor in size.terms.items()})
    rest: Any = size - whole
    if not isinstance(rest, Size):
        return whole  # less than 1 is left
    divisor = math.lcm(*(factor.denominator for factor in rest.terms.values()))
    numerator: Any = rest * divisor
    common = math.gcd(divisor, *(int(factor) for term, factor in numerator.terms.items() if term))
    if common > 1:  # (2 h + 1) // 4 is h // 2
        last = numerator.terms.get((), _ZERO)
        numerator = (numerator - last) * Fraction(1, common) + math.floor(last / common)
        return whole + floor(numerator * Fraction(1, divisor // common))
    leads = [(term, factor) for term, factor in numerator.terms.items() if term]
    inner = leads[0][0][0]
    if len(leads) == 1 and leads[0][1] == 1 and leads[0][0] == (inner,) and inner.numerator is not None:
        return whole + floor(
            (inner.numerator + numerator.terms.get((), _ZERO) * inner.divisor)
            * Fraction(1, inner.divisor * divisor)
        )  # fmt: skip
    first, second, third = (Fraction(value) // divisor for value in numerator.values)
    least = numerator.least()
    atom = Atom(
        f"({numerator})//{divisor}", (Fraction(first), Fraction(second), Fraction(third)),
        math.floor(least / divisor) if least is not None else -(2**53), numerator, divisor,
    )  # fmt: skip
    return whole + Size({(atom,): _ONE})


def _divided(a: Any, b: Any) -> Any:
    """a / b, where b is a number or a divisor of a."""
    if not isinstance(b, Size):
        if not b:
            raise ZeroDivisionError("a division by zero")
        return a * (1 / _known(b))
    rest, found = a, _ZERO
    (lead, factor) = max(b.terms.items(), key=_order)
    for _ in range(MAX_TERMS):  # long division of polynomials
        if not isinstance(rest, Size):
            if rest == 0:
                return _simplest(found.terms) if isinstance(found, Size) else _plain(found)
            break
        term, own = max(rest.terms.items(), key=_order)
        left = list(term)
        for atom in lead:
            if atom not in left:
                raise Undecided(f"{a} divided by {b} depends on the image")
            left.remove(atom)
        step = Size({tuple(left): own / factor}) if left else own / factor
        found, rest = step + found, rest - step * b
    raise Undecided(f"{a} divided by {b} depends on the image")


def _order(item: tuple[Term, Fraction]) -> tuple[int, list[str]]:
    return len(item[0]), [atom.text for atom in item[0]]


# --- of an exported program ------------------------------------------------------------------------------------------


def open_size(text: str, values: Iterable[Any], least: int = 1) -> Size:
    """An open dimension as a number to compute with."""
    first, second, third = (Fraction(value) for value in values)
    return Size({(Atom(text, (first, second, third), least),): _ONE})


def values_of(size: Any) -> tuple[Any, Any, Any]:
    return size.values if isinstance(size, Size) else (size, size, size)


def product(sizes: Iterable[Any]) -> Any:
    """Of numbers that may be `Size`s."""
    total: Any = 1
    for size in sizes:
        total = total * size
    return total


def quotient(whole: Any, part: Any) -> Any:
    """`whole / part` where that is a whole number, for every image; else None."""
    if not isinstance(whole, Size) and not isinstance(part, Size):
        return whole // part if part and whole % part == 0 else None
    try:
        found = whole / part
    except ArithmeticError:
        return None
    return found if isinstance(found, int) or (isinstance(found, Size) and found.whole) else None


def decided(function: Callable[[], bool]) -> bool:
    """Whether a comparison holds for every image."""
    try:
        return function()
    except Undecided:
        return False
