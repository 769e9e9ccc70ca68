"""API keys: shown once, stored as their SHA-256, each with an owner, scopes, and perhaps an end.

An owner is a name: it is there as soon as it has a key. What a key may do is `Principal.may`; what it may give to
others, never more than that, `Principal.beyond`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from store.columns import now_utc
from store.errors import NotFound
from store.ids import new_id
from store.records import ApiKey

Scope = Literal["read", "write", "keys", "metrics", "admin"]
KeyState = Literal["active", "expired", "revoked"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
USUAL: tuple[Scope, ...] = ("read", "write")
"""What working with models, datasets and jobs takes."""
IMPLIED: Mapping[str, frozenset[str]] = {"admin": frozenset({"keys", "metrics"})}
PREFIX = "bh_"


@dataclass(frozen=True)
class Principal:
    """Who asks: what a key stands for. `expires_at`: when it ends by itself, None for never."""

    key_id: str
    owner: str
    scopes: frozenset[str]
    expires_at: datetime | None = None

    def may(self, scope: str) -> bool:
        """Whether the key has the scope, or one that includes it."""
        return scope in self.scopes or any(scope in IMPLIED.get(own, ()) for own in self.scopes)

    def beyond(self, scopes: Collection[str]) -> list[str]:
        """Those of `scopes` that this key may neither give nor take away. An `admin` key reigns over all of them."""
        return [] if "admin" in self.scopes else [scope for scope in scopes if not self.may(scope)]


def new_secret() -> str:
    """A key: `bh_` and 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def derived_secret(parent: str, salt: str) -> str:
    """A key that whoever holds both the key `parent` and the random `salt` can find again, and nobody else.

    So a repeated request is answered with the same key although no key is ever stored. HMAC-SHA256.
    """
    digest = hmac.digest(parent.encode("utf-8", "surrogatepass"), b"billhook key " + salt.encode(), "sha256")
    return PREFIX + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def add_key(
    session: Session, secret: str, *, owner: str, name: str, scopes: Iterable[str] = USUAL,
    expires_at: datetime | None = None, created_by: str | None = None, now: datetime | None = None,
) -> ApiKey:  # fmt: skip
    """Register a key. One that is registered already is returned as it is. Raises `ValueError` for unknown scopes."""
    given = set(scopes)
    if unknown := given - set(SCOPES):
        raise ValueError(f"unknown scopes {sorted(unknown)}; there are {', '.join(SCOPES)}")
    found = session.scalars(select(ApiKey).where(ApiKey.sha256 == _hash(secret))).one_or_none()
    if found is not None:
        return found
    key = ApiKey(
        id=new_id("key"), owner=owner, name=name, sha256=_hash(secret), created_at=now or now_utc(),
        scopes=[scope for scope in SCOPES if scope in given], expires_at=expires_at, created_by=created_by,
    )  # fmt: skip
    session.add(key)
    session.flush()
    return key


def replace_key(session: Session, secret: str, *, owner: str, name: str, now: datetime | None = None) -> ApiKey:
    """Make `secret` the one key of that owner and name, with all scopes: those before it are revoked, from now on.

    Raises `ValueError` if it is registered already as another key: it would get rights that nobody gave it.
    """
    key = add_key(session, secret, owner=owner, name=name, scopes=SCOPES, now=now)
    if (key.owner, key.name) != (owner, name):
        raise ValueError(f"it is registered already, as the key {key.name!r} of the owner {key.owner!r}")
    key.revoked_at = None  # it may have been replaced before, and is wanted again
    key.scopes = list(SCOPES)  # there may have been fewer when it was made
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
    if key is None or state_of(key, now) != "active":
        return None
    return Principal(key.id, key.owner, frozenset(key.scopes), key.expires_at)


def stands_for(session: Session, secret: str, key_id: str) -> bool:
    """Whether `secret` is the key of that id, whatever its state."""
    return session.scalar(select(ApiKey.id).where(ApiKey.sha256 == _hash(secret))) == key_id


def state_of(key: ApiKey, now: datetime | None = None) -> KeyState:
    """Whether the key opens anything (active); a key that was revoked stays so when it expires, too."""
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= (now or now_utc()) else "active"


def get_key(session: Session, owner: str | None, key_id: str) -> ApiKey:
    """A key of that owner, None for any. Raises `NotFound`."""
    key = session.get(ApiKey, key_id)
    if key is None or owner not in (None, key.owner):
        raise NotFound(f"there is no key {key_id}")
    return key


def list_keys(
    session: Session, owner: str | None, *, state: KeyState | None = None, before: str | None = None, limit: int = 50,
    now: datetime | None = None,
) -> Sequence[ApiKey]:  # fmt: skip
    """Newest first, at most `limit`, older than the key `before`; of that owner, None for all."""
    query = select(ApiKey)
    if owner is not None:
        query = query.where(ApiKey.owner == owner)
    if state is not None:
        query = query.where(_is(state, now or now_utc()))
    if before is not None:
        query = query.where(ApiKey.id < before)
    return session.scalars(query.order_by(ApiKey.id.desc()).limit(limit)).all()


def _is(state: KeyState, now: datetime) -> ColumnElement[bool]:
    """`state_of` in SQL."""
    if state == "revoked":
        return ApiKey.revoked_at.is_not(None)
    lives = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now)
    return and_(ApiKey.revoked_at.is_(None), lives if state == "active" else ~lives)


def revoke_key(session: Session, key: ApiKey, now: datetime | None = None) -> None:
    """From now on the key opens nothing; its record stays. One that was revoked before keeps that time."""
    session.execute(
        update(ApiKey).where(ApiKey.id == key.id, ApiKey.revoked_at.is_(None)).values(revoked_at=now or now_utc())
    )


def note_use(session: Session, used: Mapping[str, datetime]) -> None:
    """Keys by id, and when each was last used. An earlier time than the one that is there changes nothing."""
    for key_id, moment in sorted(used.items()):  # in one order: two servers that do this do not wait for each other
        earlier = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < moment)
        session.execute(update(ApiKey).where(ApiKey.id == key_id, earlier).values(last_used_at=moment))


def still_good(session: Session, key_ids: Iterable[str], now: datetime | None = None) -> set[str]:
    """Those of the keys that are neither expired nor revoked."""
    now = now or now_utc()
    query = select(ApiKey.id).where(
        ApiKey.id.in_(set(key_ids)),
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now),
    )
    return set(session.scalars(query))


def _hash(secret: str) -> str:
    # a random 256-bit key needs no slow hash: there is nothing to guess
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
