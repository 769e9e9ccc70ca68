"""The check of an upload, in this process: what is stored of it, and what it is not blamed for."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sqlalchemy.exc import OperationalError
from torch import nn

from core.graph.architectures.small_cnn import SmallCNN
from store import uploads
from store.artifacts import ArtifactStore
from store.columns import now_utc
from store.database import transaction
from store.errors import ArtifactMissing, StorageUnavailable
from store.records import Dataset, Model
from store.settings import Settings
from store.uploads import Check
from tests.core.graph.exported import saved
from tests.worker.house import FAKE_CHILD, House, wait_for
from tests.worker.reports import GRAPH, PNG
from tests.worker.test_supervisor import children_of
from worker import answers
from worker.context import make_context
from worker.inspection import check_upload, heart_of


def test_a_summary_that_is_none_is_not_stored(house: House) -> None:
    model_id = house.model("badly described")
    check_upload(house.context, model_id)
    model = house.upload(model_id)
    assert (model.state, model.summary) == ("refused", None)
    assert model.refusal is not None
    assert (model.refusal["code"], model.refusal["faults"][0]["pointer"]) == ("output_refused", "/sha256")


def test_the_graph_of_a_model_is_stored(house: House) -> None:
    model_id = house.model("fine")
    check_upload(house.context, model_id)
    model = house.upload(model_id)
    assert isinstance(model, Model)
    assert model.state == "ready"
    assert model.graph_sha256 is not None
    content = house.context.storage.read_bytes(model.graph_sha256)
    assert (json.loads(content), model.graph_bytes) == (GRAPH, len(content))
    assert model.summary is not None
    assert model.summary["graph"] == GRAPH["totals"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("no graph", "without a description"),
        ("empty graph", "without a description"),
        ("odd graph", "no description of a graph"),
        ("not JSON", "no description of a graph"),
        ("linked graph", "not a plain file"),
    ],
)
def test_a_graph_that_is_none_is_not_stored(house: House, content: str, says: str) -> None:
    model_id = house.model(content)
    check_upload(house.context, model_id)
    model = house.upload(model_id)
    assert isinstance(model, Model)
    assert (model.state, model.graph_sha256) == ("refused", None)
    assert model.refusal is not None
    assert model.refusal["code"] == "output_refused"
    assert says in model.refusal["message"]


def test_a_graph_that_is_too_large_is_not_stored(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_REPORT_BYTES", 10)
    model_id = house.model("fine")
    check_upload(house.context, model_id)
    model = house.upload(model_id)
    assert model.refusal is not None
    assert "larger than 10 bytes" in model.refusal["message"]


def test_a_graph_that_cannot_be_stored_just_now(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise StorageUnavailable("away")

    model_id = house.model("fine")
    monkeypatch.setattr(ArtifactStore, "put_file", away)
    check_upload(house.context, model_id)
    assert (house.upload(model_id).state, house.upload(model_id).check_count) == ("checking", 0)
    monkeypatch.undo()
    check_upload(house.context, model_id)
    assert house.upload(model_id).state == "ready"


def test_the_contact_sheet_of_a_dataset_is_stored(house: House) -> None:
    dataset_id = house.dataset()
    check_upload(house.context, dataset_id)
    dataset = house.upload(dataset_id)
    assert isinstance(dataset, Dataset)
    assert dataset.state == "ready"
    assert dataset.contact_sheet_sha256 is not None
    assert house.context.storage.read_bytes(dataset.contact_sheet_sha256) == PNG
    assert dataset.contact_sheet_bytes == len(PNG)


@pytest.mark.parametrize(("seed", "says"), [(1, "contact sheet is no PNG"), (2, "not a plain file")])
def test_a_contact_sheet_that_is_none_is_not_stored(house: House, seed: int, says: str) -> None:
    dataset_id = house.dataset(splits={"seed": seed})
    check_upload(house.context, dataset_id)
    dataset = house.upload(dataset_id)
    assert isinstance(dataset, Dataset)
    assert (dataset.state, dataset.contact_sheet_sha256) == ("refused", None)
    assert dataset.refusal is not None
    assert (dataset.refusal["code"], says in dataset.refusal["message"]) == ("output_refused", True)


def test_a_dataset_of_which_no_contact_sheet_could_be_made(house: House) -> None:
    dataset_id = house.dataset(splits={"seed": 3})
    check_upload(house.context, dataset_id)
    dataset = house.upload(dataset_id)
    assert isinstance(dataset, Dataset)
    assert (dataset.state, dataset.contact_sheet_sha256, dataset.contact_sheet_bytes) == ("ready", None, None)


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


def test_a_defect_of_ours_refuses_the_upload_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("secret words")

    model_id = house.model("fine")
    monkeypatch.setattr(ArtifactStore, "get_file", broken)
    check_upload(house.context, model_id)
    model = house.upload(model_id)
    assert (model.state, model.check_token) == ("refused", None)
    assert model.refusal == {
        "code": "internal_error", "faults": [],
        "message": "an unexpected ValueError in the worker ended the check; its log has the details",
    }  # fmt: skip


def test_a_database_that_is_away_decides_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease runs out, and another worker takes the check."""

    def away(*_: object) -> None:
        raise OperationalError("", {}, Exception("no connection"))

    model_id = house.model("fine")
    monkeypatch.setattr(ArtifactStore, "get_file", away)
    check_upload(house.context, model_id)
    model = house.upload(model_id)
    assert (model.state, model.check_count) == ("checking", 1)
    assert model.check_token is not None


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


