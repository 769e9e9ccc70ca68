"""What holds for every storage: a local folder and a real S3 server. And what only S3 can do to us."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import obstore
import psutil
import pytest
from sqlalchemy import Engine

from store import artifacts as artifact_store
from store import storages
from store.artifacts import ArtifactStore
from store.columns import now_utc
from store.database import transaction
from store.errors import ArtifactCorrupt, ArtifactMissing, StorageUnavailable
from store.storages import open_storage
from store.sweep import GRACE, sweep
from store.uploads import create_model
from tests.s3_server import BUCKET, PART_BYTES, S3
from tests.store.conftest import OWNER

CONTENT = os.urandom(700_000)
LARGE_BYTES = 160 * 2**20
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Storage:
    """`replace` puts other bytes in the place of an object, behind our back."""

    artifacts: ArtifactStore
    replace: Callable[[str, bytes], None]


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(artifact_store, "CHUNK", 150_000)
    monkeypatch.setattr(artifact_store, "PART_BYTES", PART_BYTES)
    if request.param == "folder":
        folder = tmp_path / "artifacts"

        def replace(sha256: str, content: bytes) -> None:
            (folder / "sha256" / sha256[:2] / sha256).write_bytes(content)

        return Storage(ArtifactStore(f"file://{folder}"), replace)
    request.getfixturevalue("s3")

    def put(sha256: str, content: bytes) -> None:
        obstore.put(open_storage(f"s3://{BUCKET}/one/two/sha256"), f"{sha256[:2]}/{sha256}", content)

    return Storage(ArtifactStore(f"s3://{BUCKET}/one/two"), put)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    monkeypatch.setattr(artifact_store, "PART_BYTES", PART_BYTES)
    return ArtifactStore(f"s3://{BUCKET}/one/two")


async def _read(artifacts: ArtifactStore, start: int, end: int) -> list[bytes]:
    return [chunk async for chunk in artifacts.stream(SHA256, start, end)]


@pytest.mark.parametrize("way", ["put_file", "put_hashed", "take_over"])
def test_what_goes_in_comes_out(storage: Storage, file: Path, tmp_path: Path, way: str) -> None:
    artifacts = storage.artifacts
    assert not artifacts.exists(SHA256)
    assert artifacts.written(SHA256) is None
    for _ in range(2):  # again is harmless
        file.write_bytes(CONTENT)
        if way == "put_file":
            assert artifacts.put_file(file) == (SHA256, len(CONTENT))
        else:
            getattr(artifacts, way)(file, SHA256, len(CONTENT))
    assert artifacts.get_file(SHA256, tmp_path / "out") == len(CONTENT)
    assert (tmp_path / "out").read_bytes() == CONTENT == artifacts.read_bytes(SHA256)
    ((name, written),) = artifacts.list_hashes()
    assert name == SHA256
    assert abs(now_utc() - written) < timedelta(minutes=1)
    artifacts.delete(SHA256)
    artifacts.delete(SHA256)
    assert list(artifacts.list_hashes()) == []


def test_an_empty_object(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    sha256, size = storage.artifacts.put_file(tmp_path / "empty")
    assert (size, storage.artifacts.get_file(sha256, tmp_path / "out")) == (0, 0)


@pytest.mark.parametrize(("start", "end"), [(0, 700_000), (0, 1), (699_999, 700_000), (100, 500_000), (7, 7)])
def test_ranges_come_in_pieces(storage: Storage, file: Path, start: int, end: int) -> None:
    storage.artifacts.put_file(file)
    pieces = asyncio.run(_read(storage.artifacts, start, end))
    assert b"".join(pieces) == CONTENT[start:end]
    assert all(len(piece) <= 150_000 for piece in pieces)


def test_damage_is_noticed(storage: Storage, file: Path, tmp_path: Path) -> None:
    storage.artifacts.put_file(file)
    for content in (CONTENT[:-1] + b"?", CONTENT[:100], b""):
        storage.replace(SHA256, content)
        for read in (
            lambda: storage.artifacts.get_file(SHA256, tmp_path / "out"),
            lambda: storage.artifacts.read_bytes(SHA256),
        ):
            with pytest.raises(ArtifactCorrupt):
                read()
        assert not (tmp_path / "out").exists()
    with pytest.raises((ArtifactCorrupt, StorageUnavailable)):  # a reader is not left with less than was promised
        asyncio.run(_read(storage.artifacts, 0, len(CONTENT)))
    storage.replace(SHA256, b"short")
    storage.artifacts.put_file(file)
    assert storage.artifacts.read_bytes(SHA256) == CONTENT, "what has the wrong size is written again"


def test_what_is_not_there(storage: Storage, tmp_path: Path) -> None:
    for read in (
        lambda: storage.artifacts.get_file(SHA256, tmp_path / "out"),
        lambda: storage.artifacts.read_bytes(SHA256),
        lambda: asyncio.run(_read(storage.artifacts, 0, 10)),
    ):
        with pytest.raises(ArtifactMissing):
            read()
    assert list(tmp_path.glob(".fetch-*")) == []


def test_only_what_nothing_names_is_swept(storage: Storage, engine: Engine, file: Path, tmp_path: Path) -> None:
    storage.artifacts.ping()
    storage.artifacts.put_file(file)
    (tmp_path / "named").write_bytes(b"named")
    named, size = storage.artifacts.put_file(tmp_path / "named")
    with transaction(engine) as session:
        create_model(session, owner=OWNER, sha256=named, bytes=size, filename="m", format="onnx", options={})
    assert sweep(engine, storage.artifacts) == 0, "all are young"
    later = now_utc() + GRACE + timedelta(minutes=1)
    assert sweep(engine, storage.artifacts, later) == 1
    assert (storage.artifacts.exists(SHA256), storage.artifacts.exists(named)) == (False, True)


# --- S3 alone --------------------------------------------------------------------------------------------------------


def test_a_large_file_goes_in_parts_each_with_its_checksum(bucket: ArtifactStore, s3: S3, file: Path) -> None:
    bucket.put_file(file)
    parts = [asked for asked in s3.asked() if "partNumber" in asked["query"]]
    assert sorted(asked["bytes"] for asked in parts) == [PART_BYTES] * 7
    sums = {hashlib.sha256(CONTENT[start : start + PART_BYTES]).hexdigest() for start in range(0, 700_000, PART_BYTES)}
    assert {asked["headers"]["x-amz-content-sha256"] for asked in parts} == sums
    assert all("AKIAPUBLIC" in asked["headers"]["authorization"] for asked in parts)
    assert s3.keys() == [f"one/two/sha256/{SHA256[:2]}/{SHA256}"]
    assert s3.pending() == []


def test_variables_of_the_connection_hold(s3: S3, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that obstore reads itself, and those that it would forget for our time limits."""
    monkeypatch.setenv("AWS_CHECKSUM_ALGORITHM", "sha256")
    monkeypatch.setenv("AWS_USER_AGENT", "billhook-test")
    ArtifactStore(f"s3://{BUCKET}").put_file(file)
    (put,) = [asked for asked in s3.asked() if asked["method"] == "PUT" and SHA256 in asked["path"]]
    assert put["headers"]["x-amz-checksum-sha256"] == base64.b64encode(bytes.fromhex(SHA256)).decode()
    assert put["headers"]["user-agent"] == "billhook-test"


