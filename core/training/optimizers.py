"""Optimizers by the recipe's name, and their state across a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from core.training_settings import AdamW, Optimizer, Sgd


def sgd(settings: Sgd, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def adamw(settings: AdamW, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)


OPTIMIZERS: Mapping[str, Callable[[Any, Iterable[nn.Parameter]], torch.optim.Optimizer]] = {"sgd": sgd, "adamw": adamw}


def build_optimizer(settings: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that `settings` describe, over all `parameters`: nothing is frozen."""
    return OPTIMIZERS[settings.name](settings, parameters)


def set_rate(optimizer: torch.optim.Optimizer, rate: float, momentum: float | None) -> None:
    """The learning rate, and the momentum (of AdamW the first beta) where it is given."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif momentum is not None:
            group["momentum"] = momentum


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Puts back what `optimizer.state_dict()` gave.

    Buffers shaped like their parameter get its memory format, too: kernels walk memory, not indices, and their
    vectorised part rounds differently from the rest, so that another layout would cost the last bit.
    """
    optimizer.load_state_dict(saved)
    for parameter, buffers in optimizer.state.items():
        for name, value in buffers.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                buffers[name] = torch.empty_like(parameter).copy_(value)
