"""Weights in files beside the model: a zip comes in, two files go out, and nothing outside them is opened."""

from __future__ import annotations

import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto

from core.errors import ModelRefused, ModelTooLarge, ModelUnreadable
from core.graph import external_data
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.export import check_parity, write_onnx
from core.graph.external_data import parts, unpack
from core.graph.groups import channel_groups
from core.graph.importers import read_onnx
from tests.core.graph.onnx_texts import model

NODES = "a = Conv<pads=[1,1,1,1]>(x, w1, b1)  c = Relu(a)  y = Conv(c, w2)"
WEIGHTS: dict[str, tuple[int, ...] | np.ndarray] = {"w1": (16, 4, 3, 3), "b1": (16,), "w2": (8, 16, 1, 1)}


def in_two(folder: Path) -> tuple[ModelProto, bytes]:
    """A model whose larger weights are in a file, and that file's bytes."""
    made = model(NODES, weights=WEIGHTS)
    onnx.save_model(
        made, folder / "made.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=128
    )
    light = onnx.load(folder / "made.onnx", load_external_data=False)
    content = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").unlink()
    return light, content


def packed(folder: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "upload.onnx"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # zipfile's word on names that are there twice
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_of_a_model_and_its_data_is_the_model(method: int, tmp_path: Path) -> None:
    light, content = in_two(tmp_path)
    assert sum(tensor.data_location == TensorProto.EXTERNAL for tensor in light.graph.initializer) == 2
    members = (("model.onnx", light.SerializeToString()), ("model.onnx.data", content))
    network = read_onnx(packed(tmp_path, *members, method=method))
    (tmp_path / "whole.onnx").write_bytes(model(NODES, weights=WEIGHTS).SerializeToString())
    whole = read_onnx(tmp_path / "whole.onnx")
    inputs = network.example_input()
    assert torch.equal(network(inputs), whole(inputs))
    # and as files that a runtime opens
    path = unpack(tmp_path / "upload.onnx", tmp_path / "unpacked")
    assert path == tmp_path / "unpacked" / "model.onnx"
    assert parts(path) == [path, tmp_path / "unpacked" / "model.onnx.data"]
    assert check_parity(network, path, inputs).passed
    write_onnx(network, tmp_path / "again.onnx")
    assert check_parity(network, tmp_path / "again.onnx", inputs).passed


def test_a_model_alone_is_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model(NODES, weights=WEIGHTS).SerializeToString())
    assert unpack(path, tmp_path / "unpacked") == path
    assert parts(path) == [path]
    assert not (tmp_path / "unpacked").exists()


def test_one_file_per_weight_comes_in(tmp_path: Path) -> None:
    made = model(NODES, weights=WEIGHTS)
    (tmp_path / "files").mkdir()
    onnx.save_model(
        made, tmp_path / "files" / "m.onnx", save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0
    )
    files = sorted((tmp_path / "files").iterdir())
    assert len(files) == 4
    network = read_onnx(packed(tmp_path, *((file.name, file.read_bytes()) for file in files)))
    assert len(network.layers()) == 2


@pytest.mark.slow
def test_what_torch_writes_with_external_data_comes_in(tmp_path: Path) -> None:
    made = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU(), torch.nn.Conv2d(32, 8, 3)
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            made, (torch.zeros(1, 3, 16, 16),), tmp_path / "net.onnx", dynamo=True, external_data=True, verbose=False
        )
    files = [tmp_path / "net.onnx", tmp_path / "net.onnx.data"]
    network = read_onnx(packed(tmp_path, *((file.name, file.read_bytes()) for file in files)))
    inputs = network.example_input(3)
    assert torch.allclose(network(inputs), made(inputs), atol=1e-5)


# --- what is wrong with a zip ----------------------------------------------------------------------------------------

Spoil = Callable[[ModelProto, bytes], tuple[tuple[str, bytes], ...]]


def entry(light: ModelProto, key: str, value: str) -> None:
    for item in light.graph.initializer[0].external_data:
        if item.key == key:
            item.value = value
            return
    light.graph.initializer[0].external_data.add(key=key, value=value)


def with_entry(key: str, value: str) -> Spoil:
    def spoil(light: ModelProto, content: bytes) -> tuple[tuple[str, bytes], ...]:
        entry(light, key, value)
        return ("model.onnx", light.SerializeToString()), ("model.onnx.data", content)

    return spoil


def overlapping(light: ModelProto, content: bytes) -> tuple[tuple[str, bytes], ...]:
    for index in range(40):
        copy = light.graph.initializer.add()
        copy.CopyFrom(light.graph.initializer[0])
        copy.name = f"more{index}"
    return ("model.onnx", light.SerializeToString()), ("model.onnx.data", content)


