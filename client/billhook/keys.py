"""API keys, as the server tells of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Key:
    """A key without its secret. `state`: active, expired or revoked. `created_by`: the id of the key that made it."""

    id: str
    owner: str
    name: str
    scopes: tuple[str, ...]
    state: str
    created_at: datetime
    created_by: str | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    raw: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class NewKey:
    """A key that was just made. `secret` is what opens the server; nobody can ask for it again, nor is it printed."""

    id: str
    owner: str
    name: str
    scopes: tuple[str, ...]
    state: str
    created_at: datetime
    secret: str = field(repr=False)
    created_by: str | None = None
    expires_at: datetime | None = None
    raw: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