def test_a_very_large_file_has_no_more_parts_than_s3_takes(
    bucket: ArtifactStore, s3: S3, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact_store, "MAX_PARTS", 3)
    bucket.put_file(file)
    assert len([asked for asked in s3.asked() if "partNumber" in asked["query"]]) == 3
    assert bucket.read_bytes(SHA256) == CONTENT


@pytest.mark.parametrize("pattern", ["POST .*uploads", "PUT .*partNumber=3", "PUT .*partNumber=7", "POST .*uploadId"])
def test_a_storage_that_fails_in_the_middle_keeps_nothing(
    s3: S3, file: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setattr(artifact_store, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(storages, "RETRIES", 1)
    bucket = ArtifactStore(f"s3://{BUCKET}/one/two")
    s3.fail(pattern, status=500, times=100)
    with pytest.raises(StorageUnavailable) as caught:
        bucket.take_over(file, SHA256, len(CONTENT))
    assert s3.url not in caught.value.message
    assert (s3.keys(), s3.pending()) == ([], [])
    assert file.read_bytes() == CONTENT


def test_a_failure_that_passes_is_tried_again(bucket: ArtifactStore, s3: S3, file: Path, tmp_path: Path) -> None:
    for pattern in ("HEAD ", "POST .*uploads", "PUT .*partNumber=2", "POST .*uploadId", "GET .*sha256"):
        s3.fail(pattern, status=503)
    s3.fail("GET .*sha256", break_at=1_000)
    bucket.put_file(file)
    assert bucket.get_file(SHA256, tmp_path / "out") == len(CONTENT)
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_wrong_credentials(bucket: ArtifactStore, s3: S3, file: Path, tmp_path: Path) -> None:
    bucket.put_file(file)
    s3.authenticate(True)
    for call in (
        bucket.ping,
        lambda: bucket.exists(SHA256),
        lambda: bucket.get_file(SHA256, tmp_path / "out"),
        lambda: bucket.put_file(file),
        lambda: list(bucket.list_hashes()),
    ):
        with pytest.raises(StorageUnavailable) as caught:
            call()
        assert "secret" not in caught.value.message


def test_a_key_that_may_not_list_can_still_store(bucket: ArtifactStore, s3: S3, file: Path) -> None:
    """S3 says 403, not 404, of an object that is not there to whoever may not list the bucket."""
    s3.fail("HEAD ", status=403)
    bucket.put_file(file)
    assert bucket.exists(SHA256)


def test_a_server_that_is_away(bucket: ArtifactStore, s3: S3, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    away = ArtifactStore(f"s3://{BUCKET}")
    for call in (away.ping, lambda: away.exists(SHA256), lambda: away.put_file(file)):
        with pytest.raises(StorageUnavailable):
            call()


def test_a_server_that_does_not_answer_costs_seconds(monkeypatch: pytest.MonkeyPatch, s3: S3, file: Path) -> None:
    """It takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("store.artifacts.open_storage", lambda url, **_: open_storage(url, seconds=1))
        began = time.monotonic()
        with pytest.raises(StorageUnavailable):
            ArtifactStore(f"s3://{BUCKET}").put_file(file)
        assert time.monotonic() - began < 20
    assert storages.REQUEST_SECONDS <= 30, "nobody's request hangs for minutes"


def test_plain_http_only_where_it_is_allowed(s3: S3, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    with pytest.raises(StorageUnavailable):
        ArtifactStore(f"s3://{BUCKET}").put_file(file)
    assert not any(asked["method"] == "PUT" and SHA256 in asked["path"] for asked in s3.asked())


@pytest.mark.slow
def test_a_transfer_takes_no_more_memory_than_its_parts(s3: S3, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(LARGE_BYTES)
    bucket = ArtifactStore(f"s3://{BUCKET}")
    (tmp_path / "small").write_bytes(b"x")
    bucket.put_file(tmp_path / "small")  # connections, threads
    process = psutil.Process()
    before = process.memory_info().rss
    peak = before
    sha256 = "0" * 64

    def watch() -> None:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)

    async def both() -> None:
        putting = asyncio.create_task(asyncio.to_thread(bucket.put_hashed, path, sha256, path.stat().st_size))
        while not putting.done():
            watch()
            await asyncio.sleep(0.01)
        await putting
        async for _ in bucket.stream(sha256, 0, LARGE_BYTES):
            watch()

    asyncio.run(both())
    assert peak - before < 100 * 2**20
