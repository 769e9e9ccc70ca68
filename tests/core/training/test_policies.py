"""When a fine-tuning is due, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.training.policies import epochs_due, expected_trainings, loop_rounds
from core.training_settings import FineTune, Moments, Policy


def due(policy: Policy, rounds: int, accuracies: list[float] | None = None, epochs: int = 50) -> list[int]:
    """Epochs after each round; accuracies as lost since the beginning."""
    settings = FineTune(policy=policy, epochs=epochs)
    return [
        epochs_due(
            settings,
            round=number,
            rounds=rounds,
            lost=accuracies[number - 1] if accuracies else None,
            last=number == rounds,
        )
        for number in range(1, rounds + 1)
    ]


def test_loops_are_those_of_the_thesis() -> None:
    """Velici 2022, section 3.2: four training loops at 7, 14, 20 and the final step, 27 blocks removed."""
    assert loop_rounds(4, 27) == [7, 14, 20, 27]
    assert loop_rounds(2, 27) == [14, 27]
    assert loop_rounds(1, 27) == [27]
    assert loop_rounds(4, 3) == [1, 2, 3]  # more loops than rounds: one after each


@given(loops=st.integers(1, 50), rounds=st.integers(1, 50))
def test_loops_are_spread_evenly_and_end_at_the_end(loops: int, rounds: int) -> None:
    found = loop_rounds(loops, rounds)
    assert len(found) == min(loops, rounds)
    assert (found[0] >= 1, found[-1]) == (True, rounds)
    gaps = [after - before for before, after in zip([0, *found], found, strict=False)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(), [0, 0, 0, 0, 0, 50]),
        (Policy(loops=3), [0, 50, 0, 50, 0, 50]),
        (Policy(at=(1, 4)), [50, 0, 0, 50, 0, 50]),
        (Policy(every=2), [0, 50, 0, 50, 0, 50]),
        (Policy(every=4), [0, 0, 0, 50, 0, 50]),
        (Policy(low=2, high=Moments(loops=2)), [2, 2, 50, 2, 2, 50]),
        (Policy(threshold=0.05), [0, 0, 50, 0, 50, 50]),
        (Policy(low=1, high=Moments(threshold=0.05)), [1, 1, 50, 1, 50, 50]),
    ],
)
def test_each_policy_fires_where_it_says(policy: Policy, expected: list[int]) -> None:
    assert due(policy, 6, [0.01, 0.05, 0.051, -0.02, 0.2, 0.0]) == expected


def test_a_threshold_that_is_just_reached_does_not_fire() -> None:
    """0.98 - 0.97 is 0.010000000000000009, and no more than 0.01."""
    assert 0.98 - 0.97 > 0.01
    assert due(Policy(threshold=0.01), 3, [0.98 - 0.97, 0.0101, 0.0]) == [0, 50, 50]


def test_what_is_to_come() -> None:
    """After 2 of 6 rounds; of a threshold only the end is known."""
    macs = [40, 30, 20, 10]
    loops = FineTune(policy=Policy(loops=3), epochs=5)
    assert expected_trainings(loops, macs, done=2, rounds=6) == [(5, 30), (5, 10)]
    assert expected_trainings(FineTune(policy=Policy(threshold=0.1), epochs=5), macs, done=2, rounds=6) == [(5, 10)]
    assert expected_trainings(FineTune(epochs=0), macs, done=2, rounds=6) == []
