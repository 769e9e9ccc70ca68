"""A service's records and files in a folder of the test's own, with short leases and a fake child."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from store import migrate
from store.database import connect
from store.records import Dataset
from store.settings import Settings
from tests.worker.house import FAKE_CHILD, House
from tests.worker.source_server import CONTENT, Served, Server, serving
from worker.context import make_context
from worker.sources import Fetched, fetch, transfer


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of the current schema."""
    path = tmp_path_factory.mktemp("database") / "billhook.db"
    engine = connect(f"sqlite:///{path}")
    migrate.upgrade(engine)
    engine.dispose()  # the last connection folds the write-ahead log into the file
    return path


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Settings:
    shutil.copy(migrated, tmp_path / "billhook.db")
    return Settings(
        _env_file=None, data_dir=tmp_path, lease_seconds=2, heartbeat_seconds=0.4, reaper_seconds=0.3,
        relay_seconds=0.1, cancel_grace_seconds=0.5, memory_limit_bytes=2**28, disk_limit_bytes=2**24,
    )  # fmt: skip


@pytest.fixture
def house(settings: Settings) -> Iterator[House]:
    context = make_context(settings, name="here:1", command=FAKE_CHILD)
    yield House(context)
    context.engine.dispose()


# --- worker processes ------------------------------------------------------------------------------------------------

StartWorker = Callable[..., subprocess.Popen[bytes]]
FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


def variables(settings: Settings, **changes: object) -> dict[str, str]:
    """The environment that gives another process these settings."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set} | changes
    return {f"BILLHOOK_{name.upper()}": str(value) for name, value in given.items()}


@pytest.fixture
def start_worker(house: House, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers, each in a process group of its own. They are killed at the end if they are still there."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*queues: str, **changes: object) -> subprocess.Popen[bytes]:
        number = len(started) + 1
        environment = os.environ | variables(house.settings, **changes)
        with (tmp_path / f"worker{number}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, str(FAKE_WORKER), f"host:{number}", *(queues or ("cpu", "inspect"))],
                env=environment | {"PYTHONPATH": str(Path.cwd())}, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        started.append(worker)
        return worker

    yield start
    for number, worker in enumerate(started, 1):
        if worker.poll() is None:
            worker.kill()
        worker.wait(10)
        print(f"--- worker {number}\n{(tmp_path / f'worker{number}.log').read_text()}")


# --- where datasets are fetched from ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[Server]:
    """An https server of localhost, which has /images.zip."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    with serving(tls) as server:
        server.files["/images.zip"] = Served(CONTENT)
        yield server


@pytest.fixture
def allowing(
    server: Server, settings: Settings, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Settings that allow the server, at its private address and with its own authority. What broke off is tried again
    soon."""
    monkeypatch.setattr(transfer, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(transfer, "LONGEST_WAIT_SECONDS", 0.02)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return settings.model_copy(
        update={
            "dataset_hosts": (server.url.removeprefix("https://"),), "dataset_private_addresses": True,
            "dataset_ca_file": ca_file, "upload_idle_seconds": 5,
        }
    )  # fmt: skip


Fetch = Callable[..., Fetched]


@pytest.fixture
def get(server: Server, allowing: Settings, tmp_path: Path) -> Fetch:
    """get("/path", sha256=…, order=…, **settings): what is fetched into `tmp_path / "got"`."""

    def get(path: str = "/images.zip", sha256: str | None = None, order: Any = lambda: None, **changes: Any) -> Fetched:
        dataset = record(f"{server.url}{path}", sha256)
        return fetch(allowing.model_copy(update=changes), dataset, tmp_path / "got", order)

    return get


def record(uri: str, sha256: str | None = None, format: str = "image_folder") -> Dataset:
    return Dataset(
        id="ds_1", owner="me", sha256=None, filename="", format=format, options={}, identity="x", bytes=0, uri=uri,
        pinned_sha256=sha256, created_at=None,
    )  # type: ignore[arg-type] # fmt: skip
