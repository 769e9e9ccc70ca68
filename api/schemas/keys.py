"""API keys: what is asked for, and what is told of one. The key itself is told once, by `NewKeyOut`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from api.schemas.base import In, Out, Text
from core.sections import Items
from store.columns import now_utc
from store.keys import KeyState, Scope, state_of
from store.records import ApiKey

_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
MAX_DAYS = 3_650


def _moment(value: Any) -> datetime:
    """RFC 3339, with its zone: pydantic would take a number for seconds since 1970."""
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        raise ValueError("it is no time as RFC 3339 writes it, such as 2030-12-31T00:00:00Z")
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("there is no such time") from None


class KeyRequest(In):
    """A new key. It gets no more than the key that asks for it has: neither scopes, nor owner, nor time."""

    name: Annotated[Text, Field(min_length=1, max_length=200)] = Field(
        description="what the key is for: text without control characters", examples=["ci"]
    )
    scopes: Items[Scope] = Field(
        min_length=1, max_length=5, examples=[["read", "write"]],
        description="read: look at models, datasets and jobs; write: make, cancel and delete them; keys: manage the "
        "keys of the same owner; metrics: read /metrics; admin: manage the keys of all owners, and read /metrics",
    )  # fmt: skip
    owner: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._@-]{0,99}$")] | None = Field(
        None,
        description="whose models, datasets and jobs it opens: a-z, 0-9 and . _ @ -, 100 at most; an owner begins with "
        "its first key. Left out: that of the key that asks. Another one takes the scope admin",
    )
    expires_at: Annotated[datetime, BeforeValidator(_moment)] | None = Field(
        None, description="when it ends, as 2030-12-31T00:00:00Z. Left out: when the key that asks for it ends"
    )
    expires_in_days: int | None = Field(
        None, ge=1, le=MAX_DAYS, description=f"when it ends, in days from now, {MAX_DAYS} at most; or expires_at"
    )

    @field_validator("scopes", mode="after")
    @classmethod
    def _each_once(cls, value: tuple[Scope, ...]) -> tuple[Scope, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a scope is there twice")
        return value

    @field_validator("expires_at", mode="after")
    @classmethod
    def _to_come(cls, value: datetime | None) -> datetime | None:
        if value is not None and value <= now_utc():
            raise ValueError("that time is over")
        return value

    @model_validator(mode="after")
    def _one_end(self) -> KeyRequest:
        if self.expires_at is not None and self.expires_in_days is not None:
            raise ValueError("expires_at and expires_in_days say the same thing: give one of them")
        return self


class KeyOut(Out):
    id: str
    owner: str
    name: str
    scopes: list[str]
    state: KeyState
    created_at: datetime
    created_by: str | None = Field(description="id of the key that made it; null: the server itself")
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="about ten minutes behind; null: not used, as far as is known")

    @classmethod
    def of(cls, key: ApiKey) -> KeyOut:
        given = {name: getattr(key, name) for name in cls.model_fields if name != "state"}
        return cls.model_validate(given | {"state": state_of(key)})


class NewKeyOut(KeyOut):
    """A key that was just made."""

    secret: str = Field(description="the key: what goes behind `Authorization: Bearer`. It is told this once only")


class KeyPage(Out):
    items: list[KeyOut]
    next_page_token: str | None
