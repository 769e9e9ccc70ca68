"""Who may come in. Deny by default: every address needs a key but those listed here, known routes or not.

A pure ASGI middleware, in front of everything that reads a body.
"""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from api import docs_page
from api.errors import Refused, problem_of
from api.services import Services
from store.keys import Principal, authenticate

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"}) | docs_page.PATHS
READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Authentication:
    """Lets a request through with `scope["billhook.principal"]` set, or answers 401 or 403."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self.app = app
        self.services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                principal = await self._principal(scope)
            except Exception as error:
                await problem_of(error)(scope, receive, send)
                return
            scope["billhook.principal"] = principal
            bind_contextvars(key_id=principal.key_id)
        await self.app(scope, receive, send)

    async def _principal(self, scope: Scope) -> Principal:
        scheme, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
        secret = secret.strip()
        challenge = {"WWW-Authenticate": 'Bearer realm="billhook"'}
        if scheme.lower() != "bearer" or not secret:
            raise Refused(
                "unauthenticated", "a key is needed: the header Authorization: Bearer bh_…", headers=challenge
            )
        principal = await run_in_threadpool(self.services.read, lambda session: authenticate(session, secret))
        if principal is None:
            challenge["WWW-Authenticate"] += ', error="invalid_token"'
            raise Refused("unauthenticated", "the key is unknown, expired or revoked", headers=challenge)
        needed = "read" if scope["method"] in READING else "write"
        if needed not in principal.scopes:
            raise Refused("scope_missing", f"the key lacks the scope {needed}")
        return principal
