"""What blocks give, seen while a network runs node by node."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from core.batch_size import inference_batch
from core.errors import PruningError
from core.graph.blocks import Block, is_activation
from core.graph.ids import source
from core.graph.network import Network
from core.training.memory_format import images_channels_last

if TYPE_CHECKING:
    from core.saliency.block_scores import Scoring


class NodeByNode(fx.Interpreter):
    """Runs a graph and hands each value to `look` before anything reads it; what `look` returns takes its place.

    The numbers are those of the graph itself, and a value is held until it was read last.
    """

    def __init__(self, module: fx.GraphModule, look: Callable[[fx.Node, Tensor], Tensor]) -> None:
        super().__init__(module)
        self._look = look

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        return value if n.op == "output" else self._look(n, value)


def output_of(network: Network, block: Block) -> fx.Node:
    """What the next block gets of `block`, a residual one: its `add`, or the activation behind it where nothing else
    reads the `add`."""
    end = node_of(network, block.exit)
    readers = list(end.users)
    return readers[0] if len(readers) == 1 and is_activation(network.module, readers[0]) else end


def residual_path(network: Network, block: Block) -> fx.Node:
    """What the residual path gives to the `add` of `block`."""
    assert block.path is not None
    return source(node_of(network, block.exit), block.path)


def shortcut(network: Network, block: Block) -> fx.Node:
    """What the shortcut gives to the `add` of `block`."""
    assert block.path is not None
    return source(node_of(network, block.exit), 1 - block.path)


def node_of(network: Network, name: str) -> fx.Node:
    """The node called `name`."""
    (found,) = (node for node in network.module.graph.nodes if node.name == name)
    assert isinstance(found, fx.Node)
    return found


def images_of(scoring: Scoring) -> Iterator[Tensor]:
    """The images that blocks are scored on, as model input, in batches that the network has room for."""
    network, data = scoring.network, scoring.data
    device = next(network.parameters()).device
    for images, _ in data.batches(scoring.split, inference_batch(network), device=device):
        yield images_channels_last(images, data.options.layout)
        scoring.looked(len(images))


def finite(scores: Mapping[str, float]) -> dict[str, float]:
    """`scores`, by block. Raises `PruningError` where one is no finite number, which has no place in an order."""
    for name, score in scores.items():
        if not math.isfinite(score):
            raise PruningError(
                f"the score of the block {name!r} is {score}: what it computes of these images is past the range of "
                "float32"
            )
    return dict(scores)
