"""Random weights to start from. An upload brings its own; these are for training from scratch."""

from __future__ import annotations

from torch import nn


def he(module: nn.Module, *, linear: float | None = None) -> None:
    """He initialisation of the convolutions' weights (He et al. 2015b, by outputs).

    `linear`: the standard deviation of linear layers' weights, their biases being 0. All else stays as torch makes it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear) and linear is not None:
            nn.init.normal_(layer.weight, 0, linear)
            nn.init.zeros_(layer.bias)


def truncated_normal(module: nn.Module, deviation: float) -> None:
    """Weights of convolutions and linear layers normal with `deviation`, cut off at two of it; biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
