"""Idempotency keys: reserved, answered once, given again, fenced, forgotten."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from store import idempotency
from store.database import reading, transaction
from store.errors import IdempotencyKeyInFlight, IdempotencyKeyReused
from store.idempotency import HELD, KEPT, Answer, Kept, Reservation, Slot
from store.records import IdempotencyKey
from tests.store.conftest import NOW

SLOT = Slot("ann", "POST /x", "k")
ANSWER = Answer(202, {"Location": "/x"}, '{"b": 1, "a": 0.10}')


def reserve(engine: Engine, slot: Slot = SLOT, sha256: str | None = "1", seconds: float = 0) -> Reservation | Kept:
    with transaction(engine) as session:
        return idempotency.reserve(session, slot, sha256, NOW + timedelta(seconds=seconds))


def mine(engine: Engine, slot: Slot = SLOT, sha256: str | None = "1", seconds: float = 0) -> Reservation:
    found = reserve(engine, slot, sha256, seconds)
    assert isinstance(found, Reservation)
    return found


def answer(engine: Engine, reservation: Reservation, sha256: str = "1") -> None:
    with transaction(engine) as session:
        idempotency.keep(session, reservation, sha256, ANSWER)


def test_the_answer_is_given_again_to_the_byte(engine: Engine) -> None:
    answer(engine, mine(engine))
    found = reserve(engine)
    assert isinstance(found, Kept)
    assert found.to("1") == ANSWER
    with pytest.raises(IdempotencyKeyReused):
        reserve(engine, sha256="2")
    found = reserve(engine, sha256=None)  # an upload's is compared when it is there
    assert isinstance(found, Kept)
    with pytest.raises(IdempotencyKeyReused):
        found.to("2")


def test_another_owner_another_route(engine: Engine) -> None:
    answer(engine, mine(engine))
    mine(engine, Slot("bob", "POST /x", "k"))
    mine(engine, Slot("ann", "POST /y", "k"))
    mine(engine, Slot("ann", "POST /x", "l"))


def test_while_it_is_in_flight(engine: Engine) -> None:
    mine(engine)
    for sha256 in ("1", None):
        with pytest.raises(IdempotencyKeyInFlight):
            reserve(engine, sha256=sha256, seconds=HELD.total_seconds() - 1)
    with pytest.raises(IdempotencyKeyReused):
        reserve(engine, sha256="2")
    mine(engine, Slot("ann", "POST /x", "upload"), None)
    with pytest.raises(IdempotencyKeyInFlight):
        reserve(engine, Slot("ann", "POST /x", "upload"), "2")


def test_a_failure_frees_the_key(engine: Engine) -> None:
    reservation = mine(engine)
    with transaction(engine) as session:
        idempotency.release(session, reservation)
    answer(engine, mine(engine, sha256="2"), "2")
    with transaction(engine) as session:
        idempotency.release(session, reservation)  # late: nothing
    assert isinstance(reserve(engine, sha256="2"), Kept)


def test_a_server_that_died_loses_the_key_and_cannot_answer_any_more(engine: Engine) -> None:
    dead = mine(engine)
    later = HELD.total_seconds() + 1
    with transaction(engine) as session:
        idempotency.extend(session, dead, NOW + timedelta(seconds=5))
    with pytest.raises(IdempotencyKeyInFlight):
        reserve(engine, seconds=later)
    second = mine(engine, sha256="2", seconds=later + 5)
    with pytest.raises(IdempotencyKeyInFlight):
        answer(engine, dead)
    with transaction(engine) as session:
        idempotency.release(session, dead)
        idempotency.extend(session, dead, NOW + timedelta(days=1))
        idempotency.amend(session, dead, "{}")
    answer(engine, second, "2")
    found = reserve(engine, sha256="2")
    assert isinstance(found, Kept)
    assert found.answer == ANSWER


def test_what_was_answered_in_the_end(engine: Engine) -> None:
    reservation = mine(engine)
    with transaction(engine) as session:
        idempotency.amend(session, reservation, "{}")  # there is no answer yet
    answer(engine, reservation)
    with transaction(engine) as session:
        idempotency.amend(session, reservation, "[]")
    found = reserve(engine)
    assert isinstance(found, Kept)
    assert (found.answer.status, found.answer.body) == (202, "[]")


def test_the_answer_goes_with_what_was_made(engine: Engine) -> None:
    reservation = mine(engine)
    with Session(engine) as session:
        idempotency.keep(session, reservation, "1", ANSWER)
        session.rollback()
    with pytest.raises(IdempotencyKeyInFlight):
        reserve(engine)


def test_forgetting(engine: Engine) -> None:
    answer(engine, mine(engine))
    mine(engine, Slot("ann", "POST /x", "abandoned"))
    alive = mine(engine, Slot("ann", "POST /x", "long"))

    def left(seconds: float) -> set[str]:
        with transaction(engine) as session:
            idempotency.forget(session, NOW + timedelta(seconds=seconds))
        with reading(engine) as session:
            return set(session.scalars(select(IdempotencyKey.key)))

    assert left(HELD.total_seconds()) == {"k", "abandoned", "long"}
    days = KEPT.total_seconds()
    with transaction(engine) as session:
        idempotency.extend(session, alive, NOW + timedelta(seconds=days + 50))
    assert left(days - 1) == {"k", "long"}
    assert left(days + 60) == {"long"}


def test_many_at_once_one_is_first(engine: Engine) -> None:
    start = threading.Barrier(8)
    got: list[str] = []

    def work() -> None:
        start.wait()
        try:
            got.append(type(reserve(engine)).__name__)
        except IdempotencyKeyInFlight:
            got.append("in flight")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["Reservation"] + 7 * ["in flight"]
