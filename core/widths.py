"""How many units of a channel group go in a round: shares, whole multiples, and what is left over.

A group may have any width up to its own that is a multiple of its `multiple`, and its own: a width that is no multiple
to begin with is left alone until a whole multiple below it can be reached. No group goes below its least such width.
So units leave in *chunks*, each from one allowed width to the next below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from core.graph.groups import ChannelGroup


@dataclass(frozen=True)
class Chunk:
    """Units of a group that go together, weakest first. `score`: their mean."""

    group: str
    units: tuple[int, ...]
    score: float


def unit_multiple(group: ChannelGroup, channel_multiple: int) -> int:
    """The multiple in units that makes every layer's channels a multiple of `channel_multiple`.

    Where a unit has k channels in a layer (k-fold groups of a grouped convolution, k branches), channel_multiple /
    gcd(channel_multiple, k) units do; over several layers, the least common multiple. A layer in several groups keeps
    a multiple of each. All units of a group have the same number of channels in a layer.
    """
    return math.lcm(
        *(channel_multiple // math.gcd(channel_multiple, len(layer.channels[0])) for layer in group.producers)
    )


def next_width(width: int, multiple: int, always_kept: int = 0) -> int:
    """The largest allowed width below `width`; `width` itself where there is none.

    Frozen units of the same layers (`always_kept`) count towards the multiple; at least one unit stays besides them.
    """
    below = (width - 1 + always_kept) // multiple * multiple - always_kept
    return below if below >= 1 else width


def least_width(width: int, multiple: int, always_kept: int = 0) -> int:
    """The smallest allowed width of a group that is `width` wide."""
    smallest = multiple * (always_kept // multiple + 1) - always_kept
    return min(smallest, width)


def chunks(group: str, scores: Sequence[float], multiple: int, always_kept: int = 0) -> list[Chunk]:
    """All that may go from a group, in the order in which it goes: the weakest units first, ties by index."""
    order = sorted(range(len(scores)), key=lambda unit: (scores[unit], unit))
    found = []
    width = len(scores)
    while (smaller := next_width(width, multiple, always_kept)) < width:
        first = len(scores) - width
        units = tuple(order[first : first + width - smaller])
        found.append(Chunk(group, units, math.fsum(scores[unit] for unit in units) / len(units)))
        width = smaller
    return found


def share_of(width: int, ratio: float) -> Fraction:
    """A round's share of `width` units: whole units, rounded down; a share below one unit stays the fraction it is.

    Rounding down is what the published figure of Salcedo & Sharma follows (see docs/methods/filter_norm.md); a fraction
    must add up over rounds, or a narrow layer would never lose anything. `ratio` is taken as the decimal as written.
    """
    share = Fraction(repr(ratio)) * width
    return Fraction(math.floor(share)) if share >= 1 else share


def take(candidates: Iterable[Chunk], owed: Fraction) -> tuple[list[Chunk], Fraction]:
    """Chunks from the front of `candidates` as long as `owed` pays for them, and what is left over for the next round.

    The first that is too dear ends it: to skip it would favour groups with small chunks. Where nothing more can go,
    what is left over is nothing.
    """
    taken: list[Chunk] = []
    for chunk in candidates:
        if len(chunk.units) > owed:
            return taken, owed
        taken.append(chunk)
        owed -= len(chunk.units)
    return taken, Fraction(0)


def removal_of(chosen: Sequence[Chunk]) -> dict[str, list[int]]:
    """Chunks as what `cut` takes: group name -> unit indices, ascending."""
    removal: dict[str, list[int]] = {}
    for chunk in chosen:
        removal[chunk.group] = sorted([*removal.get(chunk.group, []), *chunk.units])
    return removal


def simulated_widths(
    widths: Mapping[str, int], multiples: Mapping[str, tuple[int, int]], ratio: float, rounds: int
) -> dict[str, int]:
    """Widths after `rounds` rounds of local scope from `widths`; `multiples` holds (multiple, always_kept)."""
    found = {}
    for name, (multiple, always_kept) in multiples.items():
        width, carried, left = widths[name], Fraction(0), rounds
        while (size := width - next_width(width, multiple, always_kept)) > 0:
            share = share_of(width, ratio)
            waiting = max(1, math.ceil((size - carried) / share))  # rounds until the next chunk is paid for
            if waiting > left:
                break
            left -= waiting
            carried += share * waiting
            while 0 < (size := width - next_width(width, multiple, always_kept)) <= carried:
                width -= size
                carried -= size
        found[name] = width
    return found
