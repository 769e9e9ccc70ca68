"""How many images go through a network at once where nothing but speed and memory depends on it."""

from __future__ import annotations

import math

from core.graph.network import Network

MOST_IMAGES = 256
MOST_ELEMENTS = 2**26
"""Of one activation of a whole batch, 256 MiB as float32: 20 images of a VGG-16 on 224×224."""


def inference_batch(network: Network, most: int = MOST_IMAGES) -> int:
    """Images per batch without gradients: at most `most`, fewer where the largest activation of one image is large."""
    largest: int = max(math.prod(node.meta["shape"]) for node in network.module.graph.nodes if node.op != "output")
    return min(most, max(1, MOST_ELEMENTS // largest))
