"""Datasets that are fetched in their check: what their record says, who else may have them, and what stops it."""

from __future__ import annotations

import errno
import hashlib
import io
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
import structlog.testing
from PIL import Image
from sqlalchemy import select

from store import uploads
from store.artifacts import ArtifactStore
from store.columns import now_utc
from store.database import reading, transaction
from store.errors import StorageUnavailable
from store.records import Dataset, OutboxMessage
from store.settings import Settings
from tests.worker.house import FAKE_CHILD, House, wait_for
from tests.worker.source_server import Served, Server
from worker.attempt import fetch_dataset
from worker.context import Context, make_context
from worker.inspection import check_upload, fetch_source
from worker.workdir import work_directory

TEXT = b"fine" * 10_000
SHA256 = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture
def open_house(allowing: Settings, server: Server) -> Iterator[House]:
    server.files["/set.zip"] = Served(TEXT)
    context = make_context(allowing, name="here:1", command=FAKE_CHILD)
    yield House(context)
    context.engine.dispose()


def take(context: Context, dataset_id: str) -> None:
    """What the workers do with it: one fetches, another checks."""
    fetch_source(context, dataset_id)
    check_upload(context, dataset_id)


def dataset_of(house: House, dataset_id: str) -> Dataset:
    found = house.upload(dataset_id)
    assert isinstance(found, Dataset)
    return found


def refusal_of(house: House, dataset_id: str) -> tuple[str, str]:
    found = house.upload(dataset_id)
    assert found.state == "refused"
    assert found.refusal is not None
    return found.refusal["code"], found.refusal["message"]


def test_what_was_fetched_is_stored_and_recorded(open_house: House, server: Server) -> None:
    dataset_id = open_house.source(f"{server.url}/set.zip")
    take(open_house.context, dataset_id)
    found = dataset_of(open_house, dataset_id)
    assert (found.state, found.refusal, found.sha256, found.bytes) == ("ready", None, SHA256, len(TEXT))
    assert (found.filename, found.uri) == ("set.zip", f"{server.url}/set.zip")
    assert found.summary is not None
    assert found.summary["content"] == TEXT.decode(), "the child was given the file"
    assert open_house.context.storage.read_bytes(SHA256) == TEXT
    assert list(open_house.context.work_root.iterdir()) == []


def test_it_is_never_fetched_again(open_house: House, server: Server) -> None:
    """A job has the bytes of the check, whatever is there by now."""
    dataset_id = open_house.source(f"{server.url}/set.zip")
    take(open_house.context, dataset_id)
    server.files.clear()
    with work_directory(open_house.context.work_root, "job") as workdir:
        inputs = fetch_dataset(open_house.context, dataset_of(open_house, dataset_id), workdir)
        assert inputs.path is not None
        assert inputs.path.read_bytes() == TEXT
    assert (inputs.uri, inputs.sha256) == (f"{server.url}/set.zip", SHA256)
    assert len(server.asked) == 1


def test_without_a_sha256_each_is_a_dataset_of_its_own(open_house: House, server: Server) -> None:
    first, second = (open_house.source(f"{server.url}/set.zip") for _ in range(2))
    assert first != second, "what is there may have changed"


def test_a_pinned_one_is_known_before_it_is_fetched(open_house: House, server: Server) -> None:
    first = open_house.source(f"{server.url}/set.zip", SHA256)
    assert open_house.source(f"{server.url}/elsewhere.zip", SHA256) == first
    assert open_house.source(f"{server.url}/set.zip", SHA256, "parquet") != first
    assert open_house.source(f"{server.url}/set.zip", "0" * 64) != first
    take(open_house.context, first)
    assert open_house.upload(first).state == "ready"
    assert open_house.source(f"{server.url}/set.zip", SHA256) == first


def test_an_upload_is_known_by_what_was_fetched_and_the_other_way_round(
    open_house: House, server: Server, tmp_path: Path
) -> None:  # fmt: skip
    fetched = open_house.source(f"{server.url}/set.zip")
    take(open_house.context, fetched)

    def upload() -> tuple[Dataset, bool]:
        with transaction(open_house.context.engine) as session:
            return uploads.create_dataset(
                session, owner="me", sha256=SHA256, bytes=len(TEXT), filename="mine.zip", format="image_folder",
                options={},
            )  # fmt: skip

    dataset, new = upload()
    assert (dataset.id, new) == (fetched, False)
    assert open_house.source(f"{server.url}/set.zip", SHA256) == fetched
    again = open_house.source(f"{server.url}/set.zip")
    assert again != fetched
    take(open_house.context, again)
    assert open_house.upload(again).state == "ready", "two records of the same bytes may be"
    assert upload()[0].id == fetched


