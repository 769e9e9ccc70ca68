"""Datasets in buckets, over the protocol, from a server on this machine that breaks off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.settings import Settings
from tests.worker.conftest import record
from tests.worker.source_server import CONTENT, SHA256, Served, Server, serving
from worker.sources import Fetched, fetch, s3, transfer
from worker.sources.errors import (
    ChecksumMismatch,
    SourceError,
    SourceNotFound,
    SourceRefused,
    SourceTooLarge,
    SourceUnavailable,
    Stopped,
)

CHANGED = {"Last-Modified": "Mon, 05 Oct 2026 10:00:00 GMT"}
KEY = "/bucket-1/sets/images%201.zip"
Fetch = Callable[..., Fetched]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as server:
        server.files[KEY] = Served(CONTENT, headers=dict(CHANGED))
        for name, value in {
            "AWS_ENDPOINT_URL": server.url, "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "AKIAPUBLIC",
            "AWS_SECRET_ACCESS_KEY": "very-secret", "AWS_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(transfer, "FIRST_WAIT_SECONDS", 0.01)
        monkeypatch.setattr(transfer, "LONGEST_WAIT_SECONDS", 0.02)
        monkeypatch.setattr(s3, "PIECE_BYTES", 40_000)
        monkeypatch.setattr(s3, "RETRIES", 0)
        yield server


@pytest.fixture
def get(server: Server, settings: Settings, tmp_path: Path) -> Fetch:
    def get(
        uri: str = "s3://bucket-1/sets/images%201.zip",
        sha256: str | None = None,
        order: Any = lambda: None,
        **changes: Any,
    ) -> Fetched:
        allowed = settings.model_copy(update={"dataset_buckets": ("bucket-1",), "upload_idle_seconds": 5, **changes})
        return fetch(allowed, record(uri, sha256), tmp_path / "got", order)

    return get


def gets(server: Server) -> list[str | None]:
    return [headers.get("range") for method, _, headers in server.asked if method == "GET"]


def test_an_object_piece_by_piece(server: Server, get: Fetch, tmp_path: Path) -> None:
    assert get(sha256=SHA256) == Fetched(SHA256, len(CONTENT), "images 1.zip")
    assert (tmp_path / "got").read_bytes() == CONTENT
    assert gets(server) == ["bytes=0-39999", "bytes=40000-79999", "bytes=80000-99999"]
    assert all(headers["if-match"] == '"one"' for method, _, headers in server.asked if method == "GET")
    assert all("AKIAPUBLIC" in headers["authorization"] for _, _, headers in server.asked), "signed"


def test_what_breaks_off_is_gone_on_with(server: Server, get: Fetch, tmp_path: Path) -> None:
    server.files[KEY].breaks = [40_000, 10_000, 40_000, 5]
    assert get().sha256 == SHA256
    assert (tmp_path / "got").read_bytes() == CONTENT
    assert gets(server)[:3] == ["bytes=0-39999", "bytes=40000-79999", "bytes=40000-79999"]
    assert gets(server).count("bytes=0-39999") == 1


def test_an_object_that_changes_meanwhile(server: Server, get: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    served = server.files[KEY]
    served.content = bytes(90_000)
    take = transfer.Sink.take

    def change(sink: transfer.Sink, data: bytes) -> None:
        take(sink, data)
        served.content, served.etag = CONTENT, '"two"'

    monkeypatch.setattr(transfer.Sink, "take", change)
    assert get().sha256 == SHA256


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (404, SourceNotFound, "there is no object s3://bucket-1/sets/images 1.zip"),
        (403, SourceRefused, "does not let the worker read"),
        (401, SourceRefused, "does not let the worker read"),
        (500, SourceUnavailable, "in 10 tries"),
    ],
)
def test_other_answers(server: Server, get: Fetch, status: int, kind: type[SourceError], says: str) -> None:
    server.files[KEY] = Served(b"<Error>very-secret</Error>", status=status)
    with pytest.raises(kind) as caught:
        get()
    assert says in caught.value.message
    assert "secret" not in caught.value.message
    assert server.url not in caught.value.message


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_worker_without_credentials_does_not_try_again(
    server: Server, get: Fetch, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:  # fmt: skip
    """The machine is asked, which in a cloud may have a role; this one has none."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", server.url)
    for path in ("/latest/api/token", "/latest/meta-data/iam/security-credentials/"):
        server.files[path] = Served(b"very-secret", status=status)
    with pytest.raises(SourceRefused) as caught:
        get()
    assert "no credentials in its AWS_ variables" in caught.value.message
    assert len(server.asked) < transfer.TRIES
    assert not any("bucket-1" in path for _, path, _ in server.asked)


def test_what_is_refused(server: Server, get: Fetch) -> None:
    with pytest.raises(SourceTooLarge):
        get(max_upload_bytes=99_999)
    assert gets(server) == [], "by its size, before anything is sent"
    with pytest.raises(ChecksumMismatch):
        get(sha256="0" * 64)
    with pytest.raises(SourceRefused) as caught:
        get("s3://bucket-2/a.zip")
    assert "BILLHOOK_DATASET_BUCKETS" in str(caught.value.faults[0].expected)


def test_it_ends_when_it_is_not_wanted_any_more(server: Server, get: Fetch) -> None:
    def ask() -> str | None:
        return "lost" if len(gets(server)) > 1 else None

    with pytest.raises(Stopped):
        get(order=ask)
    assert len(gets(server)) == 2
