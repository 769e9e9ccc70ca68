"""The doorbell: rung at growing intervals until somebody answers."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Engine

from store import outbox
from store.database import transaction
from tests.store.conftest import NOW


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_it_rings_at_once_and_again_at_growing_intervals(engine: Engine) -> None:
    with transaction(engine) as session:
        outbox.add(session, "run", "job_1", "cpu", NOW)
    rung = []
    for second in range(130):
        with transaction(engine) as session:
            for message in outbox.due(session, at(second)):
                assert (message.topic, message.subject_id, message.queue) == ("run", "job_1", "cpu")
                outbox.rung(session, message.id, at(second))
                rung.append(second)
    assert rung == [0, 5, 15, 35, 65, 95, 125]


def test_a_settled_message_is_gone_even_if_it_is_being_rung(engine: Engine) -> None:
    with transaction(engine) as session:
        outbox.add(session, "run", "job_1", "cpu", NOW)
        (message,) = outbox.due(session, NOW)
        message_id = message.id
    with transaction(engine) as session:
        outbox.settle(session, "job_1")
    with transaction(engine) as session:
        outbox.rung(session, message_id, at(1))
        assert outbox.due(session, at(1_000)) == []


def test_adding_again_starts_over(engine: Engine) -> None:
    with transaction(engine) as session:
        outbox.add(session, "run", "job_1", "cpu", NOW)
        outbox.rung(session, outbox.due(session, NOW)[0].id, NOW)
        assert outbox.due(session, at(1)) == []
        outbox.add(session, "run", "job_1", "gpu", at(1))
        (message,) = outbox.due(session, at(1))
        assert (message.queue, message.rings) == ("gpu", 0)


def test_the_oldest_come_first_up_to_the_limit(engine: Engine) -> None:
    with transaction(engine) as session:
        for number in (3, 1, 2):
            outbox.add(session, "run", f"job_{number}", "cpu", at(number))
        assert [message.subject_id for message in outbox.due(session, at(9), limit=2)] == ["job_1", "job_2"]


def test_two_relays_share_the_messages(postgres: object, engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        return  # one writer at a time: there is nothing to share
    with transaction(engine) as session:
        for number in range(4):
            outbox.add(session, "run", f"job_{number}", "cpu", at(number))
    with transaction(engine) as first, transaction(engine) as second:
        mine = {message.id for message in outbox.due(first, at(9), limit=2)}
        yours = {message.id for message in outbox.due(second, at(9))}
        assert len(mine) == len(yours) == 2
        assert not mine & yours
