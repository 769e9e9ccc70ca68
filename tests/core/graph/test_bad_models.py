"""Files that are not what they claim, and models that ask for too much: each is refused for its own reason, quickly."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import ModelProto, helper

from core.errors import ModelRefused, ModelUnreadable, OperatorUnknown
from core.graph.importers import load, read_onnx
from core.job import ModelInput, ModelOptions
from tests.core.graph.huge_models import CASES as HUGE
from tests.core.graph.onnx_texts import model, saved
from tests.core.graph.wrong_models import WRONG, Trap, control_flow, conv

ROOT = Path(__file__).parent.parent.parent.parent


# --- files that are something else -----------------------------------------------------------------------------------


def whole() -> bytes:
    return model("y = Conv(x, w)", weights={"w": (5, 4, 3, 3)}).SerializeToString()


def zipped(folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Trap()))
    return (folder / "a.zip").read_bytes()


FILES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda folder: b"", "the file is empty"),
    "truncated": (lambda folder: whole()[:-40], "truncated, damaged or no ONNX model"),
    "cut in half": (lambda folder: whole()[: len(whole()) // 2], "truncated, damaged or no ONNX model"),
    "a pickle": (lambda folder: pickle.dumps(Trap()), "the file is a pickle"),
    "a zip": (zipped, "the file is a zip archive"),
    "text": (lambda folder: b"this is not a model, it is a sentence", "truncated, damaged or no ONNX model"),
    "zeros": (lambda folder: bytes(1000), "truncated, damaged or no ONNX model"),
    "a model of nothing": (lambda folder: ModelProto(ir_version=8).SerializeToString(), "no ONNX graph"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_onnx_model(name: str, tmp_path: Path) -> None:
    make, message = FILES[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(make(tmp_path))
    with pytest.raises(ModelUnreadable) as caught:
        load(ModelInput(path=path, sha256="0" * 64, format="onnx"))
    assert message in caught.value.message
    assert "it should hold an ONNX model" in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = whole()
    for size in range(1, len(data), 37):
        (tmp_path / "model.onnx").write_bytes(data[:size])
        with pytest.raises(ModelRefused):
            read_onnx(tmp_path / "model.onnx")


# --- models that are wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", WRONG, ids=lambda item: item.__name__)
def test_a_wrong_model_is_refused(spoil: Callable[[ModelProto], None], tmp_path: Path) -> None:
    kind, message = WRONG[spoil]
    made = conv()
    spoil(made)
    path = saved(made, tmp_path)
    with pytest.raises(kind) as caught:
        read_onnx(path)
    assert message in caught.value.message
    assert "/tmp" not in caught.value.message


def test_all_that_is_unknown_is_told_at_once(tmp_path: Path) -> None:
    made = conv()
    control_flow(made)
    made.graph.node[0].domain = "com.example"
    odd = [helper.make_node("Odd", [made.graph.output[0].name], ["odd"]), helper.make_node("Odder", ["odd"], ["odder"])]
    made.graph.node.extend([*odd, helper.make_node("Unread", ["odd"], ["unread"])])
    made.graph.output[0].name = "odder"
    with pytest.raises(
        OperatorUnknown, match=r"not on the list in .*; nor are 3 more nodes \(If, Odd, Odder\)$"
    ) as caught:
        read_onnx(saved(made, tmp_path))
    told = {fault.pointer: fault.message for fault in caught.value.faults}
    assert told == {
        "/graph/node/n0": "operator Conv is of the domain 'com.example'",
        "/graph/node/choice": "operator If is control flow",
        "/graph/node/odd": "unknown operator Odd",
        "/graph/node/odder": "unknown operator Odder",
    }
    last = [fault.expected or "" for fault in caught.value.faults[2:]]
    assert last[0].startswith("one of Abs, ")
    assert last[1] == "one of the same"


def test_many_unknown_nodes_are_not_all_told(tmp_path: Path) -> None:
    made = conv()
    made.graph.node.extend(helper.make_node("Odd", ["x"], [f"odd{index}"], domain="own") for index in range(5_000))
    with pytest.raises(OperatorUnknown, match="nor are 4999 more nodes") as caught:
        read_onnx(saved(made, tmp_path))
    assert len(caught.value.faults) == 100


def test_many_unknown_operators_are_not_all_told(tmp_path: Path) -> None:
    """A worker takes a line of some megabytes: the reason must fit."""
    made = model("y = Conv(x, w)", weights={"w": (5, 4, 3, 3)})
    made.graph.node[0].output[0] = "odd0"
    for index in range(5_000):
        made.graph.node.append(helper.make_node("Odd", [f"odd{index}"], ["y" if index == 4_999 else f"odd{index + 1}"]))
    with pytest.raises(OperatorUnknown, match="nor are 4999 more nodes") as caught:
        read_onnx(saved(made, tmp_path))
    faults = caught.value.faults
    assert len(faults) == 100
    assert (faults[0].expected or "").startswith("one of Abs, ")
    assert {fault.expected for fault in faults[1:]} == {"one of the same"}


def test_channels_that_are_left_open_are_to_be_fixed(tmp_path: Path) -> None:
    made = model("y = Conv(x, w)", weights={"w": (5, 4, 3, 3)}, inputs="float[n,c,h,v] x", outputs="float[n,5,a,b] y")
    with pytest.raises(
        ModelRefused, match=r"leaves the number of channels open .* takes 4: export the model with that"
    ):
        read_onnx(saved(made, tmp_path))


def test_leftovers_of_constants_and_shapes_are_let_be(tmp_path: Path) -> None:
    made = model("s = Shape(x)  i = Constant<value_int=1>()  g = Gather(s, i)  a = Conv(x, w)  y = Relu(a)",
                 weights={"w": (5, 4, 3, 3)})  # fmt: skip
    assert len(list(read_onnx(saved(made, tmp_path)).module.graph.nodes)) == 4


@pytest.mark.slow
def test_what_asks_for_too_much_is_refused_in_bounded_time_and_memory() -> None:
    """In a process of 8 GiB of address space and four minutes; each by itself in seconds, all of them in 3 GiB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.graph.huge_models"], cwd=ROOT, env=environment, capture_output=True,
        text=True, timeout=280,
    )  # fmt: skip
    results = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, done.stderr
    assert results.keys() == HUGE.keys()
    for name, (kind, message, seconds, peak) in results.items():
        assert kind in ("ModelTooLarge", "ModelRefused", "OperatorUnknown"), name
        assert "node '" in message or "'x'" in message, (name, message)
        assert seconds < 30, name  # of the processor, not of the clock
        assert peak < 3 * 2**30, name


def test_options_of_another_format_are_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="architecture is not for ONNX models"):
        read_onnx(saved(conv(), tmp_path), ModelOptions(architecture="resnet20", input_shape=(3, 32, 32)))
