"""Inputs, weights and nodes may have any name: two alike stay two, and none is run as code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onnx import ModelProto

from core.errors import ModelUnreadable
from core.graph.export import write_onnx
from core.graph.importers import read_onnx
from tests.core.graph.onnx_texts import model, saved
from tests.core.graph.test_fuzzed_models import SEEDS
from tests.core.graph.wrong_models import conv


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for name in (b"Relu", b"n1"):
        data = conv().SerializeToString().replace(name, b"\xff" * len(name))
        (tmp_path / "model.onnx").write_bytes(data)
        with pytest.raises(ModelUnreadable, match="no UTF-8 text"):
            read_onnx(tmp_path / "model.onnx")


NAMES = ["0", "input.1", "self", "torch", "getattr", "None", "*x", "a" * 5_000, "x\n", "é", "/a/b.0/c", "a b"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:9])
def test_an_input_of_any_name_is_taken(name: str, tmp_path: Path) -> None:
    made = model("y = Conv(x, w)", weights={"w": (5, 4, 3, 3)})
    made.graph.input[0].name = made.graph.node[0].input[0] = name
    network = read_onnx(saved(made, tmp_path))
    assert network(network.example_input()).shape == (2, 5, 4, 4)
    assert network.inputs[0].name == name
    write_onnx(network, tmp_path / "again.onnx")


def test_inputs_of_like_names_are_two(tmp_path: Path) -> None:
    made = model("y = Sub(p, q)", inputs="float[n,4] p, float[n,4] q", outputs="float[n,4] y")
    for item, name in zip(made.graph.input, ("a.b", "a_b"), strict=True):
        item.name = name
    made.graph.node[0].input[:] = ["a.b", "a_b"]
    network = read_onnx(saved(made, tmp_path))
    a, b = network.example_inputs()
    assert torch.equal(network(a, b), a - b)


def test_no_name_is_run_as_code(tmp_path: Path) -> None:
    """fx makes Python of a graph and runs it: names of nodes, weights and inputs are in it."""
    trap = f'x")+open({str(tmp_path / "run")!r},"w").close()+("\x00'
    for seed in SEEDS:
        made = ModelProto()
        made.CopyFrom(seed)
        renamed = {item.name: item.name + trap for item in (*made.graph.initializer, *made.graph.input)}
        for item in (*made.graph.initializer, *made.graph.input):
            item.name = renamed[item.name]
        for node in made.graph.node:
            node.name += trap
            node.input[:] = [renamed.get(name, name) for name in node.input]
        network = read_onnx(saved(made, tmp_path))
        network(network.example_input())
        assert "open(" not in network.module.code
    assert not (tmp_path / "run").exists()
