"""The check of an upload, in this process: what is stored of it, and what it is not blamed for."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

import pytest

from store import uploads
from store.artifacts import ArtifactStore
from store.columns import now_utc
from store.database import transaction
from store.errors import ArtifactMissing, StorageUnavailable
from store.uploads import Check
from tests.worker.house import House, wait_for
from tests.worker.test_supervisor import children_of
from worker.inspection import check_upload, heart_of


def test_a_summary_that_is_none_is_not_stored(house: House) -> None:
    model_id = house.model("badly described")
    check_upload(house.context, model_id)
    model = house.upload(model_id)
    assert (model.state, model.summary) == ("refused", None)
    assert model.refusal is not None
    assert (model.refusal["code"], model.refusal["faults"][0]["pointer"]) == ("output_refused", "/sha256")


@pytest.mark.parametrize(
    "error", [StorageUnavailable("away"), OSError(errno.ENOSPC, "the disk is full")], ids=["storage", "disk"]
)
def test_an_upload_is_not_to_blame_for_storage_or_disk(
    house: House, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def away(*_: object) -> None:
        raise error

    model_id = house.model("fine")
    monkeypatch.setattr(ArtifactStore, "get_file", away)
    for _ in range(4):
        check_upload(house.context, model_id)
    model = house.upload(model_id)
    assert (model.state, model.check_count) == ("checking", 0)
    assert 30 < (house.next_ring(model_id) - now_utc()).total_seconds() <= 60
    monkeypatch.undo()
    check_upload(house.context, model_id)
    assert house.upload(model_id).state == "ready"


def test_a_file_that_is_gone_while_another_worker_has_the_check(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    model_id = house.model("fine")

    def gone(*_: object) -> None:
        with transaction(house.context.engine) as session:
            session.get_one(type(house.upload(model_id)), model_id).check_token = "another"
        raise ArtifactMissing("gone")

    monkeypatch.setattr(ArtifactStore, "get_file", gone)
    check_upload(house.context, model_id)
    assert house.upload(model_id).state == "checking", "the other worker says what it finds"


def test_a_heartbeat_under_way_does_not_undo_a_death(house: House) -> None:
    model_id = house.model("fine")
    with transaction(house.context.engine) as session:
        check = uploads.claim_check(session, model_id)
    assert isinstance(check, Check)
    with transaction(house.context.engine) as session:
        uploads.release_check(session, check, died=True)
    assert heart_of(house.context, check)._beat() == "lost"
    with transaction(house.context.engine) as session:
        assert uploads.claim_check(session, model_id) is not None, "it may be taken at once"
    assert house.upload(model_id).check_count == 2


@pytest.mark.parametrize(("stopping", "deaths"), [(True, 0), (False, 1)])
def test_a_sigterm_to_all_processes_at_once_is_no_death(house: House, stopping: bool, deaths: int) -> None:
    model_id = house.model("hang")
    before = set(children_of(os.getpid()))
    thread = threading.Thread(target=check_upload, args=(house.context, model_id))
    thread.start()
    wait_for(lambda: bool(set(children_of(os.getpid())) - before))
    time.sleep(0.5)  # it is past its first lines, and so past its own handlers
    (pid,) = set(children_of(os.getpid())) - before
    os.kill(pid, signal.SIGTERM)
    if stopping:
        time.sleep(0.15)
        house.context.stopping.set()
    thread.join(10)
    model = house.upload(model_id)
    assert (model.state, model.check_count) == ("checking", deaths)
