"""Small ONNX models as text, with random weights, for the operators one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper


def model(
    body: str,
    *,
    opset: int = 17,
    inputs: str = "float[batch,4,6,6] x",
    outputs: str = "float[batch,n,h,w] y",
    weights: dict[str, tuple[int, ...] | np.ndarray] | None = None,
    seed: int = 0,
) -> ModelProto:
    """The model whose nodes are `body`; weights given by shape are standard normal."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    made = onnx.parser.parse_model(text)
    generator = np.random.default_rng(seed)
    for name, value in (weights or {}).items():
        array = generator.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else value
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    for index, node in enumerate(made.graph.node):
        node.name = node.name or f"n{index}"
    return made


def saved(made: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path
