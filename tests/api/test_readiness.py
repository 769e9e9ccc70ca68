"""`/readyz`: what each check means, what takes a server out of service and what does not, and that nothing hangs it."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from sqlalchemy import text

from api.app import create_app
from api.bounded_probe import Probe
from api.readiness import FRESH_SECONDS, OVERDUE_SECONDS, Check, Pulses, Readiness
from store import migrate, outbox
from store.artifacts import ArtifactStore
from store.columns import now_utc
from store.database import connect, transaction
from store.migrate import revisions
from store.settings import Settings
from tests.api.conftest import Api, problem
from tests.proxy import Proxy
from tests.servers import address_of, need
from tests.store.conftest import postgres_url

__all__ = ["postgres_url"]  # a fixture
BROKERS = {
    "redis": os.environ.get("BILLHOOK_TEST_REDIS", "redis://127.0.0.1:6379/0"),
    "rabbitmq": os.environ.get("BILLHOOK_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//"),
}
SOON = 10.0
"""Far more than a probe takes, far less than what it asks may hang."""


def checks_of(settings: Settings, artifacts: Any = None) -> dict[str, Check]:
    readiness = Readiness(settings, artifacts or ArtifactStore(settings.storage_url))
    began = time.monotonic()
    found = asyncio.run(readiness.checks())
    assert time.monotonic() - began < SOON
    assert {check.name for check in found} == {*FRESH_SECONDS, "loops"}
    return {check.name: check for check in found}


@contextmanager
def silent() -> Iterator[int]:
    """The port of a server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# --- the answer ------------------------------------------------------------------------------------------------------


def test_ready(api: Api) -> None:
    (api.settings.data_dir / "queue" / "messages").mkdir(parents=True)
    answer = api.nobody.get("/readyz")
    assert answer.status_code == 200
    document = answer.json()
    assert document["status"] == "ready"
    assert {check["name"]: check["state"] for check in document["checks"]} == dict.fromkeys(
        ["database", "storage", "broker", "queue", "disk", "loops"], "ok"
    )
    assert str(api.settings.data_dir) not in answer.text


def test_degraded_is_no_reason_to_be_taken_out_of_service(api: Api) -> None:
    document = api.nobody.get("/readyz").json()
    assert document["status"] == "degraded"
    (broker,) = [check for check in document["checks"] if check["state"] == "degraded"]
    assert broker["name"] == "broker"
    assert "worker" in broker["detail"]


def test_all_that_has_failed_is_said_at_once(settings: Settings) -> None:
    """And nothing of where the database and the storage are, nor of the password."""

    async def ask() -> httpx.Response:
        url = f"postgresql+psycopg://someone:geheim@127.0.0.1:{free_port()}/records"
        folder = settings.data_dir / "artifacts"
        folder.mkdir(exist_ok=True)
        app = create_app(settings.model_copy(update={"database_url": url}))
        folder.rmdir()
        folder.write_text("no folder any more")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/readyz")

    answer = asyncio.run(ask())
    document = problem(answer, 503, "not_ready")
    assert [fault["pointer"] for fault in document["faults"]] == ["/database", "/storage"]
    assert answer.headers["retry-after"]
    for secret in ("geheim", "someone", "127.0.0.1", str(settings.data_dir)):
        assert secret not in answer.text


# --- each check ------------------------------------------------------------------------------------------------------


def test_a_database_that_says_nothing_is_not_waited_for(settings: Settings) -> None:
    with silent() as port:
        changed = settings.model_copy(update={"database_url": f"postgresql+psycopg://a:b@127.0.0.1:{port}/c"})
        found = checks_of(changed)
    assert found["database"].state == "failed"
    assert found["storage"].state == "ok"


def test_a_postgresql(settings: Settings, postgres_url: str) -> None:
    changed = settings.model_copy(update={"database_url": postgres_url})
    assert checks_of(changed)["database"] == Check("database", "failed", "does not answer, or has no schema")
    engine = connect(postgres_url)
    migrate.upgrade(engine)
    engine.dispose()
    assert checks_of(changed)["database"].state == "ok"


def test_an_old_schema_is_not_ready(settings: Settings) -> None:
    engine = connect(settings.database_url)
    migrate.downgrade(engine, revisions()[1])
    engine.dispose()
    found = checks_of(settings)["database"]
    assert found.state == "failed"
    assert found.detail == f"is at revision {revisions()[1]} and must be migrated to {revisions()[0]}"


def test_a_newer_schema_keeps_the_old_servers_in_service(settings: Settings) -> None:
    engine = connect(settings.database_url)
    with transaction(engine) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    assert checks_of(settings)["database"].state == "degraded"


def test_no_database_at_all(settings: Settings, tmp_path: Path) -> None:
    changed = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/nowhere/billhook.db"})
    assert checks_of(changed)["database"].state == "failed"


class Hanging:
    """A storage that does not come back."""

    def __init__(self) -> None:
        self.asked = 0
        self.go_on = threading.Event()

    def ping(self) -> None:
        self.asked += 1
        self.go_on.wait(60)


def test_a_storage_that_hangs_is_asked_once_however_many_want_to_know(settings: Settings) -> None:
    storage = Hanging()
    readiness = Readiness(settings, storage)  # type: ignore[arg-type]  # a fake at the port

    async def ask() -> list[list[Check]]:
        return list(await asyncio.gather(*(readiness.checks() for _ in range(20))))

    began = time.monotonic()
    try:
        found = asyncio.run(ask()) + asyncio.run(ask())
    finally:
        storage.go_on.set()
    assert time.monotonic() - began < SOON
    assert storage.asked == 1
    assert {check.state for checks in found for check in checks if check.name == "storage"} == {"failed"}


