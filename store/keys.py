"""API keys: shown once, stored as their SHA-256, each with an owner and scopes."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from store.columns import now_utc
from store.ids import new_id
from store.records import ApiKey

SCOPES = ("read", "write")
PREFIX = "bh_"


@dataclass(frozen=True)
class Principal:
    """Who asks: what a key stands for."""

    key_id: str
    owner: str
    scopes: frozenset[str]


def new_secret() -> str:
    """A key: `bh_` and 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def add_key(
    session: Session, secret: str, *, owner: str, name: str, scopes: Iterable[str] = SCOPES,
    expires_at: datetime | None = None, now: datetime | None = None,
) -> ApiKey:  # fmt: skip
    """Register a key. One that is registered already is returned as it is. Raises `ValueError` for unknown scopes."""
    scopes = sorted(set(scopes))
    if unknown := set(scopes) - set(SCOPES):
        raise ValueError(f"unknown scopes {sorted(unknown)}; there are {', '.join(SCOPES)}")
    sha256 = _hash(secret)
    found = session.scalars(select(ApiKey).where(ApiKey.sha256 == sha256)).one_or_none()
    if found is not None:
        return found
    key = ApiKey(
        id=new_id("key"), owner=owner, name=name, sha256=sha256, scopes=scopes, created_at=now or now_utc(),
        expires_at=expires_at,
    )  # fmt: skip
    session.add(key)
    session.flush()
    return key


def replace_key(session: Session, secret: str, *, owner: str, name: str, now: datetime | None = None) -> ApiKey:
    """Make `secret` the one key of that owner and name: those before it are revoked, from now on."""
    key = add_key(session, secret, owner=owner, name=name, now=now)
    key.revoked_at = None  # it may have been replaced before, and is wanted again
    session.execute(
        update(ApiKey)
        .where(ApiKey.owner == owner, ApiKey.name == name, ApiKey.id != key.id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=now or now_utc())
    )
    return key


def authenticate(session: Session, secret: str, now: datetime | None = None) -> Principal | None:
    """What the key stands for; None if it is unknown, expired or revoked.

    Looked up by its hash, so how long that takes says nothing about other keys.
    """
    now = now or now_utc()
    key = session.scalars(select(ApiKey).where(ApiKey.sha256 == _hash(secret))).one_or_none()
    if key is None or key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        return None
    return Principal(key.id, key.owner, frozenset(key.scopes))


def _hash(secret: str) -> str:
    # a random 256-bit key needs no slow hash: there is nothing to guess
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
