"""How alike two runs of block removal choose: rankings (Velici 2022, section 3.3.1) and correlations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any


def ranking(rounds: Sequence[Mapping[str, Any]], step: int) -> list[str]:
    """Blocks of a run when `step` of its rounds are done: those removed, in their order, then the others by the scores
    of the next round."""
    gone = removed(rounds[:step])
    scores = rounds[step]["scores"]
    left = [name for name in scores if name not in gone]
    return [*gone, *sorted(left, key=scores.__getitem__)]


def removed(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """What went in these rounds, in order."""
    return [name for each in rounds for name in each["removed"]]


def agreement(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Kendall's tau of two rankings of the same names: 1 the same, −1 the reverse."""
    places = {name: place for place, name in enumerate(other)}
    return kendall_tau(range(len(one)), [places[name] for name in one])


def order_agreement(one: Sequence[str], other: Sequence[str], names: Sequence[str]) -> float | None:
    """The same of orders of removal alone: what was not removed shares the last place (figure 3.15)."""

    def place(order: Sequence[str], name: str) -> int:
        return order.index(name) if name in order else len(names)

    return kendall_tau([place(one, name) for name in names], [place(other, name) for name in names])


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau-b, that allows for ties (Kendall 1945); None where one of them is all ties."""
    balance, in_x, in_y = 0, 0, 0
    for (a, b), (c, d) in combinations(zip(x, y, strict=True), 2):
        balance += _sign(a - c) * _sign(b - d)
        in_x += a != c
        in_y += b != d
    return balance / math.sqrt(in_x * in_y) if in_x and in_y else None


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def pearson_interval(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float] | None:
    """Pearson's correlation and its 95 % interval by Fisher's transformation; None where it has no value."""
    if len(x) < 4 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    found = max(-1.0, min(1.0, statistics.correlation(x, y)))
    if abs(found) == 1:
        return found, found, found
    half = 1.96 / math.sqrt(len(x) - 3)
    return found, math.tanh(math.atanh(found) - half), math.tanh(math.atanh(found) + half)
