"""The application on a fresh SQLite database and a local storage, with clients of three keys."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select

from api.app import create_app
from api.services import Services
from core.recipe import parse_recipe
from store import leases, uploads
from store.database import connect, reading, transaction
from store.keys import add_key, new_secret
from store.migrate import upgrade
from store.records import Dataset, Model
from store.settings import Settings

with warnings.catch_warnings():
    # starlette would like httpx's successor; the client of this project is built on httpx, and one of them is enough
    warnings.filterwarnings("ignore", message="Using `httpx`")
    from starlette.testclient import TestClient

RECIPE: dict[str, Any] = {
    "version": 1,
    "steps": [{"method": "filter_norm", "target": {"params": 0.5}, "fine_tune": {"epochs": 1}}],
}
MODEL_SUMMARY = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 1, 8, 8]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["n", 10]}],
    "params": 1234,
}
DATASET_SUMMARY = {"classes": [str(digit) for digit in range(10)], "image_shape": [1, 8, 8], "images": 1797}


@dataclass
class Api:
    """The application under test. `http` has all scopes, `reader` the same owner's reading key, `other` is not hers."""

    app: FastAPI
    settings: Settings
    http: TestClient
    reader: TestClient
    other: TestClient
    nobody: TestClient

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    def key(self, owner: str, *scopes: str, **given: Any) -> TestClient:
        """A client with a new key; `given` as for `add_key`."""
        return key_client(self.app, owner, *scopes, **given)

    # --- what a worker would do --------------------------------------------------------------------------------------

    def check(
        self, subject_id: str, *, summary: dict[str, Any] | None = None, error: dict[str, Any] | None = None,
        graph: tuple[str, int] | None = None, contact_sheet: tuple[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Check an upload: `ready` with a summary (a model's graph, a dataset's contact sheet), else `refused`."""
        with transaction(self.services.engine) as session:
            check = uploads.claim_check(session, subject_id)
            assert check is not None
            if error is not None:
                uploads.set_refused(session, check, error)
            else:
                uploads.set_ready(session, check, summary or {}, graph=graph, contact_sheet=contact_sheet)

    def model(self, content: bytes = b"a model", *, ready: bool = True) -> str:
        answer = self.http.post("/v1/models", params={"filename": "m.onnx"}, content=content)
        assert answer.status_code in (200, 201), answer.text
        if ready and answer.json()["state"] == "checking":
            self.check(answer.json()["id"], summary=MODEL_SUMMARY)
        return str(answer.json()["id"])

    def dataset(self, *, ready: bool = True, **options: Any) -> str:
        answer = self.http.post("/v1/datasets", json={"uri": "builtin:digits"} | options)
        assert answer.status_code in (200, 201), answer.text
        if ready and answer.json()["state"] == "checking":
            self.check(answer.json()["id"], summary=DATASET_SUMMARY)
        return str(answer.json()["id"])

    def submit(self, **given: Any) -> httpx.Response:
        body = {"model": self.model(), "datasets": [self.dataset()], "recipe": RECIPE} | given
        answer: httpx.Response = self.http.post("/v1/jobs", json=body)
        return answer

    def job(self, **given: Any) -> str:
        answer = self.submit(**given)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def succeed(self, job_id: str, files: dict[str, tuple[str, bytes]], folder: Path) -> None:
        """Do the job: `files` are name -> (media type, content)."""
        with transaction(self.services.engine) as session:
            lease = leases.claim(session, job_id, "host:1", "cpu")
            assert lease is not None
            for name, (media_type, content) in files.items():
                (folder / "content").write_bytes(content)
                sha256, size = self.services.artifacts.put_file(folder / "content")
                leases.add_artifact(session, lease, name, "output", sha256, size, media_type)
            results = {"ratios": {"params": 0.5, "accuracy_drop": 0.0}, "target_met": True, "requirements_met": True}
            leases.finish(session, lease, "succeeded", results)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database to copy."""
    path = tmp_path_factory.mktemp("database") / "billhook.db"
    engine = connect(f"sqlite:///{path}")
    upgrade(engine)
    engine.dispose()
    return path


@pytest.fixture
def settings(tmp_path: Path, database: Path) -> Settings:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(database, data / "billhook.db")
    return Settings(
        data_dir=data, max_upload_bytes=1_000_000, max_json_bytes=20_000, min_free_bytes=0, log_level="error",
        watch_seconds=0.02, upload_idle_seconds=1, key_seconds=0,
    )  # fmt: skip


@pytest.fixture
def api(settings: Settings) -> Iterator[Api]:
    app = create_app(settings)
    with key_client(app, "ann", "read", "write") as http:
        reader, other = key_client(app, "ann", "read"), key_client(app, "bob", "read", "write")
        yield Api(app, settings, http, reader, other, TestClient(app))


def key_client(app: FastAPI, owner: str, *scopes: str, **given: Any) -> TestClient:
    secret = new_secret()
    with transaction(app.state.services.engine) as session:
        add_key(session, secret, owner=owner, scopes=scopes, **{"name": "test"} | given)
    return TestClient(app, headers={"Authorization": f"Bearer {secret}"})


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer, checked for what every one must be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["code"] == code, document
    assert document["status"] == status
    assert document["type"] == f"urn:billhook:problem:{code}"
    assert document["title"]
    assert document["detail"]
    assert document["instance"].endswith(answer.headers["x-request-id"])
    for fault in document["faults"]:
        assert set(fault) == {"pointer", "message", "expected"}
        assert fault["pointer"] == "" or fault["pointer"].startswith("/")
    for leak in ("Traceback", ".py", "/tmp", "site-packages"):
        assert leak not in answer.text
    return document


def pointers(document: dict[str, Any]) -> set[str]:
    return {fault["pointer"] for fault in document["faults"]}


def nothing_is_left(api: Api) -> bool:
    """No record, no temporary file, no stored object."""
    with reading(api.services.engine) as session:
        rows = [*session.scalars(select(Model)), *session.scalars(select(Dataset))]
    folder = api.settings.uploads_dir
    return (
        not rows and not (folder.exists() and list(folder.iterdir())) and not list(api.services.artifacts.list_hashes())
    )


assert parse_recipe(RECIPE)
