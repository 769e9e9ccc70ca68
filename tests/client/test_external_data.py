"""ONNX models with their weights in files beside them: sent as one zip."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from billhook.archive import local_file
from billhook.errors import InputInvalid
from billhook.external_data import data_files, model_file
from tests.client.either import Either
from tests.client.fake_server import FakeServer


def model(folder: Path, *locations: str) -> Path:
    """A model with a weight of its own, and one in each of `locations`."""
    weights = [helper.make_tensor("own", TensorProto.FLOAT, [3], bytes(12), raw=True)]
    for index, location in enumerate(locations):
        weight = TensorProto(
            name=f"w{index}", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL
        )
        for key, value in (("offset", "0"), ("location", location), ("length", "8")):
            weight.external_data.add(key=key, value=value)
        weights.append(weight)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy")
    made = helper.make_model(helper.make_graph([helper.make_node("Add", ["x", "own"], ["y"])], "g", [x], [y], weights))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.onnx").write_bytes(made.SerializeToString())
    return folder / "net.onnx"


def test_the_files_that_a_model_names(tmp_path: Path) -> None:
    assert data_files(model(tmp_path / "a")) == []
    assert data_files(model(tmp_path / "b", "net.onnx.data", "ä b", "net.onnx.data")) == ["net.onnx.data", "ä b"]


def test_as_onnx_writes_it(tmp_path: Path) -> None:
    onnx.save(onnx.load(model(tmp_path)), tmp_path / "saved.onnx", save_as_external_data=True,
              location="weights", size_threshold=0)  # fmt: skip
    assert data_files(tmp_path / "saved.onnx") == ["weights"]


def test_what_is_no_model_names_none(tmp_path: Path) -> None:
    whole = model(tmp_path, "data").read_bytes()
    rng = random.Random(0)
    for bad in (b"", b"PK\x03\x04", b"\xff" * 40, *(rng.randbytes(200) for _ in range(50))):
        (tmp_path / "bad.onnx").write_bytes(bad)
        assert data_files(tmp_path / "bad.onnx") == []
    for end in range(len(whole)):  # damaged anywhere: an answer in any case
        (tmp_path / "bad.onnx").write_bytes(whole[:end])
        assert data_files(tmp_path / "bad.onnx") in ([], ["data"])
    assert data_files(tmp_path / "missing.onnx") == []


@pytest.mark.parametrize("content", [bytes(2**25), b"\x08\x01" * 2**24], ids=["zeros", "fields without end"])
@pytest.mark.timeout(30)
def test_a_large_file_of_another_kind_is_soon_given_up(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert data_files(path) == []


def test_the_zip_is_the_same_every_time(tmp_path: Path) -> None:
    path = model(tmp_path / "a", "z.data", "b.data")
    for name in ("z.data", "b.data", "other.data"):
        (path.parent / name).write_bytes(name.encode() * 2)
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    made = model_file(path, first)
    assert made.sha256 == model_file(path, second).sha256
    with zipfile.ZipFile(made.path) as archive:
        assert archive.namelist() == ["net.onnx", "b.data", "z.data"]
        assert archive.read("z.data") == b"z.dataz.data"
        assert {item.compress_type for item in archive.infolist()} == {zipfile.ZIP_STORED}


def test_a_model_of_one_file_is_sent_as_it_is(tmp_path: Path) -> None:
    path = model(tmp_path)
    assert model_file(path, tmp_path / "unused") == local_file(path)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/weights", "..", "a\\b"])
def test_files_elsewhere_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(InputInvalid, match="only files in the same folder are taken"):
        model_file(model(tmp_path / "a", name), tmp_path)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match=r"keeps weights in 'net\.data', which is not in the same folder"):
        model_file(model(tmp_path, "net.data"), tmp_path)


def test_it_is_uploaded_once_and_cleaned_up(
    client: Either, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    path = model(tmp_path / "a", "net.data")
    (path.parent / "net.data").write_bytes(b"01234567")
    first = client.upload_model(path)
    assert first.filename == "net.zip"
    assert client.upload_model(path) == first
    assert fake.count("POST /v1/models") == 1
    (path.parent / "net.data").write_bytes(b"76543210")
    assert client.upload_model(path).id != first.id
    assert list(scratch.iterdir()) == []