def test_one_that_is_refused_and_posted_from_elsewhere_is_fetched_from_there(
    open_house: House, server: Server
) -> None:  # fmt: skip
    dataset_id = open_house.source(f"{server.url}/no.zip", SHA256)
    take(open_house.context, dataset_id)
    assert refusal_of(open_house, dataset_id)[0] == "source_not_found"
    assert open_house.source(f"{server.url}/set.zip", SHA256) == dataset_id
    take(open_house.context, dataset_id)
    assert dataset_of(open_house, dataset_id).state == "ready"
    assert dataset_of(open_house, dataset_id).uri.endswith("/set.zip")


def test_one_that_is_refused_and_uploaded_needs_no_source(
    open_house: House, server: Server, tmp_path: Path
) -> None:  # fmt: skip
    dataset_id = open_house.source(f"{server.url}/no.zip", SHA256)
    take(open_house.context, dataset_id)
    (tmp_path / "mine").write_bytes(TEXT)
    open_house.context.storage.put_file(tmp_path / "mine")
    with transaction(open_house.context.engine) as session:
        dataset, new = uploads.create_dataset(
            session, owner="me", sha256=SHA256, bytes=len(TEXT), filename="mine.zip", format="image_folder", options={}
        )
        assert (dataset.id, dataset.uri, new) == (dataset_id, "upload", False)
    take(open_house.context, dataset_id)
    assert open_house.upload(dataset_id).state == "ready"


@pytest.mark.parametrize(
    ("path", "sha256", "code"),
    [
        ("/no.zip", None, "source_not_found"),
        ("/moved.zip", None, "source_refused"),
        ("/set.zip", "0" * 64, "checksum_mismatch"),
        ("/large.zip", None, "source_too_large"),
        ("/cut.zip", None, "source_unavailable"),
    ],
)
def test_refusals_are_told(
    open_house: House, server: Server, path: str, sha256: str | None, code: str
) -> None:  # fmt: skip
    server.files["/moved.zip"] = Served(status=302, headers={"Location": "https://127.0.0.1/x"})
    server.files["/large.zip"] = Served(b"", headers={"Content-Length": str(2**50)}, length=False)
    server.files["/cut.zip"] = Served(TEXT, breaks=[10] * 20)
    dataset_id = open_house.source(f"{server.url}{path}", sha256)
    take(open_house.context, dataset_id)
    assert refusal_of(open_house, dataset_id)[0] == code
    found = dataset_of(open_house, dataset_id)
    assert (found.sha256, found.bytes, found.pinned_sha256) == (None, 0, sha256)


def test_a_worker_that_allows_less_refuses(house: House) -> None:
    dataset_id = house.source("https://data.example.com/set.zip")
    take(house.context, dataset_id)
    found = house.upload(dataset_id)
    assert found.refusal is not None
    assert found.refusal["code"] == "source_refused"
    assert "BILLHOOK_DATASET_HOSTS" in found.refusal["faults"][0]["expected"]


