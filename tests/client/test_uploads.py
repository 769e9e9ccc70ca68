"""Models and datasets: uploaded once, by hash."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest

import billhook
from billhook.errors import ChecksumMismatch, UploadRefused
from billhook.operations import uploads
from core.job import DatasetOptions
from tests.client.either import Either
from tests.client.fake_server import FakeServer

MODELS, DATASETS, JOBS = "POST /v1/models", "POST /v1/datasets", "POST /v1/jobs"


def test_a_file_is_uploaded_once(client: Either, fake: FakeServer, model_file: Path) -> None:
    sent: list[tuple[int, int]] = []
    model = client.upload_model(model_file, on_bytes=lambda done, total: sent.append((done, total)))
    assert (model.state, model.filename, model.bytes) == ("ready", "model.onnx", model_file.stat().st_size)
    assert sent[-1] == (model.bytes, model.bytes)
    again = client.upload_model(model_file)
    assert again == model
    assert fake.count(MODELS) == 1
    other = client.upload_model(model_file, architecture="resnet20", input_shape=(3, 32, 32))
    assert other.id != model.id
    assert client.upload_model(model_file, architecture="resnet20", input_shape=(3, 32, 32)) == other
    assert fake.count(MODELS) == 2


def test_a_dataset_is_its_bytes_and_its_options(client: Either, fake: FakeServer, data_file: Path) -> None:
    plain = client.add_dataset(data_file)
    assert client.add_dataset(data_file, preprocess={}, splits={"test": 0.2}) == plain
    normed = client.add_dataset(data_file, preprocess={"mean": (0.5,), "std": [0.2]})
    assert normed.id != plain.id
    assert client.add_dataset(data_file, preprocess={"mean": [0.5], "std": [0.2], "layout": "NCHW"}) == normed
    assert fake.count(DATASETS) == 2
    assert normed.options["preprocess"]["mean"] == [0.5]


def test_the_servers_defaults_are_known() -> None:
    defaults = DatasetOptions().model_dump(mode="json")
    assert {name: dict(defaults[name]) for name in uploads.DATASET_DEFAULTS} == uploads.DATASET_DEFAULTS


def test_a_folder_is_uploaded_once_and_cleaned_up(
    client: Either, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).write_bytes(name.encode())
    first = client.add_dataset(tmp_path / "photos")
    assert first.filename == "photos.zip"
    assert client.add_dataset(str(tmp_path / "photos")) == first
    assert fake.count(DATASETS) == 1
    assert list(scratch.iterdir()) == []


def test_a_built_in_dataset(client: Either, fake: FakeServer) -> None:
    assert client.add_dataset("builtin:digits", splits={"seed": 3}).state == "ready"
    assert json.loads(fake.bodies[fake.log.index(DATASETS)]) == {"uri": "builtin:digits", "splits": {"seed": 3}}


@pytest.mark.parametrize(
    "uri", ["https://data.example.com/d.zip", "s3://sets/d.parquet", "file:///srv/sets/photos/", "ftp://a.com/d.zip"]
)
def test_what_the_server_is_to_fetch_is_not_read_here(client: Either, fake: FakeServer, uri: str) -> None:
    assert client.add_dataset(uri).state == "ready"
    assert json.loads(fake.bodies[fake.log.index(DATASETS)]) == {"uri": uri}, "the server says which are taken"


def test_a_reference_with_all_that_can_be_said_of_it(client: Either, fake: FakeServer) -> None:
    columns, splits = {"label": "coarse"}, {"seed": 3}
    client.add_dataset("s3://sets/d", columns=columns, splits=splits, format="parquet", sha256="AB" * 32)
    assert json.loads(fake.bodies[fake.log.index(DATASETS)]) == {
        "uri": "s3://sets/d", "columns": columns, "splits": splits, "format": "parquet", "sha256": "ab" * 32,
    }  # fmt: skip


def test_a_reference_that_is_refused_is_called_by_its_uri(client: Either, fake: FakeServer) -> None:
    fake.refusal = {"code": "source_not_found", "message": "there is no file", "faults": []}
    with pytest.raises(UploadRefused, match=r"https://a\.com/d\.zip was refused: there is no file") as caught:
        client.add_dataset("https://a.com/d.zip")
    assert caught.value.code == "source_not_found"


def test_columns_are_options_of_an_upload(client: Either, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1")
    plain = client.add_dataset(path)
    named = client.add_dataset(path, columns={"label": "coarse"})
    assert named.id != plain.id
    assert client.add_dataset(path, columns={"label": "coarse", "image": None}) == named
    assert client.add_dataset(path, columns={}) == plain
    assert fake.count(DATASETS) == 2


def test_a_file_of_another_sha256_is_not_sent(client: Either, fake: FakeServer, data_file: Path) -> None:
    digest = hashlib.sha256(data_file.read_bytes()).hexdigest()
    with pytest.raises(ChecksumMismatch, match=digest):
        client.add_dataset(data_file, sha256="0" * 64)
    assert fake.count(DATASETS) == 0
    assert client.add_dataset(data_file, sha256=digest.upper()).sha256 == digest


def test_a_large_file_is_never_in_memory(client: Either, fake: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(96 * 2**20)
    tracemalloc.start()
    client.upload_model(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fake.models
    assert peak < 24 * 2**20


def test_a_refused_upload_says_why(client: Either, fake: FakeServer, model_file: Path) -> None:
    fault = {"pointer": "/nodes/3", "message": "Einsum is unknown", "expected": "Conv, …"}
    fake.refusal = {"code": "operator_unknown", "message": "an operator is unknown", "faults": [fault]}
    with pytest.raises(billhook.UploadRefused, match=r"model\.onnx was refused: an operator is unknown") as caught:
        client.upload_model(model_file)
    assert caught.value.code == "operator_unknown"
    assert caught.value.faults[0].pointer == "/nodes/3"
    fake.refusal = None  # the server was upgraded: the same file is sent, and checked, again
    assert client.upload_model(model_file).state == "ready"


def test_a_refused_folder_is_called_what_it_is_called_here(client: Either, fake: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"1")
    fake.refusal = {"code": "dataset_refused", "message": "one class only", "faults": []}
    with pytest.raises(billhook.UploadRefused) as caught:
        client.add_dataset(tmp_path / "photos")
    assert caught.value.message == f"{tmp_path / 'photos'} was refused: one class only"


def test_a_file_that_changes_meanwhile(client: Either, fake: FakeServer, model_file: Path) -> None:
    fake.wrong_upload_hash = True
    with pytest.raises(billhook.ChecksumMismatch, match="changed while it was uploaded"):
        client.upload_model(model_file)


def test_an_upload_whose_answer_is_lost_is_sent_again(client: Either, fake: FakeServer, model_file: Path) -> None:
    fake.failures[MODELS] = ["drop", (503, {}), "lose"]
    assert client.upload_model(model_file).state == "ready"
    assert fake.count(MODELS) == 4
    assert len(fake.models) == 1


def test_no_file_is_found_before_anything_is_sent(client: Either, fake: FakeServer, tmp_path: Path) -> None:
    with pytest.raises(billhook.InputInvalid, match="there is no file"):
        client.upload_model(tmp_path / "nowhere.onnx")
    assert fake.log == []


def test_lists_are_walked_page_by_page(client: Either, fake: FakeServer, tmp_path: Path) -> None:
    fake.page_size = 3
    for number in range(8):
        fake.add_upload("models", f"{number:064}", 1, {})
    assert [model.sha256 for model in client.list_models()] == [f"{number:064}" for number in range(7, -1, -1)]
    fake.log.clear()
    assert len(client.list_models(limit=4)) == 4
    assert fake.count("GET /v1/models") == 2
    assert client.list_models(sha256=f"{5:064}")[0].sha256 == f"{5:064}"


def test_deleting(client: Either, fake: FakeServer, model_file: Path) -> None:
    model = client.upload_model(model_file)
    fake.failures[f"DELETE /v1/models/{model.id}"] = ["lose"]
    client.delete_model(model.id)  # gone at the second try: the first one did it
    assert fake.models == {}
    with pytest.raises(billhook.ApiError) as caught:
        client.delete_model(model.id)
    assert caught.value.status == 404
