"""The reaper gives nobody up while the clock cannot be believed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from store import jobs, leases
from store.database import transaction
from store.reaper import Reaper
from tests.store.conftest import NOW, OWNER


class Clocks:
    """The time of day, and the time since the machine started."""

    def __init__(self) -> None:
        self.wall = NOW
        self.monotonic = 1_000.0

    def pass_(self, seconds: float, *, jump: float = 0) -> None:
        self.monotonic += seconds
        self.wall += timedelta(seconds=seconds + jump)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def reaper(engine: Engine, clocks: Clocks) -> Reaper:
    return Reaper(engine, 30, wall=lambda: clocks.wall, monotonic=lambda: clocks.monotonic)


@pytest.fixture
def running(engine: Engine, inputs: tuple[str, str]) -> str:
    with transaction(engine) as session:
        job = jobs.create_job(session, owner=OWNER, model_id=inputs[0], dataset_ids=[inputs[1]], recipe={}, now=NOW)
        assert leases.claim(session, job.id, "host:1", "cpu", NOW, lease_seconds=30) is not None
        return job.id


def test_who_falls_silent_is_given_up(reaper: Reaper, clocks: Clocks, running: str) -> None:
    clocks.pass_(29)
    assert reaper() == []
    clocks.pass_(2)
    assert reaper() == [running]
    assert reaper() == []


@pytest.mark.parametrize("jump", [3_600, -3_600])
def test_a_clock_that_jumps_costs_nobody_the_job(reaper: Reaper, clocks: Clocks, running: str, jump: float) -> None:
    clocks.pass_(1, jump=jump)
    assert reaper() == []
    clocks.pass_(29)
    assert reaper() == [], "a lease long, nobody is given up"
    clocks.pass_(1)
    assert reaper() == ([running] if jump > 0 else [])


def test_a_reaper_that_stood_still_waits_too(reaper: Reaper, clocks: Clocks, running: str) -> None:
    clocks.pass_(600)
    assert reaper() == [], "whatever stopped it may have stopped the workers"
    clocks.pass_(30)
    assert reaper() == [running]
