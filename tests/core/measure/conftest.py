"""Small ONNX files, written node by node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MakeFile = Callable[..., Path]


@pytest.fixture
def linear_file(tmp_path: Path) -> MakeFile:
    """linear_file(weight (K, N), batch="n", end=None | "Softmax" | "LogSoftmax"): (batch, 1, 8, 8) -> (batch, K)."""

    def make(weight: np.ndarray, *, batch: int | str = "n", end: str | None = None, name: str = "linear") -> Path:
        nodes = [
            helper.make_node("Flatten", ["image"], ["flat"], "flatten"),
            helper.make_node("Gemm", ["flat", "head.weight"], ["scores" if end else "out"], "head", transB=1),
        ]
        if end:
            nodes.append(helper.make_node(end, ["scores"], ["out"], "end", axis=1))
        graph = helper.make_graph(
            nodes, "linear",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 8, 8])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, len(weight)])],
            [numpy_helper.from_array(weight.astype(np.float32), "head.weight")],
        )  # fmt: skip
        return _write(graph, tmp_path / f"{name}.onnx")

    return make


@pytest.fixture
def residual_file(tmp_path: Path) -> Path:
    """conv0 - relu, then conv1 - relu - conv2, added to what went in, relu, pool, head: (n, 3, 16, 16) -> (n, 4)."""
    generator = np.random.default_rng(0)
    weights = {"conv0": (16, 3, 3, 3), "block.conv1": (16, 16, 3, 3), "block.conv2": (16, 16, 3, 3), "head": (4, 16)}
    initializers = [
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32) / 10, f"{name}.weight")
        for name, shape in weights.items()
    ]
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "conv0.weight"], ["a"], "conv0", **pads),
        helper.make_node("Relu", ["a"], ["b"], "relu0"),
        helper.make_node("Conv", ["b", "block.conv1.weight"], ["c"], "/block/conv1/Conv", **pads),
        helper.make_node("Relu", ["c"], ["d"], "relu1"),
        helper.make_node("Conv", ["d", "block.conv2.weight"], ["e"], "/block/conv2/Conv", **pads),
        helper.make_node("Add", ["e", "b"], ["f"], "add"),
        helper.make_node("Relu", ["f"], ["g"], "relu2"),
        helper.make_node("GlobalAveragePool", ["g"], ["h"], "pool"),
        helper.make_node("Flatten", ["h"], ["i"], "flatten"),
        helper.make_node("Gemm", ["i", "head.weight"], ["out"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "residual",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4])],
        initializers,
    )  # fmt: skip
    return _write(graph, tmp_path / "residual.onnx")


def _write(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
