"""BatchNorm statistics measured afresh, without training: after a cut the old ones belong to another network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from core.graph.network import Network


def recalibrate(network: Network, batches: Iterable[Tensor]) -> int:
    """Replaces running means and variances by their plain averages over `batches`, each (B, ...) of model input.

    Only BatchNorm layers are in training mode meanwhile; weights stay as they are. Returns how many layers were
    measured: 0, and nothing is run, where the network has none that keep statistics.
    """
    layers = [
        module for module in network.module.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not layers:
        return 0
    network.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's way to say: cumulative average
        layer.train()
    with torch.no_grad():
        for batch in batches:
            network.logits(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()
    return len(layers)
