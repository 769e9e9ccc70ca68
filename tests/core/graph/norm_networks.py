"""Networks with BatchNorms that do something, and what the tests of inserting and folding them ask of one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.graph.lowering import trace
from core.graph.network import Network

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def wide(network: Network) -> Network:
    """In float64, where what is exact is equal to many digits."""
    return network.clone().to(torch.float64).eval()


def batches(network: Network, count: int = 3) -> list[Tensor]:
    dtype = next(network.parameters()).dtype
    return [network.example_input(8, seed=seed, dtype=dtype) for seed in range(count)]


def norms(network: Network) -> list[str]:
    return [name for name, layer in network.layers().items() if isinstance(layer, NORMS)]


def settled(module: nn.Module, shape: tuple[int, ...]) -> Network:
    """The module with BatchNorms that do something, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, NORMS):
            for tensor in (layer.weight, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 2, generator=generator)
            for tensor in (layer.bias, layer.running_mean):
                nn.init.uniform_(tensor, -1, 1, generator=generator)
    return trace(module.eval(), shape)
