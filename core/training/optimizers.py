"""Optimizers by the recipe's name, and their state across a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.graph.network import Network
from core.training.classifier import classifier_layers
from core.training.port import ParameterGroup
from core.training_settings import AdamW, Optimizer, Sgd, Training

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]
_NO_GROUP = ParameterGroup(())


def sgd(settings: Sgd, parameters: Parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def adamw(settings: AdamW, parameters: Parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)


OPTIMIZERS: Mapping[str, Callable[[Any, Parameters], torch.optim.Optimizer]] = {"sgd": sgd, "adamw": adamw}


def build_optimizer(settings: Optimizer, parameters: Parameters) -> torch.optim.Optimizer:
    """The optimizer that `settings` describe, over all `parameters`, or groups of them as torch takes them."""
    optimizer = OPTIMIZERS[settings.name](settings, parameters)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def grouped(
    network: Network, training: Training, names: Collection[str], groups: Sequence[ParameterGroup] = ()
) -> list[dict[str, Any]]:
    """The parameters of `network` called `names`, with rate and weight decay, as torch's optimizers take them: one
    group where all have the same.

    A group of `groups` goes before what the optimizer's settings say. Raises `ValueError` where one names a parameter
    that the network has not, or that is in another, too.
    """
    settings, parameters = training.optimizer, dict(network.named_parameters())
    own: dict[str, ParameterGroup] = {}
    for group in groups:
        if wrong := [name for name in group.names if name not in parameters or name in own]:
            raise ValueError(f"no such parameter, or one in two groups: {', '.join(wrong)}")
        own.update(dict.fromkeys(group.names, group))
    layers = network.layers()
    classifier = {id(item) for name in classifier_layers(network) for item in layers[name].parameters()}
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if name not in names:
            continue
        rate, decay = settings.lr, settings.weight_decay
        if settings.classifier_lr is not None and id(parameter) in classifier:
            rate = settings.classifier_lr
        if not settings.decay_norm_and_bias and parameter.dim() <= 1:
            decay = 0.0
        if (group := own.get(name, _NO_GROUP)) is not _NO_GROUP:
            rate = rate if group.lr is None else group.lr
            decay = decay if group.weight_decay is None else group.weight_decay
        found.setdefault((rate, decay), []).append(parameter)
    return [{"params": items, "lr": rate, "weight_decay": decay} for (rate, decay), items in found.items()]


def set_rate(optimizer: torch.optim.Optimizer, factor: float, momentum: float | None) -> None:
    """Every group's learning rate as `factor` times the one that it was built with, and the momentum (of AdamW the
    first beta) where it is given."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
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
