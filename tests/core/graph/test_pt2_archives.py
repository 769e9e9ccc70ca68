"""Archives that are not what they claim or ask for too much: each is refused for its own reason, without unpickling."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.errors import ModelRefused, ModelTooLarge, ModelUnreadable
from core.graph import pt2_archive
from core.graph.importers import read_onnx
from core.graph.pt2_reading import read_pt2
from tests.core.graph.exported import saved

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
WEIGHT = "data/weights/weight_0"


class Trap:
    """A pickle that says so when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The members of a whole archive, by their names below its folder."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    path = saved(module, tmp_path_factory.mktemp("whole") / "m.pt2", torch.randn(2, 3, 6, 6))
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def packed(members: dict[str, bytes], folder: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "model.pt2"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"m/{name}", content)
    return path


def test_rewritten_it_is_read(members: dict[str, bytes], tmp_path: Path) -> None:
    assert len(read_pt2(packed(members, tmp_path)).layers()) == 2


def test_sample_inputs_are_not_opened(members: dict[str, bytes], tmp_path: Path) -> None:
    (name,) = (name for name in members if name.startswith("data/sample_inputs/"))
    read_pt2(packed({**members, name: pickle.dumps(Trap())}, tmp_path))


# --- members and bytes -----------------------------------------------------------------------------------------------

Change = Callable[[dict[str, bytes]], dict[str, bytes]]


def without(name: str) -> Change:
    return lambda members: {key: value for key, value in members.items() if key != name}


def with_(name: str, content: bytes) -> Change:
    return lambda members: {**members, name: content}


