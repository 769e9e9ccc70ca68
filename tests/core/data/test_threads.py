from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.threads import in_order

ROOT = Path(__file__).parents[3]


def threads_of_ours() -> int:
    return sum(thread.name.startswith("billhook-data") for thread in threading.enumerate())


@given(
    costs=st.lists(st.integers(0, 200), max_size=120), threads=st.integers(1, 4), most=st.sampled_from([1, 100, 5000])
)
def test_results_come_in_order_and_no_more_is_taken_than_allowed(costs: list[int], threads: int, most: int) -> None:
    """What is begun and not yet handed on stays within the bound, or is one item alone."""
    begun: list[int] = []
    handed: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return number

    for number in in_order(work, range(len(costs)), threads=threads, cost=costs.__getitem__, most=most):
        handed.append(number)
        # what is in the hands of the consumer counts no more, nor does the rest of a group that is handed on
        under_way = [other for other in list(begun) if other > number + 32]
        assert sum(costs[other] for other in under_way) <= max(most, max(costs))
    assert handed == list(range(len(costs)))
    assert sorted(begun) == handed
    assert threads_of_ours() == 0


def test_work_is_done_at_the_same_time_on_as_many_threads_as_are_given() -> None:
    meeting = threading.Barrier(3, timeout=30)

    def work(item: int) -> int:
        meeting.wait()
        return threading.get_ident()

    found = set(in_order(work, range(3), threads=3, cost=lambda _: 100, most=300))
    assert len(found) == 3


@pytest.mark.parametrize("at", [0, 7, 99])
def test_an_error_is_raised_in_its_place_and_ends_the_threads(at: int) -> None:
    def work(number: int) -> int:
        if number >= at:
            raise ValueError(f"image {number}")
        return number

    seen: list[int] = []
    with pytest.raises(ValueError, match=f"^image {at}$"):
        seen.extend(in_order(work, range(100), threads=2, cost=lambda _: 10, most=40))
    assert seen == list(range(at))
    assert threads_of_ours() == 0


def test_a_consumer_that_goes_away_leaves_no_thread_and_no_work() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.001)
        return number

    for number in in_order(work, range(10_000), threads=2, cost=lambda _: 10, most=80):
        if number == 3:
            break
    assert threads_of_ours() == 0
    assert len(begun) <= 4 + 8
    generator = in_order(work, range(10_000), threads=2, cost=lambda _: 10, most=80)
    next(generator)
    generator.close()
    assert threads_of_ours() == 0


def test_an_interpreter_that_ends_in_the_middle_ends() -> None:
    script = (
        "from core.data.threads import in_order\n"
        "held = in_order(lambda n: bytes(n), range(1, 10**6), threads=2, cost=lambda n: 10, most=80)\n"
        "print(len(next(held)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")
