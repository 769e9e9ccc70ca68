"""Noise on the weights before a fine-tuning, to push the network out of a minimum (Velici 2022, section 3.6.2)."""

from __future__ import annotations

from collections.abc import Collection

import torch

from core.data.augment import seeded
from core.graph.network import Network
from core.graph.operators.convolution import CONVOLUTIONS, TRANSPOSED
from core.training_settings import WeightNoise


def add_weight_noise(network: Network, noise: WeightNoise, *, seed: int, spared: Collection[str] = ()) -> None:
    """Adds to the weights of every convolution of `network` but those `spared`, in place, normal numbers of mean 0 and
    `eta` times their standard deviation: of all weights of the layer, or (`per: kernel`) of those of each filter.

    The draws are made on the CPU, of (seed, the layer's name) alone.
    """
    with torch.no_grad():
        for name, layer in network.layers().items():
            if not isinstance(layer, CONVOLUTIONS) or name in spared:
                continue
            weight = layer.weight
            if noise.per == "layer":
                std = weight.std(correction=0)
            else:
                filters = (
                    (0, *range(2, weight.dim())) if isinstance(layer, TRANSPOSED) else tuple(range(1, weight.dim()))
                )
                std = weight.std(filters, keepdim=True, correction=0)
            drawn = torch.randn(weight.shape, generator=seeded(seed, 0, f"weight noise of {name}"))
            weight.add_(drawn.to(weight.device, weight.dtype) * std * noise.eta)