def in_a_constant(light: ModelProto, content: bytes) -> tuple[tuple[str, bytes], ...]:
    tensor = TensorProto()
    tensor.CopyFrom(light.graph.initializer[0])
    node = onnx.helper.make_node("Constant", [], ["k"], name="constant")
    node.attribute.append(onnx.helper.make_attribute("value", tensor))
    light.graph.node.insert(0, node)
    return ("model.onnx", light.SerializeToString()), ("model.onnx.data", content)


WRONG: dict[str, tuple[Spoil, type[ModelRefused], str]] = {
    "no model": (lambda light, content: (("model.onnx.data", content),), ModelUnreadable, "without a .onnx file"),
    "two models": (
        lambda light, content: (("a.onnx", light.SerializeToString()), ("b.onnx", light.SerializeToString())),
        ModelRefused, "holds 2 ONNX models (a.onnx, b.onnx)",
    ),
    "a model that is none": (
        lambda light, content: (("a.onnx", b"no model"), ("model.onnx.data", content)),
        ModelUnreadable, "truncated, damaged or no ONNX model",
    ),
    "a zip in the zip": (
        lambda light, content: (("a.onnx", b"PK\x03\x04" + bytes(40)),), ModelUnreadable, "zip archive",
    ),
    "missing data": (
        lambda light, content: (("model.onnx", light.SerializeToString()),),
        ModelRefused, "'w1' keeps its data in 'model.onnx.data', which is not in the zip",
    ),
    "a file that nothing names": (
        lambda light, content: (
            ("model.onnx", light.SerializeToString()), ("model.onnx.data", content), ("notes.txt", b"hello")
        ),
        ModelRefused, "the member 'notes.txt' is not named by the model",
    ),
    "a folder": (
        lambda light, content: (
            ("net/model.onnx", light.SerializeToString()), ("net/model.onnx.data", content)
        ),
        ModelRefused, "not a plain file name",
    ),
    "a member that climbs out": (
        lambda light, content: (
            ("model.onnx", light.SerializeToString()), ("model.onnx.data", content), ("../evil", b"1")
        ),
        ModelUnreadable, "members that are not taken",
    ),
    "a name twice": (
        lambda light, content: (
            ("model.onnx", light.SerializeToString()), ("model.onnx.data", content), ("model.onnx.data", content)
        ),
        ModelUnreadable, "members that are not taken",
    ),
    "the data of another place": (with_entry("location", "../../etc/passwd"), ModelRefused, "in '../../etc/passwd'"),
    "an absolute place": (with_entry("location", "/etc/passwd"), ModelRefused, "in '/etc/passwd'"),
    "a place on Windows": (with_entry("location", "C:\\data"), ModelRefused, "keeps its data in"),
    "a place in a folder": (with_entry("location", "./model.onnx.data"), ModelRefused, "in './model.onnx.data'"),
    "no place": (with_entry("location", ""), ModelRefused, "keeps its data in ''"),
    "the model as its own data": (with_entry("location", "model.onnx"), ModelRefused, "which is not in the zip"),
    "an offset past the end": (with_entry("offset", "1000000"), ModelRefused, "which has"),
    "a negative offset": (with_entry("offset", "-4"), ModelRefused, "the offset '-4'"),
    "an offset that is no number": (with_entry("offset", "0x10"), ModelRefused, "the offset '0x10'"),
    "a huge offset": (with_entry("offset", "9" * 30), ModelRefused, "the offset '9999"),
    "another length": (with_entry("length", "12"), ModelRefused, "'w1' has 12 bytes"),
    "weights on top of each other": (overlapping, ModelTooLarge, "they overlap"),
    "a constant node's data": (in_a_constant, ModelRefused, "operator Constant at node 'constant'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_zip_is_refused(name: str, tmp_path: Path) -> None:
    spoil, kind, message = WRONG[name]
    path = packed(tmp_path, *spoil(*in_two(tmp_path)))
    with pytest.raises(kind) as caught:
        read_onnx(path)
    told = " ".join([caught.value.message, *(fault.message for fault in caught.value.faults)])
    assert message in told
    assert str(tmp_path) not in told
    assert not (tmp_path / "unpacked").exists()


@pytest.mark.parametrize("name", [name for name in WRONG if "place" in name or "member" in name or "folder" in name])
def test_what_is_refused_is_not_unpacked(name: str, tmp_path: Path) -> None:
    path = packed(tmp_path, *WRONG[name][0](*in_two(tmp_path)))
    with pytest.raises(ModelRefused):
        unpack(path, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists() or not list((tmp_path / "unpacked").iterdir())
    assert not (tmp_path / "evil").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    light, _ = in_two(tmp_path)
    path = tmp_path / "upload.onnx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.onnx", light.SerializeToString())
        link = zipfile.ZipInfo("model.onnx.data")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ModelUnreadable) as caught:
        read_onnx(path)
    assert "a link or a special file" in caught.value.faults[0].message


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    light, _ = in_two(tmp_path)
    content = bytes(300 * 2**20)
    path = packed(tmp_path, ("model.onnx", light.SerializeToString()), ("model.onnx.data", content),
                  method=zipfile.ZIP_DEFLATED)  # fmt: skip
    with pytest.raises(ModelTooLarge, match="unpacks to too much"):
        read_onnx(path)


def test_damage_is_found(tmp_path: Path) -> None:
    light, content = in_two(tmp_path)
    path = packed(tmp_path, ("model.onnx", light.SerializeToString()), ("model.onnx.data", content))
    data = bytearray(path.read_bytes())
    place = data.find(content)
    data[place + 50] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ModelUnreadable, match="damaged"):
        read_onnx(path)
    for size in range(10, len(data), 211):
        path.write_bytes(data[:size])
        with pytest.raises(ModelRefused):
            read_onnx(path)


