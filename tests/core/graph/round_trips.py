"""One operator through everything: read, compared with ONNX Runtime, written for old and new opsets, read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import ModelRefused
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.export import check_parity, write_onnx
from core.graph.importers import read_onnx
from core.graph.network import Network
from tests.core.graph.onnx_texts import model, saved
from tests.core.graph.topologies import random_removal

OPSETS = (9, 10, 11, 12, 13, 17, 18, 21, 23)


def read_case(case: dict[str, Any], folder: Path) -> Network:
    """A case holds the `body` of a graph and the arguments of `onnx_texts.model` that are not its defaults."""
    given = {key: case[key] for key in ("inputs", "outputs", "weights", "opset") if key in case}
    return read_onnx(saved(model(case["body"], **given), folder))


def round_trip(case: dict[str, Any], folder: Path) -> Network:
    """Asserts that reader and writers agree with ONNX Runtime, from opset `case["from"]` on. Returns the network."""
    network = read_case(case, folder)
    inputs = network.example_inputs(3)
    assert check_parity(network, folder / "model.onnx", *inputs).passed, "the reader"
    for opset in OPSETS:
        if opset >= case.get("from", 9):
            write_onnx(network, folder / "again.onnx", opset=opset)
            assert check_parity(network, folder / "again.onnx", *inputs).passed, f"the writer for opset {opset}"
            again = read_onnx(folder / "again.onnx")
            assert torch.allclose(again(*inputs), network(*inputs), atol=1e-5), f"the reader for opset {opset}"
    return network


def refused(case: dict[str, Any], message: str, folder: Path) -> None:
    """Asserts that the reader refuses the case, for a reason that holds `message`."""
    with pytest.raises(ModelRefused) as caught:
        read_case(case, folder)
    assert message in caught.value.message


def cut_and_check(network: Network, folder: Path, share: float = 0.4, seed: int = 0) -> Network:
    """Cuts `share` of every group that is free, asserts that this is exact and exports. Returns the smaller network."""
    removal = random_removal(network, share, seed)
    assert removal, "nothing is free to go"
    smaller, _ = cut(network, removal)
    inputs = network.example_inputs(3, seed=1)
    assert check_cut(network, removal, smaller, *inputs).passed
    write_onnx(smaller, folder / "cut.onnx")
    assert check_parity(smaller, folder / "cut.onnx", *inputs).passed
    return smaller
