"""Who may come in. Deny by default: every address needs a key but those listed here, known routes or not.

A pure ASGI middleware, in front of everything that reads a body. Which scope a request needs is in `needed_scope`.
"""

from __future__ import annotations

import threading
from datetime import datetime

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as ConnectionScope
from structlog.contextvars import bind_contextvars

from api import docs_page, openapi
from api.errors import Refused, problem_of
from api.services import Services
from store.columns import now_utc
from store.database import transaction
from store.keys import Principal, Scope, authenticate, note_use

OPEN_PATHS = frozenset({"/healthz", "/readyz", openapi.PATH}) | docs_page.PATHS
CHALLENGE = 'Bearer realm="billhook"'
READING = frozenset({"GET", "HEAD", "OPTIONS"})
SCOPED: dict[str, Scope] = {"/v1/keys": "keys", "/metrics": "metrics"}
"""What begins with one of these needs another scope than `read` or `write`."""


def needed_scope(method: str, path: str) -> Scope:
    """The scope that a key must have for such a request."""
    for start, scope in SCOPED.items():
        if path == start or path.startswith(f"{start}/"):
            return scope
    return "read" if method in READING else "write"


def unknown_key() -> Refused:
    """What a key that opens nothing is answered with; which of the reasons it is, is nobody's business."""
    challenge = {"WWW-Authenticate": f'{CHALLENGE}, error="invalid_token"'}
    return Refused("unauthenticated", "the key is unknown, expired or revoked", headers=challenge)


def bearer(headers: Headers) -> str | None:
    """The key that a request carries, None if there is none."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() or None if scheme.lower() == "bearer" else None


class KeyUse:
    """When which key was last used, kept in memory until `write` is called: no request waits for that."""

    def __init__(self) -> None:
        self._used: dict[str, datetime] = {}
        self._lock = threading.Lock()

    def note(self, key_id: str) -> None:
        with self._lock:
            self._used[key_id] = now_utc()

    def write(self, engine: Engine) -> None:
        """Store what was noted since the last time. What cannot be stored is noted again."""
        with self._lock:
            used, self._used = self._used, {}
        if not used:
            return
        try:
            with transaction(engine) as session:
                note_use(session, used)
        except Exception:
            with self._lock:
                self._used = used | self._used
            raise


class Authentication:
    """Lets a request through with `scope["billhook.principal"]` set, or answers 401 or 403."""

    def __init__(self, app: ASGIApp, services: Services, key_use: KeyUse) -> None:
        self.app = app
        self.services = services
        self.key_use = key_use

    async def __call__(self, scope: ConnectionScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                principal = await self._principal(scope)
            except Exception as error:
                await problem_of(error)(scope, receive, send)
                return
            scope["billhook.principal"] = principal
            bind_contextvars(key_id=principal.key_id)
        await self.app(scope, receive, send)

    async def _principal(self, scope: ConnectionScope) -> Principal:
        secret = bearer(Headers(scope=scope))
        if secret is None:
            challenge = {"WWW-Authenticate": CHALLENGE}
            raise Refused(
                "unauthenticated", "a key is needed: the header Authorization: Bearer bh_…", headers=challenge
            )
        needed = needed_scope(scope["method"], scope["path"])
        principal = self.services.known_keys.recall(secret) or await self._look_up(secret, needed)
        if principal is None:
            raise unknown_key()
        self.key_use.note(principal.key_id)
        if not principal.may(needed):
            challenge = {"WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope", scope="{needed}"'}
            raise Refused("scope_missing", f"the key lacks the scope {needed}", headers=challenge)
        return principal

    async def _look_up(self, secret: str, needed: Scope) -> Principal | None:
        """What the database says of the key. Where it does not answer, who reads the metrics is let in with a key that
        was good before: they are what tells that the database is away, and then say nothing of what is in it."""
        known = self.services.known_keys
        read = self.services.metrics.read if needed == "metrics" else self.services.read
        try:
            principal = await run_in_threadpool(read, lambda session: authenticate(session, secret))
        except SQLAlchemyError:
            if needed != "metrics" or (last := known.last(secret)) is None:
                raise
            return last
        if principal is None:
            known.drop(secret)
        else:
            known.keep(secret, principal)
        return principal
