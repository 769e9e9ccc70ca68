"""What the rounds of a step that removes blocks say together, and of two such runs how alike they chose: sections
3.3.1, 3.3.3, 3.3.5 and 3.4 of Velici 2022. Torch-free.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Mapping, Sequence

from core.block_report import BlockAgreement, BlockAnalysis, BlockComparison, BlockHistory, BlockRanking

Places = dict[str, tuple[int, float]]
"""Of each unit its place in a ranking: smaller is earlier, equal is tied."""
FEWEST_PAIRS = 3
"""Accuracies before and after of which a correlation is told: of two pairs it is always 1 or -1."""


def kendall_tau(one: Mapping[str, object], other: Mapping[str, object]) -> float | None:
    """Kendall's tau-b (1945) of two orders, -1 to 1, over the names that are in both; None where one of them ties them
    all, or there are fewer than two.

    τ = (C - D) / √((n₀ - n₁)(n₀ - n₂)); C, D: concordant and discordant pairs; n₀ = n(n - 1)/2; n₁, n₂: pairs tied in
    the one, in the other. D is counted by insertion into a sorted list.
    """
    first, second = ({value: rank for rank, value in enumerate(_distinct(each))} for each in (one, other))
    pairs = sorted((first[one[name]], second[other[name]]) for name in one.keys() & other.keys())
    n0 = len(pairs) * (len(pairs) - 1) // 2
    n1, n2, both = (
        sum(number * (number - 1) // 2 for number in Counter(found).values())
        for found in ([a for a, _ in pairs], [b for _, b in pairs], pairs)
    )
    discordant, seen = 0, list[int]()
    for _, place in pairs:
        discordant += len(seen) - bisect_right(seen, place)
        insort(seen, place)
    if n0 in (n1, n2):
        return None
    return (n0 - n1 - n2 + both - 2 * discordant) / math.sqrt((n0 - n1) * (n0 - n2))


def _distinct(order: Mapping[str, object]) -> list[object]:
    return sorted(set(order.values()))  # type: ignore[type-var]  # of one mapping, all of one kind


def pearson(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's correlation of two figures; None of fewer than three pairs, or where one figure does not change."""
    if len(pairs) < FEWEST_PAIRS:
        return None
    means = [math.fsum(pair[end] for pair in pairs) / len(pairs) for end in range(2)]
    away = [(a - means[0], b - means[1]) for a, b in pairs]
    spread = math.fsum(a * a for a, _ in away) * math.fsum(b * b for _, b in away)
    return math.fsum(a * b for a, b in away) / math.sqrt(spread) if spread > 0 else None


def order_of(history: BlockHistory, rounds: int | None = None) -> list[str]:
    """Units in the order in which they were removed, in the first `rounds` rounds or all."""
    return [unit for round in history.rounds[:rounds] for unit in round.removed]


def places_after(history: BlockHistory, rounds: int) -> Places:
    """The ranking after so many rounds (section 3.3.1): what was removed, in order, then the rest by the scores of the
    round to come; after the last one, by its own. No score (NaN) is the last."""
    removed = order_of(history, rounds)
    places: Places = {unit: (0, float(place)) for place, unit in enumerate(removed)}
    scores = history.rounds[min(rounds, len(history.rounds) - 1)].scores if history.rounds else {}
    for unit, score in scores.items():
        if unit not in places:
            places[unit] = (1, score) if not math.isnan(score) else (2, 0.0)
    return places


def ranked(places: Places) -> list[str]:
    """Units by their places; of tied ones in the order in which they were scored."""
    return sorted(places, key=lambda unit: places[unit])


def analysed(history: BlockHistory, *, step: int, run: str, rounds_kept: int) -> BlockAnalysis:
    """What the rounds of a step say together. `run`: pruned, or random."""
    places = [places_after(history, rounds) for rounds in range(len(history.rounds) + 1)]
    rankings = [
        BlockRanking(
            removed=len(order_of(history, rounds)),
            units=ranked(found),
            tau_previous=kendall_tau(places[rounds - 1], found) if rounds else None,
            tau_final=kendall_tau(found, places[-1]),
        )
        for rounds, found in enumerate(places)
    ]
    pairs = [
        (round.accuracy_cut, round.accuracy_tuned)
        for round in history.rounds
        if round.whole and round.accuracy_cut is not None and round.accuracy_tuned is not None
    ]
    return BlockAnalysis(
        **dict(history), step=step, run=run, rounds_kept=rounds_kept, order=order_of(history), rankings=rankings,
        fine_tunings=len(pairs), correlation=pearson(pairs),
    )  # fmt: skip


def analyses(
    pruned: Sequence[BlockHistory | None], kept: Sequence[int], random: Sequence[BlockHistory | None]
) -> list[BlockAnalysis]:
    """Of each step that removed blocks, and behind it of the control random at the same step, where that ran.

    pruned, random: of each step of the recipe. kept: of each step, how many rounds of the recipe's run were kept.
    """
    found = []
    for step, (history, rounds) in enumerate(zip(pruned, kept, strict=True)):
        if history is None:
            continue
        control = random[step] if step < len(random) else None
        own = analysed(history, step=step, run="pruned", rounds_kept=rounds)
        if control is not None:
            own.comparison = compared(history, control, with_run="random")
        found.append(own)
        if control is not None:
            found.append(analysed(control, step=step, run="random", rounds_kept=len(control.rounds)))
    return found


def compared(one: BlockHistory, other: BlockHistory, *, with_run: str) -> BlockComparison:
    """How alike `one` and `other` chose, at each number of removed units that both have a ranking at. `with_run`: what
    the other one is called."""
    ours, theirs = (
        {len(order_of(each, rounds)): rounds for rounds in range(len(each.rounds) + 1)} for each in (one, other)
    )
    found = []
    for removed in sorted(ours.keys() & theirs.keys()):
        orders = [{unit: place for place, unit in enumerate(order_of(each)[:removed])} for each in (one, other)]
        found.append(
            BlockAgreement(
                removed=removed,
                overlap=len(orders[0].keys() & orders[1].keys()) / removed if removed else None,
                tau=kendall_tau(places_after(one, ours[removed]), places_after(other, theirs[removed])),
                tau_order=kendall_tau(*orders),
            )
        )
    return BlockComparison(with_run=with_run, agreements=found)