@pytest.mark.parametrize("error", [StorageUnavailable("away"), OSError(errno.ENOSPC, "full")], ids=["storage", "disk"])
def test_the_source_is_not_to_blame_for_storage_or_disk(
    open_house: House, server: Server, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:  # fmt: skip
    def away(*_: object) -> None:
        raise error

    monkeypatch.setattr(ArtifactStore, "put_hashed", away)
    dataset_id = open_house.source(f"{server.url}/set.zip")
    take(open_house.context, dataset_id)
    found = open_house.upload(dataset_id)
    assert (found.state, found.check_count, found.sha256) == ("checking", 0, None)


def in_the_middle(house: House, server: Server) -> tuple[str, threading.Thread]:
    """A fetch that hangs after 10 KiB, in a thread."""
    server.files["/set.zip"].stalls_at = 10_240
    dataset_id = house.source(f"{server.url}/set.zip")
    thread = threading.Thread(target=take, args=(house.context, dataset_id))
    thread.start()
    wait_for(lambda: bool(server.sent) and server.sent[0] >= 10_240)
    return dataset_id, thread


def test_a_slow_fetch_keeps_its_lease(open_house: House, server: Server) -> None:
    dataset_id, thread = in_the_middle(open_house, server)
    first = open_house.upload(dataset_id).check_expires_at
    assert first is not None
    wait_for(lambda: (open_house.upload(dataset_id).check_expires_at or first) > first)
    with transaction(open_house.context.engine) as session:
        assert uploads.claim_check(session, dataset_id, fetching=True) is None, "nobody else may have it"
    server.released.set()
    thread.join(20)
    assert open_house.upload(dataset_id).state == "ready"


def rung_for(house: House, dataset_id: str) -> tuple[str, str]:
    with reading(house.context.engine) as session:
        message = session.scalars(select(OutboxMessage).where(OutboxMessage.subject_id == dataset_id)).one()
        return message.topic, message.queue


def test_a_check_opens_no_connection(open_house: House, server: Server) -> None:
    """Its slot is for what is there already: a slow source would keep all uploads from theirs."""
    dataset_id = open_house.source(f"{server.url}/set.zip")
    check_upload(open_house.context, dataset_id)
    assert (server.asked, rung_for(open_house, dataset_id)) == ([], ("fetch_dataset", "fetch"))
    fetch_source(open_house.context, dataset_id)
    found = dataset_of(open_house, dataset_id)
    assert (found.state, found.sha256, found.check_token, found.check_count) == ("checking", SHA256, None, 0)
    assert rung_for(open_house, dataset_id) == ("inspect_dataset", "inspect")
    assert open_house.next_ring(dataset_id) <= now_utc()
    fetch_source(open_house.context, dataset_id)
    assert len(server.asked) == 1
    check_upload(open_house.context, dataset_id)
    assert open_house.upload(dataset_id).state == "ready"


def test_an_upload_of_what_is_being_fetched_is_checked_at_once(
    open_house: House, server: Server, tmp_path: Path
) -> None:
    server.files["/set.zip"].stalls_at = 10_240
    dataset_id = open_house.source(f"{server.url}/set.zip", SHA256)
    thread = threading.Thread(target=fetch_source, args=(open_house.context, dataset_id))
    thread.start()
    wait_for(lambda: bool(server.sent) and server.sent[0] >= 10_240)
    (tmp_path / "mine").write_bytes(TEXT)
    open_house.context.storage.put_file(tmp_path / "mine")
    with transaction(open_house.context.engine) as session:
        uploads.create_dataset(
            session, owner="me", sha256=SHA256, bytes=len(TEXT), filename="mine.zip", format="image_folder", options={}
        )
    check_upload(open_house.context, dataset_id)
    assert open_house.upload(dataset_id).state == "ready"
    thread.join(20)
    assert not thread.is_alive(), "its lease is lost"
    found = dataset_of(open_house, dataset_id)
    assert (found.state, found.refusal, found.filename) == ("ready", None, "mine.zip")


def test_a_worker_that_stops_gives_it_back(open_house: House, server: Server) -> None:
    dataset_id, thread = in_the_middle(open_house, server)
    open_house.context.stopping.set()
    thread.join(20)
    assert not thread.is_alive()
    found = open_house.upload(dataset_id)
    assert (found.state, found.check_count, found.check_token) == ("checking", 0, None)
    open_house.context.stopping.clear()
    server.files["/set.zip"].stalls_at = None
    take(open_house.context, dataset_id)
    assert open_house.upload(dataset_id).state == "ready"


def test_a_deleted_dataset_stops_it(open_house: House, server: Server) -> None:
    dataset_id, thread = in_the_middle(open_house, server)
    with transaction(open_house.context.engine) as session:
        uploads.delete(session, Dataset, "me", dataset_id)
    thread.join(20)
    assert not thread.is_alive()
    assert not open_house.context.storage.exists(SHA256)
    assert list(open_house.context.work_root.iterdir()) == []


def test_nothing_secret_is_logged(
    open_house: House, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    logged = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[logged], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("worker", "store") and hasattr(module, "log"):
            monkeypatch.setattr(module, "log", logger)
    server.files["/set.zip?version=hidden"] = Served(TEXT, breaks=[10])
    dataset_id = open_house.source(f"{server.url}/set.zip?version=hidden")
    take(open_house.context, dataset_id)
    assert open_house.upload(dataset_id).state == "ready"
    told = repr(logged.entries)
    assert "/set.zip" in told
    assert "hidden" not in told


# --- the real child --------------------------------------------------------------------------------------------------


def images() -> list[bytes]:
    found = []
    for number in range(20):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def as_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, image in enumerate(images()):
            archive.writestr(f"{'ab'[number % 2]}/{number:02}.png", image)
    return buffer.getvalue()


def as_parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": images(), "label": ["a", "b"] * 10}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("make", [as_zip, as_parquet])
def test_images_are_read_in_the_real_child(allowing: Settings, server: Server, make: Callable[[], bytes]) -> None:
    name, format = ("set.zip", "image_folder") if make is as_zip else ("set.parquet", "parquet")
    server.files[f"/{name}"] = Served(make(), breaks=[100])
    roomy = allowing.model_copy(update={"memory_limit_bytes": 2**33, "lease_seconds": 60, "heartbeat_seconds": 1})
    context = make_context(roomy, name="here:1")
    house = House(context)
    dataset_id = house.source(f"{server.url}/{name}", format=format)
    take(context, dataset_id)
    found = dataset_of(house, dataset_id)
    context.engine.dispose()
    assert (found.state, found.refusal) == ("ready", None)
    assert found.summary is not None
    assert (found.summary["classes"], found.summary["images"]) == (["a", "b"], 20)
    assert found.summary["sha256"] == found.sha256
