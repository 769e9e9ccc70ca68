"""A dataset in a bucket of a real S3 server; what breaks off and lies is in `test_source_s3.py`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url

from store.settings import Settings
from tests.s3_server import BUCKET, S3
from tests.worker.conftest import record
from worker.sources import Fetched, fetch, transfer
from worker.sources.errors import SourceNotFound, SourceRefused

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_dataset_in_a_bucket(s3: S3, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.sources.s3.PIECE_BYTES", 100_000)
    monkeypatch.setattr("worker.sources.s3.RETRIES", 0)
    monkeypatch.setattr(transfer, "FIRST_WAIT_SECONDS", 0.01)
    obstore.put(from_url(f"s3://{BUCKET}", client_options={"allow_http": True}), "sets/images.zip", CONTENT)
    allowed = settings.model_copy(update={"dataset_buckets": (BUCKET,), "upload_idle_seconds": 20})

    def get(key: str) -> Fetched:
        return fetch(allowed, record(f"s3://{BUCKET}/{key}", SHA256), tmp_path / "got", lambda: None)

    s3.fail("GET .*images", break_at=50_000, skip=1)
    s3.fail("GET .*images", status=503)
    assert get("sets/images.zip") == Fetched(SHA256, len(CONTENT), "images.zip")
    assert (tmp_path / "got").read_bytes() == CONTENT
    with pytest.raises(SourceNotFound):
        get("sets/none.zip")
    s3.authenticate(True)
    with pytest.raises(SourceRefused) as caught:
        get("sets/images.zip")
    assert "does not let the worker read" in caught.value.message
