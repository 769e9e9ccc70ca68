"""How many images go through a network at once where nothing but speed and memory depends on it."""

from __future__ import annotations

import math

from core.graph.network import Network

MOST_IMAGES = 256
MOST_ELEMENTS = 2**23
"""Of one activation of a whole batch on the CPU, 32 MiB as float32: more is no faster there, and a
child's memory is bounded. 2 images of a VGG-16 on 224×224."""
MOST_ELEMENTS_ACCELERATED = 2**26
"""On an accelerator, which small batches leave idle: 20 such images."""


def inference_batch(network: Network, most: int = MOST_IMAGES) -> int:
    """Images per batch without gradients: at most `most`, fewer where the largest activation of one image is large."""
    largest: int = max(math.prod(node.meta["shape"]) for node in network.module.graph.nodes if node.op != "output")
    first = next(network.module.parameters(), None)
    on_cpu = first is None or first.device.type == "cpu"
    return min(most, max(1, (MOST_ELEMENTS if on_cpu else MOST_ELEMENTS_ACCELERATED) // largest))
