"""Keys over HTTP: made, listed, revoked, and never more than the key that asks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from api.app import create_app
from store import keys
from store.columns import now_utc
from store.database import reading, transaction
from store.keys import SCOPES
from store.records import ApiKey, IdempotencyKey
from tests.api.conftest import Api, TestClient, key_client, pointers, problem

DAY = timedelta(days=1)


@pytest.fixture
def admin(api: Api) -> TestClient:
    return api.key("ops", *SCOPES)


@pytest.fixture
def keeper(api: Api) -> TestClient:
    """May look, and manage ann's keys."""
    return api.key("ann", "read", "keys")


def make(http: TestClient, *, headers: dict[str, str] | None = None, **given: Any) -> httpx.Response:
    answer: httpx.Response = http.post("/v1/keys", json={"name": "ci", "scopes": ["read"]} | given, headers=headers)
    return answer


def using(api: Api, secret: str) -> TestClient:
    return TestClient(api.app, headers={"Authorization": f"Bearer {secret}"})


def test_a_key_is_told_once_and_opens_what_it_says(api: Api, keeper: TestClient) -> None:
    answer = make(keeper, name="café 1")
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    assert answer.headers["location"] == f"/v1/keys/{made['id']}"
    secret = made.pop("secret")
    assert (made["owner"], made["name"], made["scopes"], made["state"]) == ("ann", "café 1", ["read"], "active")
    assert (made["expires_at"], made["revoked_at"], made["last_used_at"]) == (None, None, None)
    new = using(api, secret)
    api.model()
    assert len(new.get("/v1/models").json()["items"]) == 1
    problem(new.post("/v1/jobs", json={}), 403, "scope_missing")
    for answer in (keeper.get(f"/v1/keys/{made['id']}"), keeper.get("/v1/keys")):
        assert secret not in answer.text
        assert "secret" not in answer.text
        assert "sha256" not in answer.text
    assert keeper.get(f"/v1/keys/{made['id']}").json() == made
    assert make(keeper).json()["secret"] != secret


def test_a_key_is_revoked_at_once_and_its_record_stays(api: Api, keeper: TestClient) -> None:
    made = make(keeper).json()
    new = using(api, made["secret"])
    assert new.get("/v1/models").status_code == 200
    for _ in range(2):
        assert keeper.delete(f"/v1/keys/{made['id']}").status_code == 204
        problem(new.get("/v1/models"), 401, "unauthenticated")
    shown = keeper.get(f"/v1/keys/{made['id']}").json()
    assert shown["state"] == "revoked"
    assert shown["revoked_at"] is not None


def test_several_keys_of_an_owner_open_the_same(api: Api, admin: TestClient) -> None:
    first, second = (
        using(api, make(admin, owner="team", name=name, scopes=["read", "write"]).json()["secret"]) for name in "ab"
    )
    made = first.post("/v1/models", params={"filename": "m.onnx"}, content=b"x").json()["id"]
    assert [model["id"] for model in second.get("/v1/models").json()["items"]] == [made]
    assert second.delete(f"/v1/models/{made}").status_code == 204


def test_an_end_in_days_or_at_a_time(api: Api, keeper: TestClient) -> None:
    before = now_utc()
    end = datetime.fromisoformat(make(keeper, expires_in_days=90).json()["expires_at"])
    assert before + 90 * DAY <= end <= now_utc() + 90 * DAY
    given = make(keeper, expires_at="2099-01-01T02:00:00+02:00").json()
    assert given["expires_at"] == "2099-01-01T00:00:00Z"
    with transaction(api.services.engine) as session:
        session.get_one(ApiKey, given["id"]).expires_at = now_utc()
    problem(using(api, given["secret"]).get("/v1/models"), 401, "unauthenticated")
    assert keeper.get(f"/v1/keys/{given['id']}").json()["state"] == "expired"


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"name": ""}, {"/name"}),
        ({"name": "a\nb"}, {"/name"}),
        ({"name": None, "scopes": ["read", "root"], "owner": "Team A", "nonsense": 1},
         {"/name", "/scopes/1", "/owner", "/nonsense"}),
        ({"scopes": []}, {"/scopes"}),
        ({"scopes": ["read", "read"]}, {"/scopes"}),
        ({"scopes": "read"}, {"/scopes"}),
        ({"expires_in_days": 0}, {"/expires_in_days"}),
        ({"expires_in_days": 3651}, {"/expires_in_days"}),
        ({"expires_in_days": True}, {"/expires_in_days"}),
        ({"expires_at": "2020-01-01T00:00:00Z"}, {"/expires_at"}),
        ({"expires_at": "2099-01-01T00:00:00"}, {"/expires_at"}),
        ({"expires_at": "2099-02-30T00:00:00Z"}, {"/expires_at"}),
        ({"expires_at": "9999-12-31T23:59:59-23:00"}, {"/expires_at"}),
        ({"expires_at": 4_000_000_000}, {"/expires_at"}),
        ({"expires_at": "2099-01-01T00:00:00Z", "expires_in_days": 1}, {""}),
    ],
)  # fmt: skip
def test_what_cannot_be_a_key(keeper: TestClient, given: dict[str, Any], wrong: set[str]) -> None:
    assert pointers(problem(make(keeper, **given), 422, "request_invalid")) == wrong


