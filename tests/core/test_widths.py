"""Width arithmetic: multiples, shares, what is carried."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.graph.groups import ChannelGroup, LayerChannels
from core.widths import chunks, least_width, next_width, share_of, simulated_widths, take, unit_multiple

widths = st.integers(1, 300)
multiples = st.integers(1, 40)
kept_always = st.integers(0, 20)
ratios = st.integers(1, 99).map(lambda percent: percent / 100)


def group(*layers: list[int]) -> ChannelGroup:
    """A group whose layers have these numbers of channels per unit."""
    producers = tuple(
        LayerChannels(f"layer{index}", [tuple(range(size)) for size in sizes]) for index, sizes in enumerate(layers)
    )
    return ChannelGroup("layer0", len(layers[0]), producers, (), (), cuttable=True)


@pytest.mark.parametrize(
    ("width", "multiple", "always_kept", "below", "least"),
    [
        (64, 8, 0, 56, 8),
        (20, 8, 0, 16, 8),  # not a multiple: the next whole one below
        (8, 8, 0, 8, 8),
        (6, 8, 0, 6, 6),  # narrower than a multiple: left alone
        (9, 8, 0, 8, 8),
        (5, 1, 0, 4, 1),
        (1, 1, 0, 1, 1),
        (14, 8, 2, 6, 6),  # two more are frozen: 14 + 2 and 6 + 2 are whole
        (24, 8, 8, 16, 8),  # at least one unit stays besides the frozen ones
    ],
)
def test_allowed_widths(width: int, multiple: int, always_kept: int, below: int, least: int) -> None:
    assert next_width(width, multiple, always_kept) == below
    assert least_width(width, multiple, always_kept) == least


@given(widths, multiples, kept_always)
def test_every_step_down_is_a_whole_multiple(width: int, multiple: int, always_kept: int) -> None:
    left, least = width, least_width(width, multiple, always_kept)
    while (smaller := next_width(left, multiple, always_kept)) < left:
        assert (smaller + always_kept) % multiple == 0
        assert left == width or left - smaller == multiple
        left = smaller
    assert left == least >= 1


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), multiples, kept_always)
def test_chunks_are_the_weakest_units_in_order(scores: list[float], multiple: int, always_kept: int) -> None:
    found = chunks("g", scores, multiple, always_kept)
    units = [unit for chunk in found for unit in chunk.units]
    assert len(units) == len(set(units)) == len(scores) - least_width(len(scores), multiple, always_kept)
    assert [scores[unit] for unit in units] == sorted(scores)[: len(units)]


def test_ties_go_by_index() -> None:
    assert [chunk.units for chunk in chunks("g", [1.0, 0.5, 1.0, 0.5, 1.0], 2)] == [(1,), (3, 0)]


@given(widths, ratios, st.integers(1, 60))
def test_without_multiples_a_round_takes_the_floor_of_the_share(width: int, ratio: float, rounds: int) -> None:
    """The paper's rule, as long as a share is at least one filter."""
    percent = Fraction(repr(ratio))
    left = width
    for _ in range(rounds):
        if percent * left < 1:
            break
        left -= int(percent * left)  # exact: truncates
    if percent * left >= 1:
        assert simulated_widths({"g": width}, {"g": (1, 0)}, ratio, rounds)["g"] == max(left, 1)


def test_a_decimal_is_what_was_written() -> None:
    assert share_of(100, 0.29) == 29  # 0.29 * 100 is 28.999999999999996
    assert share_of(16, 0.05) == Fraction(4, 5)  # less than one filter stays a fraction


@given(widths, multiples, kept_always, ratios, st.integers(1, 40))
def test_removals_add_up_to_the_shares(width: int, multiple: int, always_kept: int, ratio: float, rounds: int) -> None:
    """After any number of rounds, what went and what is owed are the shares, and never more than one chunk is owed."""
    left, carried, shares = width, Fraction(0), Fraction(0)
    least = least_width(width, multiple, always_kept)
    for _ in range(rounds):
        share = share_of(left, ratio)
        candidates = chunks("g", [0.0] * left, multiple, always_kept)
        taken, carried = take(candidates, carried + share)
        left -= sum(len(chunk.units) for chunk in taken)
        shares += share
        assert left >= least
        assert left == width or (left + always_kept) % multiple == 0
        if left > least:
            assert width - left + carried == shares
            assert carried < left - next_width(left, multiple, always_kept)
    assert width - left <= shares


@given(widths, multiples, ratios)
def test_small_shares_reach_the_least_width_in_the_end(width: int, multiple: int, ratio: float) -> None:
    """However small the share of a narrow layer, it adds up."""
    left = simulated_widths({"g": width}, {"g": (multiple, 0)}, ratio, 40_000)
    assert left["g"] == least_width(width, multiple)


@given(widths, multiples, kept_always, ratios, st.integers(0, 40))
def test_the_simulation_is_what_rounds_do(
    width: int, multiple: int, always_kept: int, ratio: float, rounds: int
) -> None:
    left, carried = width, Fraction(0)
    for _ in range(rounds):
        taken, carried = take(chunks("g", [0.0] * left, multiple, always_kept), carried + share_of(left, ratio))
        left -= sum(len(chunk.units) for chunk in taken)
    assert simulated_widths({"g": width}, {"g": (multiple, always_kept)}, ratio, rounds) == {"g": left}


def test_take_stops_at_the_first_chunk_that_is_too_dear() -> None:
    candidates = [*chunks("a", [1.0] * 4, 2), *chunks("b", [2.0] * 9, 4), *chunks("c", [3.0] * 2, 1)]
    assert [chunk.group for chunk in candidates] == ["a", "b", "b", "c"]
    taken, left = take(candidates, Fraction(5))
    assert [chunk.group for chunk in taken] == ["a", "b"]  # 2 + 1; the next takes 4
    assert left == 2
    assert take(candidates, Fraction(100)) == (candidates, Fraction(0))  # nothing more can go: nothing is owed


@pytest.mark.parametrize(
    ("layers", "channel_multiple", "expected"),
    [
        ([[1] * 16], 8, 8),
        ([[4] * 16], 8, 2),  # a grouped convolution: a unit is a whole group of 4
        ([[3] * 16], 8, 8),
        ([[16] * 4], 8, 1),
        ([[1] * 16, [2] * 16], 8, 8),
        ([[2] * 16, [3] * 16], 12, 12),  # 6 and 4: their least common multiple
        ([[5] * 16], 1, 1),
    ],
)
def test_multiples_are_of_channels(layers: list[list[int]], channel_multiple: int, expected: int) -> None:
    assert unit_multiple(group(*layers), channel_multiple) == expected
