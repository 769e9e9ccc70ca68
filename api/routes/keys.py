"""API keys: make, list, read, revoke. A key gives and takes away only what it has itself."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.auth import bearer, unknown_key
from api.bodies import parse_json, read_body, require_json, validate
from api.errors import Refused
from api.idempotency import Idempotent, answered
from api.openapi import KEY_CREATION
from api.pages import KeyToken, PageSize, cut
from api.schemas.keys import KeyOut, KeyPage, KeyRequest, NewKeyOut
from api.services import Caller, Services, Shared
from core.errors import Fault
from store import keys
from store.columns import now_utc, to_json
from store.database import transaction
from store.idempotency import Answer
from store.keys import KeyState, Principal
from store.records import ApiKey

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post("", status_code=201, response_model=NewKeyOut, openapi_extra=KEY_CREATION)
async def create_key(request: Request, services: Shared, caller: Caller, once: Idempotent) -> Response:
    """Make a key. The answer holds it, this once; only its SHA-256 is stored.

    It gets no more than the key that asks for it has: its scopes and its owner (`admin`: any), and no later end. With
    an `Idempotency-Key`, the same request by the same key is answered with the same key again.
    """
    require_json(request)
    body = await read_body(request, services.settings)
    document = parse_json(body)
    parent = bearer(request.headers) or ""

    def make(session: Session) -> Answer:
        """The answer as it is kept: with the salt that its secret is derived from in place of the secret."""
        salt = secrets.token_urlsafe(32)
        made = _make(session, caller, keys.derived_secret(parent, salt), document)
        kept = NewKeyOut(**KeyOut.of(made).model_dump(), secret=salt)
        return answered(kept, 201, {"Location": f"/v1/keys/{made.id}", "Cache-Control": "no-store"})

    answer = await once.answer(body, make)
    await run_in_threadpool(_tell, services, answer, parent)
    return answer


def _tell(services: Services, answer: Response, parent: str) -> None:
    """Put the secret into the answer to whoever holds the key `parent`. Raises `Refused` if another key made this one.

    Replays go to all keys of an owner. One that could read another's answer would get rights that it lacks.
    """
    document = json.loads(bytes(answer.body))
    secret = keys.derived_secret(parent, document["secret"])
    if not services.read(lambda session: keys.stands_for(session, secret, document["id"])):
        raise Refused("idempotency_key_reused", "this Idempotency-Key was used with another API key")
    answer.body = to_json({**document, "secret": secret}).encode()
    answer.headers["Content-Length"] = str(len(answer.body))


def _make(session: Session, caller: Principal, secret: str, document: Any) -> ApiKey:
    asked, faults = validate(KeyRequest, document)
    if asked is None:
        raise Refused("request_invalid", "the key cannot be made", faults=faults)
    now = now_utc()
    ends = asked.expires_at
    if asked.expires_in_days is not None:
        ends = now + timedelta(days=asked.expires_in_days)
    owner = asked.owner or caller.owner
    faults = [
        Fault(f"/scopes/{asked.scopes.index(scope)}", f"the key that asks lacks the scope {scope}", _own(caller))
        for scope in caller.beyond(asked.scopes)
    ]
    if owner != caller.owner and not caller.may("admin"):
        faults.append(Fault("/owner", "another owner's keys take the scope admin", "your own, or leave it out"))
    if caller.expires_at is not None and ends is not None and ends > caller.expires_at:
        where = "/expires_at" if asked.expires_at is not None else "/expires_in_days"
        latest = f"{caller.expires_at.isoformat(timespec='seconds')} at the latest"
        faults.append(Fault(where, "the key that asks ends earlier", latest))
    if faults:
        raise Refused("grant_refused", "a key gives no more than it has itself", faults=faults)
    # held until this is committed: a key that is being revoked makes no other, whatever was known of it a moment ago
    held = session.get(ApiKey, caller.key_id, with_for_update=True, populate_existing=True)
    if held is None or keys.state_of(held, now) != "active":
        raise unknown_key()
    return keys.add_key(
        session, secret, owner=owner, name=asked.name, scopes=asked.scopes, expires_at=ends or caller.expires_at,
        created_by=caller.key_id, now=now,
    )  # fmt: skip


def _own(caller: Principal) -> str:
    return f"of {', '.join(scope for scope in keys.SCOPES if caller.may(scope))}"


def _reach(caller: Principal) -> str | None:
    """The owner whose keys the caller sees, None for all."""
    return None if caller.may("admin") else caller.owner


@router.get("")
def list_keys(
    services: Shared,
    caller: Caller,
    owner: Annotated[str | None, Query(max_length=200, description="only this owner's")] = None,
    state: KeyState | None = None,
    page_size: PageSize = 50,
    page_token: KeyToken = None,
) -> KeyPage:
    """The keys of your owner, newest first, also those that open nothing any more; with `admin` those of all owners."""
    reach = _reach(caller)
    found: Sequence[ApiKey] = ()
    if owner is None or reach in (None, owner):
        found = services.read(
            lambda session: keys.list_keys(
                session, reach if owner is None else owner, state=state, before=page_token, limit=page_size + 1
            )
        )  # fmt: skip
    items, token = cut(found, page_size)
    return KeyPage(items=[KeyOut.of(key) for key in items], next_page_token=token)


@router.get("/{key_id}")
def get_key(key_id: str, services: Shared, caller: Caller) -> KeyOut:
    """One key, without its secret."""
    return KeyOut.of(services.read(lambda session: keys.get_key(session, _reach(caller), key_id)))


@router.delete("/{key_id}", status_code=204)
def revoke_key(key_id: str, services: Shared, caller: Caller) -> None:
    """Revoke a key: from now on it opens nothing. Its record stays; revoking it again changes nothing.

    403 `grant_refused` if it has scopes that the key that asks lacks.
    """
    with transaction(services.engine) as session:
        key = keys.get_key(session, _reach(caller), key_id)
        if lacking := caller.beyond(key.scopes):
            raise Refused("grant_refused", f"the key has what yours lacks: {', '.join(lacking)}")
        keys.revoke_key(session, key)
    services.known_keys.forget(key_id)  # other servers trust it for BILLHOOK_KEY_SECONDS
