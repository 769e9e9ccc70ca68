"""Dry runs: answered by one worker at a time, for as long as somebody wants the answer."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, select

from store import dry_runs, jobs, outbox
from store.database import reading, transaction
from store.dry_runs import KEPT_SECONDS, MOST_OF_AN_OWNER, DryRunLease
from store.errors import LeaseLost, NotFound, TooManyDryRuns
from store.reaper import reap
from store.records import DryRun, OutboxMessage
from tests.store.conftest import NOW, OWNER

RESULT = {"version": 1, "ratios": {"params_ratio": 0.5}}
ERROR = {"code": "nothing_removed", "message": "nothing goes", "faults": []}


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.fixture
def asked(engine: Engine, inputs: tuple[str, str]) -> str:
    """The id of one that is wanted for 10 seconds, and a while after."""
    model, dataset = inputs
    with transaction(engine) as session:
        return dry_runs.create(
            session, owner=OWNER, model_id=model, dataset_ids=[dataset], recipe={"weights": model, "steps": []},
            requirements={}, elsewhere=False, wait=10, now=NOW,
        ).id  # fmt: skip


def read(engine: Engine, dry_run_id: str) -> DryRun:
    with reading(engine) as session:
        return dry_runs.get(session, OWNER, dry_run_id)


def rung(engine: Engine) -> list[tuple[str, str, str]]:
    with reading(engine) as session:
        return [(item.topic, item.subject_id, item.queue) for item in session.scalars(select(OutboxMessage))
                if item.topic == "dry_run"]  # fmt: skip


def claim(engine: Engine, dry_run_id: str, seconds: float = 0) -> DryRunLease | None:
    with transaction(engine) as session:
        return dry_runs.claim(session, dry_run_id, at(seconds), seconds=5)


def test_an_owner_asks_for_so_many_at_a_time(engine: Engine, asked: str, inputs: tuple[str, str]) -> None:
    def ask(owner: str, seconds: float) -> None:
        with transaction(engine) as session:
            dry_runs.create(
                session, owner=owner, model_id=inputs[0], dataset_ids=[inputs[1]], recipe={}, requirements={},
                elsewhere=False, wait=10, now=at(seconds),
            )  # fmt: skip

    for _ in range(MOST_OF_AN_OWNER - 1):
        ask(OWNER, 0)
    with pytest.raises(TooManyDryRuns):
        ask(OWNER, 0)
    ask("bob", 0)
    ask(OWNER, 11 + KEPT_SECONDS)  # nobody waits for the others any more


def test_an_answer(engine: Engine, asked: str, inputs: tuple[str, str]) -> None:
    assert rung(engine) == [("dry_run", asked, outbox.INSPECT_QUEUE)]
    lease = claim(engine, asked)
    assert lease is not None
    assert claim(engine, asked, 1) is None  # somebody is at it
    with reading(engine) as session:
        found = session.get_one(DryRun, asked)
        assert (found.state, found.weights_id) == ("running", inputs[0])
        model, datasets = jobs.inputs_of(session, found)
        weights = jobs.weights_of(session, found)
        assert weights is not None
        assert (model.id, [dataset.id for dataset in datasets], weights.id) == (inputs[0], [inputs[1]], inputs[0])
    with transaction(engine) as session:
        dry_runs.answer(session, lease, RESULT)
    found = read(engine, asked)
    assert (found.state, found.result, found.refusal, found.token) == ("done", RESULT, None, None)
    assert rung(engine) == []
    assert claim(engine, asked, 100) is None
    with pytest.raises(LeaseLost), transaction(engine) as session:
        dry_runs.refuse(session, lease, ERROR)


def test_a_refusal(engine: Engine, asked: str) -> None:
    lease = claim(engine, asked)
    assert lease is not None
    with transaction(engine) as session:
        dry_runs.refuse(session, lease, ERROR)
    found = read(engine, asked)
    assert (found.state, found.result, found.refusal) == ("refused", None, ERROR)


def test_another_owner_has_none(engine: Engine, asked: str) -> None:
    with reading(engine) as session, pytest.raises(NotFound):
        dry_runs.get(session, "bob", asked)
    with pytest.raises(NotFound), transaction(engine) as session:
        dry_runs.delete(session, "bob", asked)
    with pytest.raises(NotFound), transaction(engine) as session:
        dry_runs.want(session, "bob", asked, 1)


def test_a_worker_that_falls_silent_loses_it(engine: Engine, asked: str) -> None:
    first = claim(engine, asked)
    second = claim(engine, asked, 6)
    assert first is not None
    assert second is not None
    with transaction(engine) as session:
        assert not dry_runs.is_held(session, first, at(7))
        assert not dry_runs.extend(session, first, at(7))
        assert dry_runs.is_held(session, second, at(7))
        assert dry_runs.extend(session, second, at(7))
    with pytest.raises(LeaseLost), transaction(engine) as session:
        dry_runs.answer(session, first, RESULT)
    assert claim(engine, asked, 11.5) is None  # it was extended


def test_after_three_deaths_it_is_given_up(engine: Engine, asked: str) -> None:
    for number in range(3):
        lease = claim(engine, asked, number)
        assert lease is not None
        with transaction(engine) as session:
            dry_runs.release(session, lease, at(number), died=True)
    assert claim(engine, asked, 4) is None
    found = read(engine, asked)
    assert found.refusal is not None
    assert (found.state, found.refusal["code"]) == ("refused", "poison")


def test_given_back_in_order_it_counts_for_nothing(engine: Engine, asked: str) -> None:
    for number in range(5):
        lease = claim(engine, asked, number)
        assert lease is not None
        with transaction(engine) as session:
            dry_runs.release(session, lease, at(number))
    assert (read(engine, asked).state, read(engine, asked).claims) == ("queued", 0)
    assert rung(engine) == [("dry_run", asked, outbox.INSPECT_QUEUE)]


def test_what_nobody_wants_any_more_is_gone(engine: Engine, asked: str) -> None:
    late = 10 + KEPT_SECONDS + 1
    lease = claim(engine, asked)
    assert lease is not None
    with transaction(engine) as session:
        dry_runs.want(session, OWNER, asked, 0, NOW)  # never earlier than somebody else wants it
        assert dry_runs.is_held(session, lease, at(late - 2))
        assert not dry_runs.is_held(session, lease, at(late))
        assert not dry_runs.extend(session, lease, at(late))
    assert dry_runs.forget(engine, at(late - 2)) == 0
    with transaction(engine) as session:
        dry_runs.want(session, OWNER, asked, 20, at(late - 2))
    reap(engine, at(late))
    assert read(engine, asked).id == asked
    reap(engine, at(late + 20 + KEPT_SECONDS))
    with pytest.raises(NotFound):
        read(engine, asked)
    assert rung(engine) == []
    with pytest.raises(LeaseLost), transaction(engine) as session:
        dry_runs.answer(session, lease, RESULT)


def test_one_that_is_claimed_too_late(engine: Engine, asked: str) -> None:
    assert claim(engine, asked, 10 + KEPT_SECONDS + 1) is None
    with reading(engine) as session:
        assert session.get(DryRun, asked) is None
    assert rung(engine) == []


def test_one_that_is_deleted_is_lost_to_its_worker(engine: Engine, asked: str) -> None:
    lease = claim(engine, asked)
    assert lease is not None
    with transaction(engine) as session:
        dry_runs.delete(session, OWNER, asked)
    with transaction(engine) as session:
        assert not dry_runs.is_held(session, lease, NOW)
        assert not dry_runs.extend(session, lease, NOW)
    assert rung(engine) == []
    assert claim(engine, asked) is None