ARCHIVES: dict[str, tuple[Change, type[ModelRefused], str]] = {
    "no graph": (without(MODEL), ModelRefused, "holds 0 exported programs"),
    "two graphs": (with_("models/other.json", b"{}"), ModelRefused, "holds 2 exported programs"),
    "no configuration": (without(WEIGHTS), ModelUnreadable, "has no 'data/weights/model_weights_config.json'"),
    "no weight": (without(WEIGHT), ModelRefused, "the record 'data/weights/weight_0' of '0.weight' is missing"),
    "a short weight": (with_(WEIGHT, b"\0" * 12), ModelRefused, "reaches to number 108 .* which has 12 bytes"),
    "an odd weight": (with_(WEIGHT, b"\0" * 433), ModelRefused, "'0.weight' reaches"),
    "a bad weight": (with_(WEIGHT, b"\xff" * 432), ModelRefused, "'0.weight' holds NaN or infinity"),
    "no JSON": (with_(MODEL, b"{"), ModelUnreadable, r"'models/model.json' is damaged"),
    "deep JSON": (with_(MODEL, b"[" * 100_000), ModelUnreadable, r"'models/model.json' is damaged"),
    "not UTF-8": (with_(MODEL, b"\xff\xfe{}"), ModelUnreadable, r"'models/model.json' is damaged"),
    "a pickled graph": (with_(MODEL, pickle.dumps(Trap())), ModelUnreadable, r"'models/model.json' is damaged"),
    "a legacy pickle": (
        with_("data/weights/model.pt", b"\x80"),
        ModelRefused,
        r"are a pickle \(data/weights/model.pt\)",
    ),
    "another format": (with_("archive_format", b"xyz"), ModelUnreadable, r"no little-endian .pt2"),
    "big-endian": (with_("byteorder", b"big"), ModelUnreadable, r"no little-endian .pt2"),
    "torch.save": (with_("data.pkl", pickle.dumps(Trap())), ModelRefused, "is a pickle, as torch.save writes it"),
    "torch 2.7": (with_("serialized_exported_program.json", b"{}"), ModelRefused, "torch 2.7 or older"),
    "outside": (with_("../../etc/passwd", b"x"), ModelRefused, "lies outside"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(name: str, members: dict[str, bytes], tmp_path: Path) -> None:
    change, kind, reason = ARCHIVES[name]
    with pytest.raises(kind, match=reason):
        read_pt2(packed(change(members), tmp_path))


def test_compressed_members(members: dict[str, bytes], tmp_path: Path) -> None:
    bomb = {**members, "data/weights/weight_9": b"\0" * 10_000_000}
    with pytest.raises(ModelRefused, match="is compressed or encrypted"):
        read_pt2(packed(bomb, tmp_path, zipfile.ZIP_DEFLATED))


def test_members_twice(members: dict[str, bytes], tmp_path: Path) -> None:
    path = packed(members, tmp_path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"m/{WEIGHT}", members[WEIGHT])
    with pytest.raises(ModelRefused, match="is there twice"):
        read_pt2(path)


def test_members_that_overlap(members: dict[str, bytes], tmp_path: Path) -> None:
    """Two entries of the directory for the same bytes."""
    path = packed(members, tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.getinfo(f"m/{WEIGHT}")
        for index in range(200):
            twin = zipfile.ZipInfo(f"m/data/weights/x{index}")
            twin.file_size = twin.compress_size = 100_000
            twin.header_offset, twin.CRC = first.header_offset, first.CRC
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    with pytest.raises(ModelRefused, match="overlap"):
        read_pt2(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip" * 50, pickle.dumps([1]), b"PK\x05\x06" + b"\0" * 18])
def test_no_archives(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(content)
    with pytest.raises(ModelUnreadable, match=r"torch\.export\.save|one folder|empty"):
        read_pt2(path)


def test_truncated_archives(members: dict[str, bytes], tmp_path: Path) -> None:
    path = packed(members, tmp_path)
    whole = path.read_bytes()
    for cut in range(10, len(whole) - 1, len(whole) // 12):
        path.write_bytes(whole[:cut])
        with pytest.raises(ModelUnreadable):
            read_pt2(path)


def test_flipped_bytes(members: dict[str, bytes], tmp_path: Path) -> None:
    """Every one is refused or read; none ends in another error."""
    path = packed(members, tmp_path)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(whole), (60,), generator=generator).tolist():
        changed = bytearray(whole)
        changed[place] ^= 0x55
        path.write_bytes(changed)
        with suppress(ModelRefused):
            read_pt2(path)


def test_caps(members: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(members, tmp_path)
    for name, value, reason in (
        ("MAX_MEMBERS", 5, "members; at most 5"), ("MAX_JSON_BYTES", 100, "at most 100 are taken"),
        ("MAX_JSON_ITEMS", 50, "more than 50 items"), ("MAX_WEIGHTS_BYTES", 1000, "at most 1000 are taken"),
        ("MAX_DIRECTORY_BYTES", 10, "members"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(pt2_archive, name, value)
            with pytest.raises(ModelTooLarge, match=reason):
                read_pt2(path)


def test_a_pt2_is_told_from_an_onnx_model(members: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ModelUnreadable, match=r"named \.pt2"):
        read_onnx(packed(members, tmp_path))


def test_torch_save_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, buffer)
    path = tmp_path / "m.pt2"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ModelRefused, match="is a pickle"):
        read_pt2(path)


# --- documents -------------------------------------------------------------------------------------------------------


def document(members: dict[str, bytes], name: str, change: Callable[[Any], Any]) -> dict[str, bytes]:
    content = json.loads(members[name])
    change(content)
    return {**members, name: json.dumps(content).encode()}


def meta(**values: Any) -> Callable[[Any], Any]:
    return lambda content: content["config"]["0.weight"]["tensor_meta"].update(values)


def ints(*values: int) -> list[dict[str, int]]:
    return [{"as_int": value} for value in values]


CONFIGURATIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a pickle": (lambda c: c["config"]["0.weight"].update(use_pickle=True), r"'0.weight' .* is a pickle"),
    "an object": (lambda c: c["config"]["0.weight"].update(tensor_meta=None), r"'0.weight' .* is a pickle"),
    "a path": (lambda c: c["config"]["0.weight"].update(path_name="../../../secret"), "which is no plain name"),
    "no entry": (lambda c: c["config"].pop("0.weight"), r"no weight or constant '0.weight'"),
    "half": (meta(dtype=6), "'0.weight' is of type float16; weights are float32"),
    "integers": (meta(dtype=2, sizes=ints(4, 3, 3, 3)), "weights of type int8"),
    "unknown type": (meta(dtype=99), "is of type 99"),
    "sparse": (meta(layout=2), "sparse"),
    "negative": (meta(sizes=ints(-4, 3, 3, 3)), "negative sizes"),
    "large": (meta(sizes=ints(2**20, 2**20, 1, 1)), "has 1099511627776 elements"),
    "large by strides": (meta(sizes=ints(2**14, 2**14, 1, 1), strides=ints(0, 0, 0, 0)), "more memory than their"),
    "far": (meta(storage_offset={"as_int": 10**12}), "reaches to number"),
    "long strides": (meta(strides=ints(10**18, 1, 1, 1)), "reaches to number"),
    "many dimensions": (meta(sizes=ints(*[1] * 20), strides=ints(*[1] * 20)), "has 20 dimensions"),
    "symbolic": (meta(sizes=[{"as_expr": {"expr_str": "__import__('os')"}}] * 4), "not fixed"),
    "no number": (meta(sizes="four"), "damaged at"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations(name: str, members: dict[str, bytes], tmp_path: Path) -> None:
    change, reason = CONFIGURATIONS[name]
    with pytest.raises(ModelRefused, match=reason):
        read_pt2(packed(document(members, WEIGHTS, change), tmp_path))


def nodes(content: Any) -> Any:
    return content["graph_module"]["graph"]["nodes"]


def swapped(content: Any) -> None:
    nodes(content).reverse()


def argument(index: int, name: str, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        node = nodes(content)[index]
        node["inputs"] = [item for item in node["inputs"] if item["name"] != name]
        node["inputs"].append({"name": name, "arg": value, "kind": 1})

    return change


def size(index: int, value: Any) -> Callable[[Any], None]:
    return lambda content: content["graph_module"]["graph"]["tensor_values"]["input"]["sizes"].__setitem__(index, value)


GRAPHS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a cycle": (swapped, r"makes later: the graph has a cycle"),
    "a name twice": (lambda c: nodes(c).append(nodes(c)[0]), r"the name 'conv2d' is used twice"),
    "a dangling name": (argument(1, "self", {"as_tensor": {"name": "ghost"}}), r"reads 'ghost', which nothing makes"),
    "no output": (lambda c: c["graph_module"]["signature"]["output_specs"].clear(), "the model has no output"),
    "an unknown operator": (lambda c: nodes(c)[1].update(target="torch.ops.os.system"), r"operator os.system at node"),
    "a Python function": (lambda c: nodes(c)[1].update(target="builtins.eval"), r"operator builtins.eval at node"),
    "a private name": (lambda c: nodes(c)[1].update(target="torch.ops.aten.__class__.x"), r"__class__.x at node"),
    "control flow": (argument(1, "self", {"as_graph": {"name": "g", "graph": {}}}), "an argument of a kind"),
    "no argument": (lambda c: nodes(c)[0].update(inputs=[]), "the argument 'input' is missing"),
    "another argument": (argument(1, "power", {"as_int": 3}), "has no argument 'power'"),
    "a text": (argument(0, "stride", {"as_string": "x"}), "'stride' is not of type"),
    "a wide stride": (argument(0, "stride", {"as_ints": [0, 0]}), "stride"),
    "groups": (argument(0, "groups", {"as_int": 7}), "do not fit"),
    "huge padding": (argument(0, "padding", {"as_ints": [2**30, 2**30]}), "numbers|at most|overflow"),
    "a huge input": (size(2, {"as_int": 2**40}), "a dimension of 1099511627776"),
    "a large input": (size(2, {"as_int": 2**30}), "numbers; at most"),
    "a batch that is not": (size(0, {"as_int": 2**20}), "a static batch of 1048576"),
    "an old schema": (lambda c: c["schema_version"].update(major=7), "of schema 7"),
    "too many nodes": (lambda c: nodes(c).extend([nodes(c)[0]] * 20_001), "nodes; at most 20000"),
    "no graph": (lambda c: c.pop("graph_module"), "damaged at '/graph_module'"),
    "a custom object": (
        lambda c: c["graph_module"]["signature"]["input_specs"].append({"custom_obj": {}}), "a custom object",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str, members: dict[str, bytes], tmp_path: Path) -> None:
    change, reason = GRAPHS[name]
    with pytest.raises(ModelRefused, match=reason):
        read_pt2(packed(document(members, MODEL, change), tmp_path))
