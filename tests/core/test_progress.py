"""Progress on a clock that the test moves."""

from __future__ import annotations

from core.progress import Progress
from tests.core.fakes import Events


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_fraction_and_eta_follow_measured_seconds() -> None:
    clock, events = Clock(), Events()
    progress = Progress(events, clock)
    progress.expect("train", passes=100)
    progress.expect("measure", seconds=10)
    progress.begin("prune", "train")
    for _ in range(50):
        clock.now += 2
        progress.advance(1)
    assert events[-1] == ("progress", {"stage": "prune", "fraction": round(100 / 210, 4), "eta_seconds": 110.0})
    progress.end("train")
    progress.begin("measure", "measure")
    clock.now += 5
    progress.tick()
    assert events[-1] == ("progress", {"stage": "measure", "fraction": round(105 / 110, 4), "eta_seconds": 5.0})


def test_nothing_is_said_before_something_is_known() -> None:
    clock, events = Clock(), Events()
    progress = Progress(events, clock)
    progress.begin("import", "import")
    clock.now += 5
    progress.end("import")
    progress.expect("train", passes=10)
    clock.now += 5
    progress.begin("prune", "train")
    assert events == []
    assert progress.eta_seconds() is None


def test_at_most_one_event_a_second() -> None:
    clock, events = Clock(), Events()
    progress = Progress(events, clock)
    progress.expect("train", passes=1_000)
    progress.begin("prune", "train")
    for _ in range(1_000):
        clock.now += 0.01
        progress.advance(1)
    assert 9 <= len(events) <= 10


def test_the_fraction_never_goes_back() -> None:
    clock, events = Clock(), Events()
    progress = Progress(events, clock)
    progress.expect("train", passes=10)
    progress.begin("prune", "train")
    for _ in range(8):
        clock.now += 1
        progress.advance(1)
    before = events[-1][1]["fraction"]
    progress.expect("train", passes=100)  # the estimate was far too short
    clock.now += 1
    progress.advance(1)
    assert events[-1][1]["fraction"] == before
    assert events[-1][1]["eta_seconds"] > 90


def test_the_rate_is_that_of_the_last_minute_or_so() -> None:
    clock = Clock()
    progress = Progress(Events(), clock)
    progress.expect("train", passes=10_000)
    progress.begin("prune", "train")
    for seconds in [0.1] * 100 + [5.0] * 100:  # somebody else takes the machine
        clock.now += seconds
        progress.advance(1)
    assert 4.9 < progress.seconds_of(1) < 5.1


def test_an_earlier_attempt_counts() -> None:
    clock, events = Clock(), Events()
    progress = Progress(events, clock)
    progress.credit(90)
    progress.expect("train", passes=10)
    progress.begin("prune", "train")
    clock.now += 1
    progress.advance(1)
    assert events[-1][1]["fraction"] == round(91 / 100, 4)
