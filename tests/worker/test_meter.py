"""What is counted of an attempt: its stages, its epochs, once each, and not all that a child says is believed."""

from __future__ import annotations

from typing import Any

import pytest

from store import counters
from store.counters import Labels
from store.database import reading, transaction
from tests.worker.house import House
from worker.attempt import run_job
from worker.meter import Meter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def counted(house: House) -> dict[str, dict[Labels, float]]:
    with reading(house.context.engine) as session:
        return counters.read(session)


def labels(**given: str) -> Labels:
    return tuple(sorted(given.items()))


def test_stages_are_timed_and_a_transaction_may_be_tried_again(house: House) -> None:
    clock = Clock()
    meter = Meter("cpu", clock)

    def to(stage: str | None, tries: int = 1) -> None:
        for turn in range(tries):
            try:
                with transaction(house.context.engine) as session:
                    meter.book(session, [], stage)
                    if turn < tries - 1:
                        raise OSError("the database went away")
            except OSError:
                continue
        meter.enter(stage)

    to("import")
    clock.now += 2
    to("import")
    clock.now += 1
    to("prune", tries=3)
    clock.now += 5
    to("fine_tune")
    clock.now += 1
    to("prune")
    clock.now += 10
    to(None)
    found = counted(house)
    assert found["stages"] == {
        labels(stage="import", device="cpu"): 1, labels(stage="prune", device="cpu"): 2,
        labels(stage="fine_tune", device="cpu"): 1,
    }  # fmt: skip
    assert found["stage_seconds"] == {
        labels(stage="import", device="cpu"): 3, labels(stage="prune", device="cpu"): 15,
        labels(stage="fine_tune", device="cpu"): 1,
    }  # fmt: skip


def test_epochs_of_the_network_and_of_its_controls(house: House) -> None:
    clock = Clock()
    meter = Meter("cuda:0", clock)
    clock.now += 60
    with transaction(house.context.engine) as session:
        meter.book(
            session,
            [
                ("fine_tune/0/epoch/1", {"images": 1000, "seconds": 2.0}),
                ("baseline/random/fine_tune/0/epoch/12", {"images": 500, "seconds": 1.0}),
                ("fine_tune/0/epoch/best", {"images": 7, "seconds": 7.0}),
                ("prune/step/0/select", {"images": 7, "seconds": 7.0}),
            ],
            None,
        )
    found = counted(house)
    device = labels(device="cuda:0")
    assert found["training_epochs"] == {device: 2}
    assert found["training_images"] == {device: 1500}
    assert found["training_seconds"] == {device: 3}


@pytest.mark.parametrize(
    "body",
    [
        {}, {"images": 1}, {"images": "many", "seconds": 1}, {"images": True, "seconds": 1},
        {"images": -1, "seconds": 1},
        {"images": 10**400, "seconds": 1}, {"images": float("nan"), "seconds": 1}, {"images": 5, "seconds": 1e300},
        {"images": 5, "seconds": {"$float": "inf"}},
    ],
)  # fmt: skip
def test_what_no_epoch_can_be_is_not_counted(house: House, body: dict[str, Any]) -> None:
    meter = Meter("cpu")
    with transaction(house.context.engine) as session:
        meter.book(session, [("fine_tune/0/epoch/1", body)], None)
    assert "training_images" not in counted(house)


def test_an_attempt_that_a_worker_runs(house: House) -> None:
    job_id = house.job(do="train", epochs=3, seconds=0.2)
    run_job(house.context, job_id)
    assert house.read(job_id).state == "succeeded"
    found = counted(house)
    assert found["attempts"] == {labels(outcome="succeeded"): 1}
    stage = labels(stage="fine_tune", device="cpu")
    assert found["stages"] == {stage: 1}
    assert 0.1 < found["stage_seconds"][stage] < 60
    assert found["training_epochs"] == {labels(device="cpu"): 3}
    assert found["training_images"] == {labels(device="cpu"): 3 * 64}
