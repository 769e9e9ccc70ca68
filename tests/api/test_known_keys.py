"""A key is not looked up for every request, and not for long after it was revoked either."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import event, update

from api.app import create_app
from api.known_keys import MOST, KnownKeys
from store.database import transaction
from store.keys import Principal, add_key, new_secret
from store.records import ApiKey
from store.settings import Settings
from tests.api.conftest import TestClient, problem

ANN, BOB = (Principal(name, name, frozenset({"read"})) for name in ("ann", "bob"))


def test_for_so_long_and_no_longer() -> None:
    now = 0.0
    known = KnownKeys(5, lambda: now)
    assert known.recall("a") is None
    known.keep("a", ANN)
    known.keep("b", BOB)
    now = 4.9
    assert (known.recall("a"), known.recall("b"), known.recall("c")) == (ANN, BOB, None)
    known.forget("ann")
    assert (known.recall("a"), known.recall("b")) == (None, BOB)
    now = 5.0
    assert known.recall("b") is None


def test_for_no_time() -> None:
    known = KnownKeys(0)
    known.keep("a", ANN)
    assert known.recall("a") is None


def test_not_without_bounds() -> None:
    known = KnownKeys(60)
    for number in range(MOST + 1):
        known.keep(str(number), ANN)
    assert len(known._known) <= MOST
    assert known.recall(str(MOST)) == ANN
    assert str(MOST).encode() not in known._known, "not the key itself"


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_revoked_key(settings: Settings, seconds: float) -> None:
    app = create_app(settings.model_copy(update={"key_seconds": seconds}))
    services = app.state.services
    secret = new_secret()
    with transaction(services.engine) as session:
        key = add_key(session, secret, owner="ann", name="x", scopes=["read"])
    asked: list[str] = []
    event.listen(services.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    with TestClient(app, headers={"Authorization": f"Bearer {secret}"}) as http:
        for _ in range(5):
            assert http.get("/v1/jobs").status_code == 200
        assert sum("api_keys" in statement for statement in asked) == (1 if seconds else 5)
        problem(http.post("/v1/jobs", json={}), 403, "scope_missing")
        with transaction(services.engine) as session:
            session.execute(update(ApiKey).values(revoked_at=datetime.now(UTC)))
        assert http.get("/v1/jobs").status_code == (200 if seconds else 401)
        services.known_keys.forget(key.id)
        problem(http.get("/v1/jobs"), 401, "unauthenticated")
        problem(http.get("/v1/jobs", headers={"Authorization": "Bearer bh_x"}), 401, "unauthenticated")
