"""`Idempotency-Key`: who answers a request with one, and the answer, kept beside what the request made.

A reservation is committed first. The answer takes its place in the transaction of what the request makes, so that there
are both or neither; a request that fails takes its reservation back. The reservation of a server that died expires.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from store.columns import now_utc
from store.errors import IdempotencyKeyInFlight, IdempotencyKeyReused
from store.records import IdempotencyKey

KEPT = timedelta(days=2)
HELD = timedelta(seconds=30)  # whoever answers extends the reservation long before that


@dataclass(frozen=True)
class Slot:
    """What a key is for: one owner, and one route with the ids in its path. The same key elsewhere is another."""

    owner: str
    route: str
    key: str


@dataclass(frozen=True)
class Answer:
    """`body`: JSON text, given again to the byte. `once`: what the first answer says in its place; never kept."""

    status: int
    headers: Mapping[str, str]
    body: str
    once: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Reservation:
    """The right to answer. `token` fences it: who was taken for dead keeps nothing."""

    slot: Slot
    token: str


@dataclass(frozen=True)
class Kept:
    """The answer given before, and the hash of the request that it was given to."""

    answer: Answer
    request_sha256: str

    def to(self, request_sha256: str) -> Answer:
        """The answer, to the same request. Raises `IdempotencyKeyReused` to another."""
        if self.request_sha256 != request_sha256:
            raise _reused()
        return self.answer


def reserve(
    session: Session, slot: Slot, request_sha256: str | None = None, now: datetime | None = None
) -> Reservation | Kept:
    """The right to answer, or the answer given before. Commit, then answer.

    `request_sha256` None: the body is still to come, and what is `Kept` is to be compared with it.
    Raises `IdempotencyKeyInFlight` while somebody else is answering, `IdempotencyKeyReused` for another request.
    """
    now = now or now_utc()
    reservation = Reservation(slot, secrets.token_hex(16))
    row = _row(session, slot)
    if row is None:
        row = IdempotencyKey(owner=slot.owner, route=slot.route, key=slot.key, created_at=now)
        _give(row, reservation, request_sha256, now)
        try:
            with session.begin_nested():
                session.add(row)
        except IntegrityError:  # somebody else was a moment earlier
            raise _in_flight() from None
        return reservation
    if row.status is None and _expired(row, now):
        _give(row, reservation, request_sha256, now)
        session.flush()
        return reservation
    if request_sha256 is not None and row.request_sha256 not in (None, request_sha256):
        raise _reused()
    if row.status is None:
        raise _in_flight()
    return Kept(Answer(row.status, row.headers or {}, row.body or ""), row.request_sha256 or "")


def _give(row: IdempotencyKey, reservation: Reservation, request_sha256: str | None, now: datetime) -> None:
    row.token, row.request_sha256, row.created_at, row.expires_at = (
        reservation.token, request_sha256, now, now + HELD
    )  # fmt: skip


def extend(session: Session, reservation: Reservation, now: datetime | None = None) -> None:
    """Whoever answers is alive. Does nothing to a reservation that is no more."""
    held = _held(reservation)
    session.execute(update(IdempotencyKey).where(held).values(expires_at=(now or now_utc()) + HELD))


def keep(session: Session, reservation: Reservation, request_sha256: str, answer: Answer) -> None:
    """Keep the answer, in the transaction of what the request made.

    Raises `IdempotencyKeyInFlight` if the reservation expired and somebody else has it now: roll back.
    """
    row = session.scalars(select(IdempotencyKey).where(_held(reservation)).with_for_update()).one_or_none()
    if row is None:
        raise _in_flight()
    row.request_sha256, row.expires_at = request_sha256, None
    row.status, row.headers, row.body = answer.status, dict(answer.headers), answer.body
    session.flush()


def amend(session: Session, reservation: Reservation, body: str) -> None:
    """What was kept was answered with this body, in the end."""
    mine = and_(_of(reservation.slot), IdempotencyKey.token == reservation.token, IdempotencyKey.status.is_not(None))
    session.execute(update(IdempotencyKey).where(mine).values(body=body))


def release(session: Session, reservation: Reservation) -> None:
    """The request failed: the key is free again. Does nothing to a reservation that is no more."""
    session.execute(delete(IdempotencyKey).where(_held(reservation)))


def forget(session: Session, now: datetime | None = None) -> None:
    """Drop the answers that are older than `KEPT`, and what servers that died had reserved."""
    now = now or now_utc()
    old = and_(IdempotencyKey.status.is_not(None), IdempotencyKey.created_at < now - KEPT)
    abandoned = and_(IdempotencyKey.status.is_(None), IdempotencyKey.expires_at < now - HELD)
    session.execute(delete(IdempotencyKey).where(or_(old, abandoned)))


def _row(session: Session, slot: Slot) -> IdempotencyKey | None:
    query = select(IdempotencyKey).where(_of(slot)).with_for_update().execution_options(populate_existing=True)
    return session.scalars(query).one_or_none()


def _of(slot: Slot) -> ColumnElement[bool]:
    return and_(
        IdempotencyKey.owner == slot.owner, IdempotencyKey.route == slot.route, IdempotencyKey.key == slot.key
    )  # fmt: skip


def _held(reservation: Reservation) -> ColumnElement[bool]:
    return and_(_of(reservation.slot), IdempotencyKey.token == reservation.token, IdempotencyKey.status.is_(None))


def _expired(row: IdempotencyKey, now: datetime) -> bool:
    return row.expires_at is None or row.expires_at < now


def _reused() -> IdempotencyKeyReused:
    return IdempotencyKeyReused("this Idempotency-Key was used with another request")


def _in_flight() -> IdempotencyKeyInFlight:
    return IdempotencyKeyInFlight("the first request with this Idempotency-Key is still being answered; try again")
