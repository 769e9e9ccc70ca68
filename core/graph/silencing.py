"""Residual paths made to give zero, without taking from them what they could learn by.

Of a path whose weights are all zero no weight has a gradient: each is multiplied by another that is zero. So one layer
is zeroed, the last one of which the path gives exactly zero then: y = H(x) with H = γ · norm(…) + β and γ = β = 0, or
the last convolution or linear layer with its bias. Its own parameters have gradients, and once they have moved so have
those in front of it. (A path that ends in a ReLU stays zero: torch's ReLU has no slope at 0.)
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from core.errors import CutRefused, Fault
from core.graph.blocks import Block
from core.graph.bypass import without_blocks
from core.graph.ids import source
from core.graph.network import Network


def silencing_layer(network: Network, block: Block, *, learning: bool = False) -> str:
    """The last layer that only this residual block uses and without whose weights and biases its path gives zero.

    learning: and which has a gradient then. Found by trying, on examples; `network` is left as it is. Raises
    `CutRefused` where there is none.
    """
    left = without_blocks(network, [block.name]).layers()
    for name in reversed([layer for layer in block.own if layer not in left]):
        layer = network.module.get_submodule(name)
        weighs = isinstance(getattr(layer, "weight", None), nn.Parameter) and not isinstance(layer, nn.PReLU)
        if weighs and _silences(network, block, name, learning=learning):
            return name
    reason = "no layer of its residual path makes the path zero by its own weights"
    reason += " and could learn from there" if learning else ""
    raise CutRefused(f"{block.name!r} cannot be zeroed: {reason}", faults=[Fault("/block", reason)])


def silence(network: Network, layers: Collection[str]) -> None:
    """Sets weights and biases of these layers to zero, in place."""
    with torch.no_grad():
        for name in layers:
            for parameter in network.module.get_submodule(name).parameters():
                parameter.zero_()


def _silences(network: Network, block: Block, name: str, *, learning: bool) -> bool:
    """Whether the residual path gives 0 everywhere where the layer `name` is zeroed, and the layer has a gradient."""
    trial = network.clone().eval()
    silence(trial, [name])
    (end,) = (node for node in trial.module.graph.nodes if node.name == block.exit)
    assert block.path is not None
    result = source(end, block.path)
    (output,) = trial.module.graph.find_nodes(op="output")
    output.args = (result,)
    trial.module.graph.eliminate_dead_code()
    trial.module.recompile()
    parameters = [parameter.requires_grad_(True) for parameter in trial.module.get_submodule(name).parameters()]
    device = parameters[0].device
    with torch.enable_grad():
        made = trial.module(*(item.to(device) for item in trial.example_inputs(2)))
        if made.detach().any() or not learning:
            return not made.detach().any()
        generator = torch.Generator().manual_seed(0)
        found = torch.autograd.grad(
            made, parameters, torch.randn(made.shape, generator=generator).to(device), allow_unused=True
        )
    return any(gradient is not None and bool(gradient.any()) for gradient in found)
