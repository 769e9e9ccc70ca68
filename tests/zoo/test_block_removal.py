"""Residual blocks of networks that others wrote: found, each removed exactly, all of them together, and exported."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bench.zoo import Row, missing, prepare
from bench.zoo_weights import randomise
from core.graph.architectures import build
from core.graph.blocks import Block, find_blocks, innermost_residual
from core.graph.bypass import bypass, check_bypass, without_blocks
from core.graph.counts import count
from core.graph.export import check_parity, write_onnx
from core.graph.importers import load
from core.graph.network import Network
from core.graph.replacing import check_replacement, replace_blocks
from core.job import ModelInput


@dataclass(frozen=True)
class Case:
    """`groups`: blocks in a row whose results have the same shape. `projections`: how many keep a convolution.
    `replaced`: the first of two in a row that one is put in the place of."""

    row: Row
    groups: list[int]
    projections: int
    replaced: int


CASES = [
    Case(Row("torchvision", "resnet50", "pt2"), [3, 4, 6, 3], 4, 3),
    # of 1, 2, 3, 4, 3, 3, 1 inverted residuals a stage the first changes shapes, and has no shortcut
    Case(Row("torchvision", "mobilenet_v2", "pt2"), [1, 2, 3, 2, 2], 0, 1),
    # of 1, 2, 2, 3, 3, 4, 1
    Case(Row("torchvision", "efficientnet_b0", "pt2"), [1, 1, 2, 2, 3], 0, 2),
    Case(Row("torchvision", "convnext_tiny", "pt2"), [3, 3, 9, 3], 0, 0),
    Case(Row("pytorchcv", "preresnet20_cifar10", "pt2"), [3, 3, 3], 2, 3),
    Case(Row("pretrained", "opennsfw", "onnx"), [3, 4, 6, 3], 4, 3),
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.row.network)
def case(request: pytest.FixtureRequest) -> Case:
    if missing():
        assert not os.environ.get("CI"), f"{', '.join(missing())} not installed"
        pytest.skip(f"{', '.join(missing())} not installed: make zoo")
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def network(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Network:
    if case.row.network == "convnext_tiny":  # exporting torchvision's own, the same structure, takes minutes
        torch.manual_seed(0)
        made = build("convnext_tiny", image_size=(32, 32)).eval()
        randomise(made.module)  # a layer scale of 1e-6 would hide what a block does
        return made
    path = prepare(case.row, tmp_path_factory.mktemp("zoo")).path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return load(ModelInput(path=path, sha256=digest, format=case.row.format)).eval()


@pytest.fixture(scope="module")
def blocks(network: Network) -> list[Block]:
    return innermost_residual(find_blocks(network))


def test_its_blocks_are_found(case: Case, blocks: list[Block]) -> None:
    shapes = list(dict.fromkeys(block.output_shape for block in blocks))
    assert [sum(block.output_shape == shape for block in blocks) for shape in shapes] == case.groups
    assert sum(block.shortcut == "projection" for block in blocks) == case.projections
    assert {block.shortcut for block in blocks} <= {"identity", "projection"}


def test_a_block_is_removed_exactly(case: Case, network: Network, blocks: list[Block], tmp_path: Path) -> None:
    """The first, and the first of the last group, which goes out as a file, too."""
    inputs = network.example_input(2, seed=1)
    for index in (0, len(blocks) - case.groups[-1]):
        smaller, entry = bypass(network, blocks[index].name)
        assert check_bypass(network, entry, smaller, inputs).passed
        assert count(network).params - count(smaller).params == blocks[index].params > 0
        if index == len(blocks) - case.groups[-1]:
            write_onnx(smaller, tmp_path / "smaller.onnx")
            assert check_parity(smaller, tmp_path / "smaller.onnx", inputs).passed


def test_all_together_is_one_after_the_other(network: Network, blocks: list[Block]) -> None:
    together = without_blocks(network, [block.name for block in blocks])
    left = network
    for block in blocks:
        (name,) = (each.name for each in find_blocks(left) if each.kind == "residual" and each.own == block.own)
        left, _ = bypass(left, name)
    ours, theirs = together.state_dict(), left.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    inputs = network.example_input(2, seed=1)
    with torch.no_grad():
        assert torch.equal(together(inputs), left(inputs))
    assert count(together).blocks == 0
    assert count(network).params - count(together).params == sum(block.params for block in blocks)


def test_two_are_replaced_by_one_exactly(case: Case, network: Network, blocks: list[Block]) -> None:
    names = [block.name for block in blocks[case.replaced : case.replaced + 2]]
    smaller, entry = replace_blocks(network, names, seed=1, weights="random")
    assert check_replacement(network, entry, smaller, network.example_input(2, seed=1)).passed
    assert count(smaller).blocks == sum(case.groups) - 1
    zero, _ = replace_blocks(network, names, seed=1, weights="zero")
    still = [name for name, layer in zero.layers().items() if not layer.get_parameter("weight").any()]
    assert still == [blocks[case.replaced].own[-1]]
