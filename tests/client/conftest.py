from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from billhook import retries
from billhook.operations import jobs, uploads
from tests.client.command import Command
from tests.client.either import Either
from tests.client.fake_server import KEY, FakeServer


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server or key of the person who runs the tests."""
    for name in ("BILLHOOK_SERVER", "BILLHOOK_KEY", "BILLHOOK_INSECURE_HTTP", "BILLHOOK_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BILLHOOK_DATA_DIR", str(tmp_path / "no-server"))


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def known_server(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """The fake server, named by the environment."""
    monkeypatch.setenv("BILLHOOK_SERVER", fake.url)
    monkeypatch.setenv("BILLHOOK_KEY", KEY)
    return fake


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not really a network" * 1000)
    return path


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    path.write_bytes(b"not really data" * 1000)
    return path


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Either:
    monkeypatch.setattr(jobs, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(uploads, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.02)
    return Either(request.param, fake.url)


@pytest.fixture
def job_id(client: Either) -> str:
    job: str = client.submit_job("mdl_1", ["ds_1"], "half").id
    return job


@pytest.fixture
def finished(client: Either, job_id: str) -> str:
    client.wait_for_job(job_id)
    return job_id


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], known_server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Command:
    monkeypatch.setattr(jobs, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(uploads, "POLL_SECONDS", 0.02)
    monkeypatch.chdir(tmp_path)
    return Command(capsys)