def test_a_local_header_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    light, content = in_two(tmp_path)
    path = packed(tmp_path, ("model.onnx", light.SerializeToString()), ("model.onnx.data", content))
    with zipfile.ZipFile(path) as archive:
        header = archive.getinfo("model.onnx.data").header_offset
    data = bytearray(path.read_bytes())
    struct.pack_into("<2H", data, header + 26, 15, 0xFFFF)
    path.write_bytes(data)
    with pytest.raises(ModelRefused):
        read_onnx(path)


def test_a_model_alone_that_names_another_file_is_told_what_to_do(tmp_path: Path) -> None:
    light, _ = in_two(tmp_path)
    (tmp_path / "upload.onnx").write_bytes(light.SerializeToString())
    with pytest.raises(ModelRefused, match="upload a zip of the model and that file"):
        read_onnx(tmp_path / "upload.onnx")


# --- out -------------------------------------------------------------------------------------------------------------


def test_past_a_threshold_the_weights_go_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model(NODES, weights=WEIGHTS).SerializeToString())
    network = read_onnx(tmp_path / "model.onnx")
    (group,) = [group for group in channel_groups(network).groups if group.cuttable]
    smaller, _ = cut(network, {group.name: [1, 5, 6]})
    inputs = network.example_input(3)
    assert check_cut(network, {group.name: [1, 5, 6]}, smaller, inputs).passed
    path = tmp_path / "pruned.onnx"
    write_onnx(smaller, path, external_data_bytes=1000)
    data = tmp_path / "pruned.onnx.data"
    assert parts(path) == [path, data]
    written = onnx.load(path, load_external_data=False)
    places = {
        tensor.name: {item.key: item.value for item in tensor.external_data} for tensor in written.graph.initializer
    }
    assert [item["location"] for item in places.values() if item] == ["pruned.onnx.data"]  # the others are small
    assert all(int(item["offset"]) % 4096 == 0 for item in places.values() if item)
    onnx.checker.check_model(str(path), full_check=True)
    assert check_parity(smaller, path, inputs).passed
    first = [path.read_bytes(), data.read_bytes()]
    write_onnx(smaller, path, external_data_bytes=1000)
    assert first == [path.read_bytes(), data.read_bytes()]
    # it comes in again as a zip
    again = read_onnx(packed(tmp_path, ("pruned.onnx", first[0]), ("pruned.onnx.data", first[1])))
    assert torch.equal(again(inputs), smaller(inputs))
    # below the threshold it is one file, and what an earlier attempt left is gone
    write_onnx(smaller, path, external_data_bytes=10**6)
    assert not data.exists()
    assert check_parity(smaller, path, inputs).passed


def test_what_one_file_cannot_hold_is_two_files_whatever_the_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(model(NODES, weights=WEIGHTS).SerializeToString())
    network = read_onnx(tmp_path / "model.onnx")
    monkeypatch.setattr(external_data, "MOST_INLINE_BYTES", 1000)
    for threshold in (None, 10**9):
        write_onnx(network, tmp_path / "out.onnx", external_data_bytes=threshold)
        assert len(parts(tmp_path / "out.onnx")) == 2
        assert check_parity(network, tmp_path / "out.onnx", network.example_input()).passed
        (tmp_path / "out.onnx.data").unlink()
