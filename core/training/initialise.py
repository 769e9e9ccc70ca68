"""Random weights for a network whose structure stays: what training from scratch begins with."""

from __future__ import annotations

import torch
from torch import nn

from core.graph.network import Network
from core.graph.operators.convolution import CONVOLUTIONS


def reinitialise(network: Network, *, seed: int) -> list[str]:
    """New weights for every layer of `network`, in place, drawn on the CPU from `seed`.

    Convolutions: normal with variance 2 / (fan-out), He et al. 2015, as torchvision's networks have it; biases 0. All
    other layers as torch initialises them; normalisations begin anew, statistics too. Returns the parameters that are
    not of a layer (a scale or an offset of its own, a class token): nothing says how they began, and they stay.
    """
    device = next(network.parameters()).device
    network.to("cpu")
    kept = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for (
            parameter
        ) in network.parameters():  # numbers are drawn in the order of memory: another layout, other weights
            parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
        for name, module in network.module.named_modules():
            if isinstance(module, CONVOLUTIONS):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            else:
                kept += [f"{name}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False)]
    network.to(device)
    return kept