def test_a_body_that_is_none(keeper: TestClient) -> None:
    problem(keeper.post("/v1/keys", content=b"{}"), 415, "media_type_unsupported")
    assert pointers(problem(keeper.post("/v1/keys", json=[]), 422, "request_invalid")) == {""}
    problem(keeper.get("/v1/keys?state=odd"), 400, "parameter_invalid")


# --- no more than it has itself ---------------------------------------------------------------------------------------


def test_no_scope_no_owner_and_no_time_beyond_its_own(api: Api) -> None:
    end = (now_utc() + DAY).replace(microsecond=0)
    keeper = api.key("ann", "read", "keys", expires_at=end)
    document = problem(
        make(keeper, scopes=["read", "write", "admin"], owner="bob", expires_in_days=2), 403, "grant_refused"
    )
    assert pointers(document) == {"/scopes/1", "/scopes/2", "/owner", "/expires_in_days"}
    assert document["faults"][0]["expected"] == "of read, keys"
    late = (end + timedelta(seconds=1)).isoformat()
    assert pointers(problem(make(keeper, expires_at=late), 403, "grant_refused")) == {"/expires_at"}
    assert [key["name"] for key in api.key("ops", "admin").get("/v1/keys?owner=ann").json()["items"]] == ["test"] * 3
    made = make(keeper, owner="ann", scopes=["keys", "read"]).json()
    assert datetime.fromisoformat(made["expires_at"]) == end, "no end given: that of the key that asks"
    made = make(using(api, made["secret"]), expires_at=end.isoformat()).json()
    assert datetime.fromisoformat(made["expires_at"]) == end


def test_an_admin_that_ends_makes_none_that_lasts(api: Api) -> None:
    admin = api.key("ops", "admin", expires_at=now_utc() + DAY)
    assert pointers(problem(make(admin, expires_in_days=2), 403, "grant_refused")) == {"/expires_in_days"}
    assert make(admin).json()["expires_at"] is not None


def test_an_admin_makes_owners_and_manages_the_keys_of_all(api: Api, admin: TestClient, keeper: TestClient) -> None:
    made = make(admin, owner="team", scopes=["read", "write", "keys"]).json()
    team = using(api, made["secret"])
    own = make(team, scopes=["write"]).json()
    assert (own["owner"], own["created_by"]) == ("team", made["id"])
    listed = {key["id"]: key["owner"] for key in admin.get("/v1/keys").json()["items"]}
    assert set(listed.values()) == {"ann", "bob", "ops", "team"}
    assert {key["id"] for key in admin.get("/v1/keys?owner=team").json()["items"]} == {made["id"], own["id"]}
    assert {key["id"] for key in team.get("/v1/keys").json()["items"]} == {made["id"], own["id"]}
    assert team.get("/v1/keys?owner=ann").json()["items"] == []
    assert admin.get("/v1/keys?owner=").json()["items"] == []
    for method in ("GET", "DELETE"):
        problem(keeper.request(method, f"/v1/keys/{own['id']}"), 404, "not_found")
    assert admin.delete(f"/v1/keys/{own['id']}").status_code == 204
    problem(using(api, own["secret"]).post("/v1/jobs", json={}), 401, "unauthenticated")


def test_an_admin_that_has_nothing_else_sees_no_data(api: Api) -> None:
    admin = api.key("ops", "admin")
    assert admin.get("/v1/keys").status_code == 200
    for path in ("/v1/models", "/v1/jobs", "/v1/recipes"):
        answer = admin.get(path)
        problem(answer, 403, "scope_missing")
        assert 'scope="read"' in answer.headers["www-authenticate"]


def test_a_key_takes_away_only_what_it_has(api: Api, keeper: TestClient) -> None:
    strong = api.key("ann", *SCOPES, name="strong")
    (key_id,) = (key["id"] for key in keeper.get("/v1/keys").json()["items"] if key["name"] == "strong")
    problem(keeper.delete(f"/v1/keys/{key_id}"), 403, "grant_refused")
    assert strong.get("/v1/models").status_code == 200
    assert strong.delete(f"/v1/keys/{key_id}").status_code == 204, "its own"
    problem(strong.get("/v1/models"), 401, "unauthenticated")


