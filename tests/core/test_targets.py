"""Targets: shares of the original, counts, all keys."""

from __future__ import annotations

import pytest

from core.graph.counts import Counts
from core.recipe import Target
from core.targets import Goal

ORIGINAL = Counts(params=1000, macs=30_000, filters=30, layers={})


def counts(**changes: int) -> Counts:
    return Counts(**{"params": 1000, "macs": 30_000, "filters": 30, "layers": {}, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "present", "met"),
    [
        (Target(params=0.5), {"params": 500}, True),
        (Target(params=0.5), {"params": 501}, False),
        (Target(params=500), {"params": 500}, True),
        (Target(params=500), {"params": 501}, False),
        (Target(params=1), {"params": 1}, True),  # an integer is a count, 1 as well
        (Target(filters=0.1), {"filters": 3}, True),  # 0.1 * 30 is 3.0000000000000004 the other way round
        (Target(macs=0.7), {"macs": 21_000}, True),  # 0.7 * 30000 is 20999.999999999996
        (Target(params=0.5, macs=0.5), {"params": 400}, False),
        (Target(params=0.5, macs=0.5), {"params": 400, "macs": 15_000}, True),
    ],
)
def test_all_keys_must_hold(target: Target, present: dict[str, int], met: bool) -> None:
    assert Goal(target, ORIGINAL).met(counts(**present)) is met


def test_results_say_what_was_asked_in_its_own_unit() -> None:
    results = Goal(Target(params=0.5, filters=10), ORIGINAL).results(counts(params=250, filters=12), prefix="step/1/")
    assert [result.model_dump() for result in results] == [
        {"name": "step/1/params", "target": 0.5, "reached": 0.25, "met": True},
        {"name": "step/1/filters", "target": 10.0, "reached": 12.0, "met": False},
    ]
