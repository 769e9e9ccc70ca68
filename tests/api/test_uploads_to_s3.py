"""Uploads and downloads where the storage is a real S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import httpx
import pytest

from store import artifacts, storages
from store.settings import Settings
from tests.api.conftest import Api, nothing_is_left, problem
from tests.api.test_broken_uploads import Broken, more
from tests.s3_server import BUCKET, PART_BYTES, S3

CONTENT = os.urandom(650_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KEY = f"models/sha256/{SHA256[:2]}/{SHA256}"


@pytest.fixture
def settings(settings: Settings, s3: S3, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(artifacts, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(artifacts, "CHUNK", PART_BYTES)
    monkeypatch.setattr("api.request_log.DRAIN_SECONDS", 0.1)
    return settings.model_copy(update={"storage_url": f"s3://{BUCKET}/models"})


def upload(api: Api, form: bool) -> httpx.Response:
    if form:
        return api.http.post("/v1/models", files={"file": ("m.onnx", CONTENT)})
    return api.http.post("/v1/models", params={"filename": "m.onnx"}, content=CONTENT)


@pytest.mark.parametrize("form", [True, False])
def test_an_upload(api: Api, s3: S3, form: bool) -> None:
    answer = upload(api, form)
    assert (answer.status_code, answer.json()["sha256"]) == (201, SHA256)
    assert (s3.keys(), s3.pending()) == ([KEY], [])
    assert list(api.settings.uploads_dir.iterdir()) == []
    asked = len(s3.asked())
    assert upload(api, form).status_code == 200
    assert [line["method"] for line in s3.asked()[asked:]] == ["HEAD"], "it is not sent again"


@pytest.mark.parametrize("pattern", ["HEAD ", "POST .*uploads", "PUT .*partNumber=4", "POST .*uploadId"])
def test_a_storage_that_fails_in_the_middle(api: Api, s3: S3, pattern: str) -> None:
    s3.fail(pattern, status=500, times=storages.RETRIES + 1)
    answer = upload(api, False)
    problem(answer, 503, "storage_unavailable")
    assert answer.headers["retry-after"]
    assert nothing_is_left(api)
    assert (s3.keys(), s3.pending()) == ([], [])
    assert upload(api, False).status_code == 201, "and again, once it is well"


@pytest.mark.parametrize("sent", [0, 1, 300_000, 649_999])
def test_a_connection_that_breaks(api: Api, s3: S3, sent: int) -> None:
    asked = len(s3.asked())
    broken = Broken(api, {"content-length": str(len(CONTENT))})
    status, document = broken.post(*([more(CONTENT[:sent])] if sent else []))
    assert (status, document["code"]) == (400, "upload_incomplete")
    assert s3.asked()[asked:] == [], "nothing is sent to S3 before the upload is complete"
    assert nothing_is_left(api)


def test_a_transfer_that_breaks_ends_the_answer_visibly(api: Api, s3: S3, tmp_path: Path) -> None:
    job_id = api.job()
    api.succeed(job_id, {"pruned.onnx": ("application/octet-stream", CONTENT)}, tmp_path)
    address = f"/v1/jobs/{job_id}/artifacts/pruned.onnx"
    assert api.http.get(address).content == CONTENT
    answer = api.http.get(address, headers={"Range": "bytes=90000-310000"})
    assert (answer.status_code, answer.content) == (206, CONTENT[90_000:310_001])
    s3.fail("GET .*sha256", status=500, skip=2, times=100)
    connection = Broken(api, {}, "")
    connection.scope |= {"method": "GET", "path": address, "raw_path": address.encode()}
    with pytest.raises(RuntimeError, match="already started"):  # the server closes the connection then, too early
        asyncio.run(_get(connection))
    assert connection.sent[0]["status"] == 200
    assert sum(len(message.get("body", b"")) for message in connection.sent) == 2 * PART_BYTES


async def _get(connection: Broken) -> None:
    async def receive() -> dict[str, object]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        connection.sent.append(message)

    await connection.api.app(connection.scope, receive, send)
