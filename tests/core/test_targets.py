"""Targets: shares of the original, counts, all keys."""

from __future__ import annotations

import pytest

from core.graph.counts import Counts
from core.graph.network import Network
from core.report import LatencyRatio, TargetResult
from core.target_settings import Target
from core.targets import Goal, Present, latency_doubts

ORIGINAL = Counts(params=1000, macs=30_000, filters=30, blocks=10, layers={})


def counts(**changes: int) -> Counts:
    return Counts(**{"params": 1000, "macs": 30_000, "filters": 30, "blocks": 10, "layers": {}, **changes})  # type: ignore[arg-type]


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
    assert Goal(target, ORIGINAL).met(Present(counts(**present))) is met


def test_there_is_no_share_of_nothing() -> None:
    """A network without residual blocks does not meet a share of them, whatever else it is asked for."""
    none = counts(blocks=0)
    (result,) = Goal(Target(blocks=0.5), none).results(Present(none))
    assert (result.reached, result.met) == (1.0, False)
    assert Goal(Target(blocks=3), none).met(Present(none))


class Files:
    """`Exports` of an original of 1,000 bytes."""

    original_bytes = 1_000

    def bytes(self, network: Network) -> int:
        raise AssertionError("not asked for here")

    def latency(self, network: Network) -> LatencyRatio:
        raise AssertionError("not asked for here")


def ratio(low: float, middle: float, high: float) -> LatencyRatio:
    return LatencyRatio(ratio=middle, low=low, high=high, windows=15, original_ms=1.0, candidate_ms=middle)


@pytest.mark.parametrize(
    ("target", "size", "latency", "met", "expected"),
    [
        (Target(size=0.5), 500, None, True, True),
        (Target(size=0.5), 501, None, False, False),
        (Target(size=500), 500, None, True, True),
        (Target(size=500, params=0.5), 500, None, False, False),
        (Target(latency=0.6), None, None, False, False),  # not measured; as many MACs as before
        (Target(latency=0.6), None, ratio(0.5, 0.55, 0.6), True, False),
        (Target(latency=0.6), None, ratio(0.5, 0.55, 0.61), False, False),
        (Target(latency=0.6, size=0.5), 500, ratio(0.1, 0.2, 0.3), True, False),
        (Target(latency=0.6, size=0.5), 501, ratio(0.1, 0.2, 0.3), False, False),
    ],
)
def test_files(target: Target, size: int | None, latency: LatencyRatio | None, met: bool, expected: bool) -> None:
    goal, present = Goal(target, ORIGINAL, exports=Files()), Present(counts(), size, latency)
    assert goal.met(present) is met
    assert goal.expected(present) is expected


def test_a_plan_takes_macs_for_the_latency() -> None:
    goal = Goal(Target(latency=0.5), ORIGINAL, exports=Files())
    assert goal.expected(Present(counts(macs=15_000)))
    assert not goal.expected(Present(counts(macs=15_001)))


def test_files_need_what_tells_them() -> None:
    with pytest.raises(ValueError, match="need exports"):
        Goal(Target(size=0.5), ORIGINAL).met(Present(counts(), 500))


def test_a_latency_that_does_not_hold_in_the_end_is_told() -> None:
    held = TargetResult(name="step/0/latency", target=0.6, reached=0.55, met=True, low=0.5, high=0.59)
    missed = held.model_copy(update={"met": False, "high": 0.7})
    params = TargetResult(name="step/0/params", target=0.6, reached=0.55, met=True)
    assert latency_doubts([held, missed, params], 0.6) == []
    assert latency_doubts([held, missed, params], 0.62) == [
        "step 0/latency 0.6 was met when it was decided, at 0.55 (0.5 to 0.59); measured again in the end it is 0.62"
    ]


def test_results_say_what_was_asked_in_its_own_unit() -> None:
    results = Goal(Target(params=0.5, filters=10), ORIGINAL).results(
        Present(counts(params=250, filters=12)), prefix="step/1/"
    )
    assert [result.model_dump(exclude_none=True) for result in results] == [
        {"name": "step/1/params", "target": 0.5, "reached": 0.25, "met": True},
        {"name": "step/1/filters", "target": 10.0, "reached": 12.0, "met": False},
    ]