@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker(settings: Settings, kind: str) -> None:
    url = BROKERS[kind]
    found = Check("broker", "degraded", "")
    for _ in range(10):  # a busy machine may take longer than the check waits
        if found.state != "ok":
            found = checks_of(settings.model_copy(update={"broker_url": url}))["broker"]
    if found.state != "ok" and os.environ.get("CI") != "true":
        pytest.skip(f"no {kind} to be had")
    assert found == Check("broker", "ok", "answers")


@pytest.mark.parametrize("kind", BROKERS)
def test_a_broker_is_told_nothing_before_it_has_shown_who_it_is(settings: Settings, tmp_path: Path, kind: str) -> None:
    """By a certificate of the authority that the settings name, as the workers ask of it."""
    url, authority = need(BROKERS[kind]), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    scheme, _, rest = url.partition("://")
    host, port = address_of(url)
    for name, state in (("localhost", "ok"), ("elsewhere.example.com", "degraded")):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(server)
        with Proxy((host, port), server) as proxy:
            behind = f"{scheme}s://{rest}".replace(f"{host}:{port}", f"localhost:{proxy.port}")
            changed = settings.model_copy(update={"broker_url": behind, "broker_ca_file": tmp_path / "ca.pem"})
            found = Check("broker", "degraded", "")
            for _ in range(10 if state == "ok" else 1):  # a busy machine may take longer than the check waits
                if found.state != state or state != "ok":
                    found = checks_of(changed)["broker"]
        assert found.state == state


def test_a_folder_that_workers_share(settings: Settings, tmp_path: Path) -> None:
    changed = settings.model_copy(update={"broker_url": f"filesystem://{tmp_path}/shared"})
    assert checks_of(changed)["broker"].state == "degraded"
    (tmp_path / "shared" / "messages").mkdir(parents=True)
    assert checks_of(changed)["broker"] == Check("broker", "ok", "is a folder")


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
@pytest.mark.parametrize("how", ["silent", "closed"])
def test_without_its_broker_the_service_takes_jobs(settings: Settings, scheme: str, how: str) -> None:
    with silent() as port:
        url = f"{scheme}://someone:geheim@127.0.0.1:{port if how == 'silent' else free_port()}/"
        found = checks_of(settings.model_copy(update={"broker_url": url}))
    assert found["broker"].state == "degraded"
    assert found["database"].state == found["storage"].state == "ok"


def test_messages_that_nobody_publishes(settings: Settings) -> None:
    engine = connect(settings.database_url)
    with transaction(engine) as session:
        outbox.add(session, "run", "job_1", "cpu", now_utc(), delay=-2 * OVERDUE_SECONDS)
    engine.dispose()
    found = checks_of(settings)["queue"]
    assert found.state == "degraded"
    assert "is there no worker running?" in found.detail


def test_a_full_disk_refuses_uploads_only(settings: Settings) -> None:
    found = checks_of(settings.model_copy(update={"min_free_bytes": 2**62}))["disk"]
    assert found.state == "degraded"


def test_a_loop_that_does_not_come_round() -> None:
    pulses = Pulses()
    pulses.expect("reaper", 60)
    assert pulses.check().state == "ok"
    pulses.expect("sweep", -1)
    assert pulses.check() == Check("loops", "degraded", "did not come round in time: sweep")


# --- probes ----------------------------------------------------------------------------------------------------------


def counting(fail: bool = False) -> tuple[list[int], Callable[[], int]]:
    asked: list[int] = []

    def ask() -> int:
        asked.append(1)
        if fail:
            raise ValueError("no")
        return len(asked)

    return asked, ask


def test_an_answer_is_good_for_a_while() -> None:
    asked, ask = counting()
    probe = Probe(ask, good_seconds=60)
    assert [asyncio.run(probe.answer(SOON)) for _ in range(3)] == [1, 1, 1]
    assert len(asked) == 1
    probe = Probe(ask, good_seconds=0)
    assert [asyncio.run(probe.answer(SOON)) for _ in range(2)] == [2, 3]


def test_so_is_a_failure() -> None:
    asked, ask = counting(fail=True)
    probe = Probe(ask, good_seconds=60)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            asyncio.run(probe.answer(SOON))
    assert len(asked) == 1


def test_who_gives_up_does_not_spoil_it_for_the_others_and_a_hung_one_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    probe = Probe(lambda: go_on.wait(60), good_seconds=60)
    with pytest.raises(TimeoutError):
        asyncio.run(probe.answer(0.05))

    async def both() -> bool:
        waiting = asyncio.create_task(probe.answer(SOON))
        await asyncio.sleep(0.05)
        go_on.set()
        return await waiting

    assert asyncio.run(both()) is True
    asked, ask = counting()
    never = threading.Event()
    probe = Probe(lambda: ask() if asked or (not asked.append(1) and never.wait(60)) else 0, good_seconds=60)  # type: ignore[func-returns-value]
    with pytest.raises(TimeoutError):
        asyncio.run(probe.answer(0.05))
    monkeypatch.setattr("api.bounded_probe.GIVEN_UP_SECONDS", 0.0)
    assert asyncio.run(probe.answer(SOON)) == 2
    never.set()
