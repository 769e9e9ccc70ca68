"""Residual paths made to give zero, without taking from them what they could learn by.

Of a path whose weights are all zero no weight has a gradient: each is multiplied by another that is zero. So one layer
is zeroed, the last one of which the path gives exactly zero then: y = H(x) with H = γ · norm(…) + β and γ = β = 0, or
the last convolution or linear layer with its bias. Its own parameters have gradients, and once they have moved so have
those in front of it. (A path that ends in a ReLU stays zero: torch's ReLU has no slope at 0.)
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from core.errors import CutRefused, Fault
from core.graph.blocks import Block
from core.graph.bypass import without_blocks
from core.graph.ids import source
from core.graph.network import Network
from core.training.forward import with_outputs


def silencing_layer(network: Network, block: Block) -> str:
    """The last layer that only this residual block uses and without whose weights and biases its path gives zero.

    Found by trying, on an example. Raises `CutRefused` where there is none.
    """
    left = without_blocks(network, [block.name]).layers()
    twin = network.clone().eval()
    device = next(network.parameters()).device
    (end,) = (node for node in twin.module.graph.nodes if node.name == block.exit)
    assert block.path is not None
    run = with_outputs(twin.module, [source(end, block.path).name])
    inputs = tuple(item.to(device) for item in network.example_inputs(batch=1))
    for name in reversed([layer for layer in block.own if layer not in left]):
        parameters = list(twin.module.get_submodule(name).parameters())
        kept = [parameter.detach().clone() for parameter in parameters]
        silence(twin, [name])
        with torch.no_grad():
            _, (given,) = run(*inputs)
            if not given.any():
                return name
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
    reason = "no layer of its residual path makes the path zero by its own weights"
    raise CutRefused(f"{block.name!r} cannot be zeroed: {reason}", faults=[Fault("/block", reason)])


def silence(network: Network, layers: Collection[str]) -> None:
    """Sets weights and biases of these layers to zero, in place."""
    with torch.no_grad():
        for name in layers:
            for parameter in network.module.get_submodule(name).parameters():
                parameter.zero_()
