"""An ONNX model with outputs of several ranks behind two convolutions: a map, three numbers, and one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from core.job import ModelInput

CHANNELS = 16


def two_heads_file(path: Path, seed: int = 0) -> ModelInput:
    """Inputs (n, 1, 8, 8). Outputs `map` (n, 1, 8, 8) behind a sigmoid, `numbers` (n, 3), and `mean` (n,)."""
    draws = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> TensorProto:
        values = draws.normal(scale=np.sqrt(2 / np.prod(shape[1:])), size=shape) if len(shape) > 1 else np.zeros(shape)
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1", "b1"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w2"], ["e"], kernel_shape=[1, 1]),
        helper.make_node("Sigmoid", ["e"], ["map"]),
        helper.make_node("GlobalAveragePool", ["d"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "w3"], ["numbers"], transB=1),
        helper.make_node("ReduceMean", ["e"], ["mean"], axes=[1, 2, 3], keepdims=0),
    ]
    initializers = [
        weight("w0", CHANNELS, 1, 3, 3), weight("b0", CHANNELS), weight("w1", CHANNELS, CHANNELS, 3, 3),
        weight("b1", CHANNELS), weight("w2", 1, CHANNELS, 1, 1), weight("w3", 3, CHANNELS),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "two_heads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [
            helper.make_tensor_value_info("map", TensorProto.FLOAT, ["n", 1, 8, 8]),
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["n"]),
        ],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")
