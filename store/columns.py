"""Column types that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator

from core.events import jsonable

# SQL NULL for None: a JSON null beside it would be a second way to say nothing
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, in UTC on both sides. SQLite stores it without zone; a naive value is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without time zone cannot be stored; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now_utc() -> datetime:
    """The time now, aware, in UTC."""
    return datetime.now(UTC)


def storable(value: Any) -> Any:
    """`value` as JSON that every database takes: `core.events.jsonable`, and U+FFFD for NUL and lone surrogates.

    PostgreSQL refuses U+0000 in text and JSON, and nothing can encode a lone surrogate as UTF-8; both occur in what an
    uploaded file calls its nodes.
    """
    return _clean(jsonable(value))


def storable_text(text: str) -> str:
    """`text` with U+FFFD for NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, dict):
        return {storable_text(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return value


def to_json(value: Any) -> str:
    """JSON text; NaN and infinities are refused (`ValueError`), as PostgreSQL would."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
