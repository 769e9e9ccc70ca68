"""The classifier of a network: the layers that make its first output."""

from __future__ import annotations

from torch import fx

from core.graph.network import Network
from core.graph.operators import MAKERS


def classifier_layers(network: Network) -> list[str]:
    """Names of the convolutions and linear layers that the first output comes from with no other in between, and of
    what is trained behind them (a BatchNorm, a PReLU), in order.

    One, mostly: the last linear layer, or the last convolution where pooling or a reshape follows it.
    """
    layers = network.layers()
    found: list[str] = []
    seen: set[fx.Node] = set()
    waiting = [network.output_nodes()[0]]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "call_module" and node.target in layers:
            found.append(str(node.target))
            if isinstance(layers[str(node.target)], MAKERS):
                continue
        waiting += node.all_input_nodes
    return [name for name in layers if name in found]