def test_a_check_that_takes_too_long_names_its_own_setting(settings: Settings) -> None:
    context = make_context(
        settings.model_copy(update={"inspect_seconds_limit": 1}), name="here:1", command=FAKE_CHILD
    )  # fmt: skip
    house = House(context)
    model_id = house.model("hang")
    check_upload(context, model_id)
    refusal = house.upload(model_id).refusal
    context.engine.dispose()
    assert refusal is not None
    assert (refusal["code"], refusal["faults"]) == ("time_limit", [])
    assert refusal["message"] == "its time is over: 1 s were left to it (BILLHOOK_INSPECT_SECONDS_LIMIT)"


# --- the real child --------------------------------------------------------------------------------------------------


@pytest.fixture
def real(settings: Settings) -> Iterator[House]:
    """A house whose child imports torch and reads the upload."""
    roomy = settings.model_copy(update={"memory_limit_bytes": 2**33, "lease_seconds": 60, "heartbeat_seconds": 1})
    context = make_context(roomy, name="here:1")
    yield House(context)
    context.engine.dispose()


def test_a_dataset_past_its_share_of_memory_is_checked_from_disk(real: House) -> None:
    """What it says is the same; without disk, it is refused with what would help."""
    found = []
    for settings in ({}, {"dataset_memory_bytes": 0}, {"dataset_memory_bytes": 0, "disk_limit_bytes": 2**21}):
        context = dataclasses.replace(real.context, settings=real.context.settings.model_copy(update=settings))
        house = House(context)
        path = house.settings.data_dir / "upload"
        x = np.random.default_rng(0).integers(0, 256, (200, 80, 80), dtype=np.uint8)
        np.savez(path.with_suffix(".npz"), x_train=x, y_train=np.arange(200) % 2)
        sha256, size = context.storage.put_file(path.with_suffix(".npz"))
        with transaction(context.engine) as session:
            dataset, _ = uploads.create_dataset(
                session, owner=f"me {len(found)}", sha256=sha256, bytes=size, filename="a.npz", format="npz", options={}
            )
        check_upload(context, dataset.id)
        found.append(house.upload(dataset.id))
    assert [dataset.state for dataset in found] == ["ready", "ready", "refused"]
    assert found[0].summary == found[1].summary
    assert found[2].refusal is not None
    assert found[2].refusal["code"] == "dataset_too_large"
    assert "BILLHOOK_DISK_LIMIT_BYTES" in found[2].refusal["faults"][0]["expected"]


def exported(module: nn.Module, folder: Path) -> bytes:
    """The `.pt2` of a network for two grey 8 x 8 images."""
    saved(module, folder / "m.pt2", torch.randn(2, 1, 8, 8))
    return (folder / "m.pt2").read_bytes()


def test_a_pt2_is_read_in_the_child(real: House, tmp_path: Path) -> None:
    model_id = real.model(exported(SmallCNN(in_channels=1).eval(), tmp_path), "pt2")
    check_upload(real.context, model_id)
    model = real.upload(model_id)
    assert (model.state, model.refusal) == ("ready", None)
    assert model.summary is not None
    assert (model.summary["format"], model.summary["opset"]) == ("pt2", 20)
    assert model.summary["inputs"][0]["shape"] == ["batch", 1, 8, 8]
    assert isinstance(model, Model)
    assert model.graph_sha256 is not None


def test_the_built_in_digits_have_a_contact_sheet(real: House) -> None:
    dataset_id = real.dataset()
    check_upload(real.context, dataset_id)
    dataset = real.upload(dataset_id)
    assert isinstance(dataset, Dataset)
    assert (dataset.state, dataset.refusal) == ("ready", None)
    assert dataset.summary is not None
    assert dataset.summary["warnings"] == []
    assert dataset.contact_sheet_sha256 is not None
    with Image.open(io.BytesIO(real.context.storage.read_bytes(dataset.contact_sheet_sha256))) as image:
        image.load()
        assert (image.format, image.mode) == ("PNG", "L")


def test_a_pt2_that_is_none_is_refused(real: House, tmp_path: Path) -> None:
    class Turned(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cummax(x, 1).values

    content = exported(nn.Sequential(SmallCNN(in_channels=1), Turned()).eval(), tmp_path)
    for given, code, says in (
        (content, "operator_unknown", "operator aten.cummax.default at node 'cummax'"),
        (content[: len(content) // 2], "model_unreadable", "truncated, damaged or no zip archive"),
        (pickle.dumps({"weights": 1.0}), "model_unreadable", "no zip archive"),
    ):
        model_id = real.model(given, "pt2")
        check_upload(real.context, model_id)
        model = real.upload(model_id)
        assert model.state == "refused"
        assert model.refusal is not None
        assert (model.refusal["code"], says in model.refusal["message"]) == (code, True), model.refusal


def test_a_name_that_timm_does_not_have_is_refused(real: House, tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(3, 2)}, tmp_path / "weights")
    content = (tmp_path / "weights").read_bytes()
    model_id = real.model(content, "safetensors", architecture="timm:resnet_of_nobody", input_shape=[3, 32, 32])
    check_upload(real.context, model_id)
    model = real.upload(model_id)
    assert model.state == "refused"
    assert model.refusal is not None
    assert model.refusal["code"] == "model_refused"
    assert model.refusal["faults"][0]["pointer"] == "/architecture"
