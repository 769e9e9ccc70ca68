"""`billhook keys` and the clients' methods for keys, against the real API on a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import uvicorn

import billhook
from api.app import create_app
from billhook import retries
from store import keys
from store.database import transaction
from store.migrate import upgrade
from store.settings import Settings
from tests.client.command import Command
from tests.client.fake_server import KEY

NOW = datetime.now(UTC)
YEAR = timedelta(days=365)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an API where `KEY` has all scopes."""
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("data"), log_level="error"))
    engine = app.state.services.engine
    upgrade(engine)
    with transaction(engine) as session:
        keys.replace_key(session, KEY, owner="local", name="server")
    running = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        running.should_exit = True
        thread.join(20)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], server: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("BILLHOOK_SERVER", server)
    monkeypatch.setenv("BILLHOOK_KEY", KEY)
    return Command(capsys)


def test_a_new_key_stands_alone_on_stdout(run: Command, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run("keys", "add", "ci", "--scope", "read", "--expires", "90d", "--owner", "team")
    assert ran.code == 0
    secret = ran.out.removesuffix("\n")
    assert secret.startswith("bh_")
    assert len(secret.split()) == 1
    assert ": ci, of team, read, until 20" in ran.err
    assert secret not in ran.err
    with billhook.Client(server, secret) as client:
        assert list(client.list_models()) == []
        with pytest.raises(billhook.ApiError, match="lacks the scope"):
            client.create_key("other", ["read"])
    monkeypatch.setenv("BILLHOOK_KEY", secret)
    refused = run("keys", "list", "--json")
    assert (refused.code, refused.document["error"]["code"]) == (2, "scope_missing")


def test_the_document_of_a_new_key_holds_it(run: Command, server: str) -> None:
    ran = run("keys", "add", "pipeline", "--json")
    made = ran.document
    assert (made["scopes"], made["owner"], made["expires_at"]) == (["read", "write"], "local", None)
    assert "for good" in ran.err
    assert made["secret"] not in ran.err
    with billhook.Client(server, made["secret"]) as client:
        assert list(client.list_jobs()) == []
    shown = run("keys", "show", made["id"], "--json").document
    assert shown == {name: value for name, value in made.items() if name != "secret"} | {"last_used_at": None}


def test_listing_and_revoking(run: Command, server: str) -> None:
    made = run("keys", "add", "short lived", "--scope", "metrics", "--owner", "list-team", "--json").document
    table = run("keys", "list", "--owner", "list-team").out.splitlines()
    assert table[0].split() == ["id", "state", "name", "owner", "scopes", "ends", "last", "used"]
    assert [part.strip() for part in table[1].split("  ") if part.strip()] == [
        made["id"], "active", "short lived", "list-team", "metrics", "never", "-",
    ]  # fmt: skip
    assert run("keys", "revoke", made["id"]).out == f"{made['id']} was revoked\n"
    assert run("keys", "revoke", made["id"], "--json").document == {"revoked": made["id"]}, "again, that is no error"
    assert run("keys", "list", "--owner", "list-team", "--state", "active", "--json").document == []
    (revoked,) = run("keys", "list", "--owner", "list-team", "--state", "revoked", "--json").document
    assert revoked["revoked_at"] is not None
    assert "state: revoked" in run("keys", "show", made["id"]).out
    for command in ("show", "revoke"):
        assert run("keys", command, "key_none").code == 2
    assert run("keys", "list", "--state", "odd").code == 2


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("90d", NOW + timedelta(days=90)),
        ("2w", NOW + timedelta(days=14)),
        ("2060-01-31", datetime(2060, 1, 31).astimezone()),
        ("2060-01-31T12:00:00Z", datetime(2060, 1, 31, 12, tzinfo=UTC)),
        ("2060-01-31T12:00:00+05:30", datetime(2060, 1, 31, 6, 30, tzinfo=UTC)),
    ],
)
def test_when_a_key_ends(run: Command, text: str, end: datetime) -> None:
    made = run("keys", "add", "x", "--expires", text, "--json").document
    assert abs(datetime.fromisoformat(made["expires_at"]) - end) < timedelta(hours=1)  # since this was collected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--expires", "soon"], "neither 90d nor 12w"),
        (["--expires", "0d"], "/expires_in_days"),
        (["--expires", "2001-01-01"], "that time is over"),
        (["--scope", "root", "--owner", "Team A"], "/owner"),
    ],
)
def test_what_cannot_be_a_key_is_bad_usage(run: Command, arguments: list[str], says: str) -> None:
    ran = run("keys", "add", "x", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


def test_both_clients(server: str) -> None:
    with billhook.Client(server, KEY) as client:
        made = client.create_key("lib", ["read", "keys"], owner="lib-team", expires_at=NOW + YEAR)
        assert made.secret not in repr(made)
        assert made.expires_at == NOW + YEAR
        assert [key.id for key in client.list_keys(owner="lib-team", state="active")] == [made.id]
        assert client.get_key(made.id).created_by == made.created_by
        with pytest.raises(billhook.InputInvalid, match="time zone"):
            client.create_key("lib", expires_at=datetime(2060, 1, 1))
        with billhook.Client(server, made.secret) as team, pytest.raises(billhook.ApiError) as caught:
            team.create_key("more", ["write"], expires_in_days=3650)
        assert caught.value.code == "grant_refused"
        assert {fault.pointer for fault in caught.value.faults} == {"/scopes/0", "/expires_in_days"}
        client.revoke_key(made.id)
        assert client.get_key(made.id).state == "revoked"


def test_an_answer_that_is_lost_leaves_no_key_that_nobody_has(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.02)
    lost = []

    class Losing(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = super().handle_request(request)
            if request.method == "POST" and not lost:
                answer.read()
                lost.append(answer.json()["secret"])
                raise httpx.ReadError("lost")
            return answer

    with billhook.Client(server, KEY, transport=Losing()) as client:
        assert list(client.list_keys(owner="lost-team")) == []
        made = client.create_key("once", owner="lost-team")
        assert lost == [made.secret]
        assert [key.id for key in client.list_keys(owner="lost-team")] == [made.id]
