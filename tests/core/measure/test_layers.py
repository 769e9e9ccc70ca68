from __future__ import annotations

from pathlib import Path

import numpy as np

from core.measure.layers import layer_milliseconds, node_milliseconds

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
EXAMPLE = Path(__file__).parents[3] / "examples" / "digits_resnet20.onnx"


def test_each_layer_has_its_time_although_nodes_are_fused(residual_file: Path) -> None:
    """Additions and Relus are gone into convolutions; what is left is told by layer, and no time is told twice."""
    names = ["conv0", "block.conv1", "block.conv2", "head"]
    found = layer_milliseconds(residual_file, IMAGES, [*names, "relu0", "nothing"], runs=5)
    assert found["relu0"] is None
    assert found["nothing"] is None
    times = [found[name] for name in names]
    assert all(time is not None and time >= 0 for time in times)


def test_layers_are_found_by_the_name_of_their_node_too(residual_file: Path) -> None:
    found = layer_milliseconds(residual_file, IMAGES, ["/block/conv1/Conv", "block.conv1"], runs=5)
    assert found["/block/conv1/Conv"] is not None


def test_every_convolution_of_a_trained_resnet_is_found() -> None:
    import onnx

    graph = onnx.load(EXAMPLE).graph
    layers = [node.input[1].removesuffix(".weight") for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) >= 20
    found = layer_milliseconds(EXAMPLE, np.zeros((1, 1, 8, 8), dtype=np.float32), layers, runs=3)
    assert [layer for layer, time in found.items() if time is None] == []


def test_nodes_are_those_that_ran(residual_file: Path) -> None:
    times = node_milliseconds(residual_file, IMAGES, runs=3)
    assert "head" in times
    assert "relu0" not in times  # fused
    assert all(time >= 0 for time in times.values())
