"""`Idempotency-Key`: the answer that a request got is kept beside what it made, in the same transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from store.columns import now_utc
from store.errors import IdempotencyKeyReused
from store.records import IdempotencyKey

KEPT = timedelta(days=2)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: dict[str, Any]


def recall(session: Session, owner: str, route: str, key: str, request_sha256: str) -> Answer | None:
    """The answer given before. Raises `IdempotencyKeyReused` if it was given to another request body."""
    found = session.get(IdempotencyKey, (owner, route, key))
    if found is None:
        return None
    if found.request_sha256 != request_sha256:
        raise IdempotencyKeyReused("this Idempotency-Key was used with another request body")
    return Answer(found.status, found.headers, found.body)


def keep(
    session: Session, owner: str, route: str, key: str, request_sha256: str, answer: Answer, now: datetime | None = None
) -> None:
    """Keep the answer with what the request made.

    If another request with the same key commits first, this raises SQLAlchemy's `IntegrityError`: roll back, `recall`.
    """
    session.add(
        IdempotencyKey(
            owner=owner,
            route=route,
            key=key,
            request_sha256=request_sha256,
            status=answer.status,
            headers=dict(answer.headers),
            body=answer.body,
            created_at=now or now_utc(),
        )
    )
    session.flush()


def forget(session: Session, now: datetime | None = None) -> None:
    """Drop the answers that are older than `KEPT`."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < (now or now_utc()) - KEPT))
