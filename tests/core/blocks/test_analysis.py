"""Rankings, Kendall's tau, correlations and overlaps, against numbers counted by hand."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from typing import Any

import pytest

from core.block_report import BlockHistory, BlockRound
from core.blocks.analysis import analysed, analyses, compared, kendall_tau, order_of, pearson, places_after, ranked

INF, NAN = math.inf, math.nan


def round_of(number: int, scores: dict[str, float], removed: list[str], **told: Any) -> BlockRound:
    fields: dict[str, Any] = {
        "scored_after": number - 1, "left": {"group 1": 5 - number}, "params": 100 - 10 * number,
        "accuracy_before": 0.9, "accuracy_cut": 0.8,
    }  # fmt: skip
    return BlockRound(round=number, scores=scores, removed=removed, **(fields | told))


def history(*rounds: BlockRound) -> BlockHistory:
    return BlockHistory(
        saliency="oracle", blocks=dict.fromkeys("abcde", "group 1"), params=100, accuracy=0.9, rounds=list(rounds)
    )


FIRST = history(
    round_of(1, {"a": 5, "b": 1, "c": 3, "d": 4, "e": 2}, ["b"]),
    round_of(2, {"a": 2, "c": 1, "d": 4, "e": 3}, ["c"]),
    round_of(3, {"a": 3, "d": 1, "e": 2}, ["d"]),
)


def by_definition(one: list[int], other: list[int]) -> float:
    """(C - D) / √((C + D + T₁)(C + D + T₂)), T: pairs tied in one only, by looking at every pair."""
    concordant = discordant = first = second = 0
    for (a, b), (c, d) in itertools.combinations(zip(one, other, strict=True), 2):
        product = (a - c) * (b - d)
        concordant += product > 0
        discordant += product < 0
        first += a == c and b != d
        second += b == d and a != c
    return (concordant - discordant) / math.sqrt((concordant + discordant + first) * (concordant + discordant + second))


@pytest.mark.parametrize(
    ("one", "other", "tau"),
    [
        ("abcd", "abcd", 1.0),
        ("abcd", "dcba", -1.0),
        ("abcd", "acbd", 4 / 6),  # one of six pairs is the other way round
        ("abcd", "xbyacz", 1 / 3),  # a, b, c are in both: b a c; one of three pairs is turned
        ("ab", "cd", None),
        ("a", "a", None),
    ],
)
def test_tau_of_orders_without_ties(one: str, other: str, tau: float | None) -> None:
    found = kendall_tau(*({name: place for place, name in enumerate(order)} for order in (one, other)))
    assert found == (tau if tau is None else pytest.approx(tau))


def test_ties_count_for_neither() -> None:
    # a=b in the one; pairs: (a,b) tied, (a,c) and (b,c) concordant: 2 / √(2 · 3)
    assert kendall_tau({"a": 0, "b": 0, "c": 1}, {"a": 0, "b": 1, "c": 2}) == pytest.approx(2 / math.sqrt(6))
    assert kendall_tau({"a": 0, "b": 0}, {"a": 0, "b": 1}) is None


def test_tau_is_that_of_its_definition() -> None:
    draw = random.Random(0)
    for _ in range(50):
        one, other = ([draw.randrange(6) for _ in range(9)] for _ in range(2))
        names = [dict(zip("abcdefghi", order, strict=True)) for order in (one, other)]
        assert kendall_tau(*names) == pytest.approx(by_definition(one, other))


def test_pearson() -> None:
    assert pearson([(1, 2), (2, 4), (3, 6)]) == pytest.approx(1.0)
    assert pearson([(1, 1), (2, 3), (3, 2)]) == pytest.approx(0.5)
    assert pearson([(1, 1), (2, 3)]) is None
    assert pearson([(1, 1), (1, 2), (1, 3)]) is None


def test_a_ranking_is_what_went_and_then_the_rest_by_score() -> None:
    found = analysed(FIRST, step=0, run="pruned", rounds_kept=3)
    assert [each.removed for each in found.rankings] == [0, 1, 2, 3]
    assert ["".join(each.units) for each in found.rankings] == ["becda", "bcaed", "bcdea", "bcdea"]
    # becda to bcdea: the pairs (e, c) and (e, d) are turned, 2 of 10; bcaed to bcdea: (a, d), (a, e), (e, d), 3 of 10
    assert [each.tau_final for each in found.rankings] == pytest.approx([1 - 4 / 10, 1 - 6 / 10, 1.0, 1.0])
    # becda to bcaed: (e, c), (e, a), (d, a)
    assert [each.tau_previous for each in found.rankings][1:] == pytest.approx([1 - 6 / 10, 1 - 6 / 10, 1.0])
    assert found.rankings[0].tau_previous is None
    assert found.order == ["b", "c", "d"]


def test_equal_scores_are_tied_and_no_score_is_last() -> None:
    told = history(round_of(1, {"a": 1, "b": 1, "c": NAN, "d": INF, "e": -INF}, ["e"]))
    assert ranked(places_after(told, 0)) == ["e", "a", "b", "d", "c"]
    places = places_after(told, 0)
    assert places["a"] == places["b"]
    assert ranked(places_after(told, 1)) == ["e", "a", "b", "d", "c"]


def test_accuracies_before_and_after_whole_fine_tunings_alone_are_correlated() -> None:
    told = history(
        round_of(1, {}, ["a"], accuracy_cut=0.1, accuracy_tuned=0.1, epochs=1, whole=True),
        round_of(2, {}, ["b"], accuracy_cut=0.9, accuracy_tuned=0.0, epochs=1),
        round_of(3, {}, ["c"], accuracy_cut=0.2, accuracy_tuned=0.3, epochs=9, whole=True),
        round_of(4, {}, ["d"], accuracy_cut=0.3, accuracy_tuned=0.2, epochs=9, whole=True),
        round_of(5, {}, ["e"], accuracy_cut=0.4),
    )
    found = analysed(told, step=0, run="pruned", rounds_kept=5)
    assert (found.fine_tunings, found.correlation) == (3, pytest.approx(0.5))


def test_two_runs() -> None:
    other = history(
        round_of(1, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, ["a"]),
        round_of(2, {"b": 2, "c": 1, "d": 3, "e": 4}, ["c", "b"]),
    )
    found = compared(FIRST, other, with_run="random")
    assert [each.removed for each in found.agreements] == [0, 1, 3]  # the other one never had two gone
    assert [each.overlap for each in found.agreements] == [None, 0.0, pytest.approx(2 / 3)]
    # becda and abcde: a against b, c, d, e: four; e against c, d: two; of ten
    # bcaed and acbde: (b, c), (b, a), (c, a), (e, d); bcdea and acbde: (b, c), a against all four
    assert [each.tau for each in found.agreements] == pytest.approx([1 - 12 / 10, 1 - 8 / 10, 1 - 10 / 10])
    assert [each.tau_order for each in found.agreements] == [None, None, -1.0]  # of b, c alone


def test_of_each_step_and_its_control() -> None:
    found = analyses([None, FIRST, FIRST], [0, 2, 3], [None, FIRST])
    assert [(each.step, each.run, each.rounds_kept) for each in found] == [
        (1, "pruned", 2), (1, "random", 3), (2, "pruned", 3),
    ]  # fmt: skip
    assert [each.comparison is None for each in found] == [False, True, True]
    assert found[0].comparison is not None
    assert [each.overlap for each in found[0].comparison.agreements] == [None, 1.0, 1.0, 1.0]
    assert analyses([None], [0], []) == []
    assert order_of(history()) == []


def test_it_is_torch_free() -> None:
    code = (
        "import core.blocks.analysis, core.block_markdown, sys; "
        "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
