"""A race between candidates: bounds by hand, what is kept, what the scores of the dropped are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from core.block_settings import Racing
from core.saliency.block_racing import Race


def race(names: str, *, keep: int = 1, ends: Sequence[int], confidence: float = 0.95, first: float = 0.1) -> Race:
    return Race(tuple(names), Racing(first=first, confidence=confidence), keep=keep, ends=ends)


def wrong(images: int, *places: int) -> torch.Tensor:
    found = torch.zeros(images, dtype=torch.bool)
    found[list(places)] = True
    return found


@pytest.mark.parametrize(("more", "dropped"), [(8, False), (9, True)])
def test_the_bound_by_hand(more: int, dropped: bool) -> None:
    """Two candidates, one look: δ = 0.05, ln 20 = 2.996. b is wrong where a is right on `more` images, and never the
    other way round: it goes once more > √(2 · more · 2.996), that is more > 5.99. With one image of the other kind
    (m = more + 1, d = more − 1) 8 − 1 = 7 < √(2 · 9 · 2.996) = 7.34 and 9 − 1 = 8 > √(2 · 10 · 2.996) = 7.74."""
    found = race("ab", ends=[50, 100])
    found.seen({"a": wrong(50, 49, 30), "b": wrong(50, 30, *range(more))})
    assert found.running == (("a",) if dropped else ("a", "b"))


def test_chances_are_shared_out_over_pairs_and_looks() -> None:
    """Four candidates, two kept, three looks: δ = 0.05 / (2 · 3 · 3), ln 360 = 5.886: more than 2 · 5.886 = 11.77."""
    for more, left in ((11, "abcd"), (12, "ab")):
        found = race("abcd", keep=2, ends=[25, 50, 75, 100])
        bad = wrong(25, *range(more))
        found.seen({"a": wrong(25), "b": wrong(25), "c": bad, "d": bad})
        assert "".join(found.running) == left


def test_none_is_dropped_before_the_first_look_nor_after_the_last_batch() -> None:
    bad, good = wrong(25, *range(25)), wrong(25)
    found = race("ab", ends=[25, 50, 75, 100], first=0.4)
    found.seen({"a": good, "b": bad})
    assert found.running == ("a", "b")
    found.seen({"a": good, "b": bad})
    assert found.running == ("a",)
    late = race("ab", ends=[100])
    late.seen({"a": wrong(100), "b": wrong(100, *range(100))})
    assert late.running == ("a", "b")


def test_what_was_dropped_is_never_among_the_best() -> None:
    """Of the first 20 of 100 images b tells 2 wrong, c 20. On all b makes 40 %: c's error is put at 0.4 + 18 / 20, and
    not at the 100 % that it had; were the images harder later, c at what it had could be before b."""
    found = race("abc", keep=2, ends=[20, 100], first=0.1, confidence=0.5)
    found.seen({"a": wrong(20), "b": wrong(20, 0, 1), "c": wrong(20, *range(20))})
    assert found.running == ("a", "b")
    found.seen({"a": wrong(80), "b": wrong(80, *range(38))})
    errors = found.errors({"a": 0.0, "b": 0.4})
    assert list(errors) == ["a", "b", "c"]
    assert errors["c"] == pytest.approx(max(0.0 + 20 / 20, 0.4 + 18 / 20))
    assert errors["c"] > errors["b"]


def test_one_that_leads_by_what_was_dropped_later_still_has_a_score() -> None:
    """a is the best when c goes, and goes itself: c's error follows from a's, and a's from b's."""
    found = race("abc", ends=[20, 60, 100], confidence=0.5)
    found.seen({"a": wrong(20), "b": wrong(20, 0), "c": wrong(20, *range(20))})
    assert found.running == ("a", "b")
    found.seen({"a": wrong(40, *range(31)), "b": wrong(40)})
    assert found.running == ("b",)
    errors = found.errors({"b": 0.1})
    assert errors["a"] == pytest.approx(0.1 + 30 / 60)
    assert errors["c"] == pytest.approx(errors["a"] + 20 / 20)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_best_stay_in_95_of_100_trials(keep: int) -> None:
    """8 candidates that are wrong on about 10 to 45 % of 1,000 images, in random order; errors of all are related, as
    those of a network without this or that block are. The best on all images win; a third of the work is saved."""
    won = images = 0
    trials, names, ends = 100, list("abcdefgh"), list(range(100, 1_001, 100))
    for seed in range(trials):
        generator = torch.Generator().manual_seed(seed)
        hard = torch.rand(1_000, generator=generator)
        table = {
            name: hard + 0.2 * torch.rand(1_000, generator=generator) > 1 - 0.05 * index
            for index, name in enumerate(names)
        }
        found = Race(names, Racing(), keep=keep, ends=ends)
        for end in ends:
            images += 100 * len(found.running)
            found.seen({name: table[name][end - 100 : end] for name in found.running})
        errors = {name: int(each.sum()) / 1_000 for name, each in table.items()}
        estimated = found.errors({name: errors[name] for name in found.running})
        won += sorted(names, key=estimated.__getitem__)[:keep] == sorted(names, key=errors.__getitem__)[:keep]
    assert won >= 0.95 * trials
    assert images < 2 / 3 * trials * len(names) * 1_000


def test_hoeffding_is_held_to_where_it_is_tight() -> None:
    """Two candidates that are equally good, wrong on one image of two each: the better one on all images is dropped in
    at most 5 % of 200 trials."""
    lost = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        a, b = (torch.rand(200, generator=generator) < 0.5 for _ in range(2))
        if int(a.sum()) > int(b.sum()):
            a, b = b, a
        found = race("ab", ends=list(range(10, 201, 10)))
        for start in range(0, 200, 10):
            part = {"a": a[start : start + 10], "b": b[start : start + 10]}
            found.seen({name: part[name] for name in found.running})
            if len(found.running) == 1:
                break
        lost += "a" not in found.running
    assert lost <= 0.05 * 200


def test_with_no_more_candidates_than_are_kept_all_run() -> None:
    found = race("ab", keep=2, ends=[50, 100])
    found.seen({"a": wrong(50), "b": wrong(50, *range(50))})
    assert found.running == ("a", "b")
    assert math.isclose(found.errors({"a": 0.0, "b": 1.0})["b"], 1.0)
