"""API keys: make, list, revoke."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from urllib.parse import quote

from billhook.errors import InputInvalid
from billhook.keys import Key, NewKey
from billhook.operations.listing import pages
from billhook.results import parse
from billhook.retries import Core, body_of, fetch, send
from billhook.steps import Call, Operation, Stream


def _path(key_id: str) -> str:
    return f"/v1/keys/{quote(key_id, safe='')}"


def create_key(
    core: Core,
    name: str,
    scopes: Sequence[str] = ("read", "write"),
    *,
    owner: str | None = None,
    expires_in_days: int | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
) -> Operation[NewKey]:
    """A new key; its `secret` is told this once.

    `scopes`: read, write, keys, metrics, admin. `owner`: whose models, datasets and jobs it opens, yours unless given.
    It ends after `expires_in_days`, or at `expires_at` (with a zone), or with the key that asks. The request carries an
    idempotency key (a new one unless given), so that an answer lost on the way never leaves a key that nobody has.
    Raises `ApiError` (403 scope_missing, grant_refused; 422), `InputInvalid` for a time without a zone.
    """
    if expires_at is not None and expires_at.tzinfo is None:
        raise InputInvalid("expires_at needs a time zone: datetime(…, tzinfo=UTC)")
    body = {
        "name": name, "scopes": list(scopes), "owner": owner, "expires_in_days": expires_in_days,
        "expires_at": None if expires_at is None else expires_at.isoformat(),
    }  # fmt: skip
    call = Call(
        "POST", "/v1/keys", json={field: value for field, value in body.items() if value is not None},
        headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
    )  # fmt: skip
    reply = yield from send(core, call)
    return parse(NewKey, body_of(reply))


def list_keys(
    core: Core, *, owner: str | None = None, state: str | None = None, limit: int | None = None
) -> Stream[Key]:
    """The keys of your owner, newest first, or with the scope admin of all owners: only those of `owner`, only those
    that are active, expired or revoked."""
    return pages(core, Key, "/v1/keys", {"owner": owner, "state": state}, limit)


def get_key(core: Core, key_id: str) -> Operation[Key]:
    """One key. Raises `ApiError` (404)."""
    return fetch(core, Key, _path(key_id))


def revoke_key(core: Core, key_id: str) -> Operation[None]:
    """From now on the key opens nothing; again, that is no error. Raises `ApiError` (404; 403 grant_refused)."""
    yield from send(core, Call("DELETE", _path(key_id)))
