"""ResNet-110 of the thesis (Velici 2022, section 3.2): how much of it a block is."""

from __future__ import annotations

import torch

from core.graph.architectures.cifar_resnet import CifarResNet
from core.graph.blocks import find_blocks
from core.graph.counts import count
from core.graph.lowering import trace


def test_the_blocks_of_resnet110_are_as_large_as_the_thesis_says() -> None:
    """16-32-64 channels, 18 blocks a group, 1×1 convolutions where a group begins with other shapes."""
    torch.manual_seed(0)
    network = trace(CifarResNet(110).eval(), (3, 32, 32))
    blocks = [block for block in find_blocks(network) if block.kind == "residual"]
    counts = count(network)
    assert len(blocks) == counts.blocks == 54
    assert round(counts.params / 1e6, 2) == 1.73
    for group, (width, share) in enumerate(((16, 0.27), (32, 1.07), (64, 4.27))):
        own = [block for block in blocks[18 * group : 18 * group + 18] if block.shortcut == "identity"]
        assert len(own) == (18 if group == 0 else 17)
        assert {block.params for block in own} == {2 * (9 * width * width + 2 * width)}
        assert abs(100 * own[0].params / counts.params - share) <= 0.01