def test_a_key_that_was_just_revoked_makes_no_other(
    api: Api, keeper: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was known of it a moment ago, or is remembered."""
    secret = keeper.headers["authorization"].removeprefix("Bearer ")
    with reading(api.services.engine) as session:
        known = keys.authenticate(session, secret)
    assert known is not None
    with transaction(api.services.engine) as session:
        keys.revoke_key(session, session.get_one(ApiKey, known.key_id))
    monkeypatch.setattr("api.auth.authenticate", lambda *_: known)
    problem(make(keeper), 401, "unauthenticated")


# --- repeated requests ------------------------------------------------------------------------------------------------

ONCE = {"Idempotency-Key": "once"}


def test_a_repeated_request_gets_the_same_key_though_none_is_stored(api: Api, keeper: TestClient) -> None:
    first = make(keeper, headers=ONCE)
    again = make(keeper, headers=ONCE)
    assert again.json() == first.json()
    assert (again.status_code, again.headers["location"]) == (201, first.headers["location"])
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["cache-control"] == "no-store"
    secret = first.json()["secret"]
    with reading(api.services.engine) as session:
        (stored,) = session.scalars(select(IdempotencyKey))
        assert secret not in json.dumps(stored.body)
        rows = session.scalars(select(ApiKey)).all()
    assert len([row for row in rows if row.name == "ci"]) == 1
    assert using(api, secret).get("/v1/models").status_code == 200
    problem(make(keeper, name="other", headers=ONCE), 422, "idempotency_key_reused")
    problem(make(keeper, headers={"Idempotency-Key": ""}), 400, "parameter_invalid")


def test_another_key_of_the_owner_does_not_get_the_answer(api: Api, keeper: TestClient) -> None:
    """It may have fewer scopes than the key that was made."""
    strong = api.key("ann", "read", "write", "keys")
    assert make(strong, scopes=["read", "write"], headers=ONCE).status_code == 201
    answer = make(keeper, scopes=["read", "write"], headers=ONCE)
    problem(answer, 422, "idempotency_key_reused")
    assert "bh_" not in answer.text


def test_the_same_idempotency_key_at_the_same_time(api: Api, keeper: TestClient) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        while (answer := make(keeper, headers=ONCE)).status_code == 409:
            problem(answer, 409, "idempotency_key_in_flight")
            time.sleep(0.01)
        answers.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [201] * 4
    assert len({answer.json()["secret"] for answer in answers}) == 1


# --- lists and use ----------------------------------------------------------------------------------------------------


def pages(http: TestClient, size: int) -> Iterator[dict[str, Any]]:
    token: str | None = ""
    while token is not None:
        page = http.get("/v1/keys", params={"page_size": size} | ({"page_token": token} if token else {})).json()
        assert len(page["items"]) <= size
        yield from page["items"]
        token = page["next_page_token"]


def test_pages_and_states(api: Api, keeper: TestClient) -> None:
    made = [make(keeper, name=str(number)).json() for number in range(5)]
    keeper.delete(f"/v1/keys/{made[2]['id']}")
    assert [key["name"] for key in pages(keeper, 2)][:5] == ["4", "3", "2", "1", "0"]
    assert [key["name"] for key in keeper.get("/v1/keys?state=revoked").json()["items"]] == ["2"]
    assert "2" not in [key["name"] for key in keeper.get("/v1/keys?state=active").json()["items"]]


def test_when_a_key_was_last_used_is_written_now_and_then(
    api: Api, keeper: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(keeper).json()
    shown = keeper.get(f"/v1/keys/{made['id']}").json()
    using(api, made["secret"]).get("/v1/models")
    assert keeper.get(f"/v1/keys/{made['id']}").json() == shown, "no write for a request"

    def fail(*_: Any) -> None:
        raise OperationalError("UPDATE", {}, Exception("connection refused"))

    use = api.app.state.key_use
    with monkeypatch.context() as broken:
        broken.setattr("api.auth.note_use", fail)
        with pytest.raises(OperationalError):
            use.write(api.services.engine)
    use.write(api.services.engine)
    assert keeper.get(f"/v1/keys/{made['id']}").json()["last_used_at"] is not None
    use.write(api.services.engine)  # of the request just now


def test_a_server_that_stops_notes_what_was_used(api: Api) -> None:
    app = create_app(api.settings)
    with key_client(app, "ann", "read", name="used") as http:
        assert http.get("/v1/models").status_code == 200
    with reading(api.services.engine) as session:
        used = session.scalars(select(ApiKey).where(ApiKey.name == "used")).one()
        assert used.last_used_at is not None
