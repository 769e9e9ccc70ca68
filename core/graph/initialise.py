"""Random weights for a network whose structure stays: what training from scratch begins with."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from core.errors import CutRefused, Fault
from core.graph.network import Network
from core.graph.operators.convolution import CONVOLUTIONS, TRANSPOSED


def reinitialise(network: Network, *, seed: int) -> list[str]:
    """New weights for every layer of `network`, in place, drawn on the CPU from `seed`.

    Convolutions: normal with variance 2 / (fan-in), He et al. 2015, so that without normalisation, too, activations
    keep their size; biases 0. All other layers as torch initialises them; normalisations begin anew, statistics too.
    Returns the parameters that are not of a layer (a scale or an offset of its own, a class token): nothing says how
    they began, and they stay, as constants of the graph do.
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
            if not draw(module):
                kept += [f"{name}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False)]
    network.to(device)
    return kept


def draw(module: nn.Module) -> bool:
    """New weights for one layer, in place, from torch's generator. Returns whether it knows how."""
    if isinstance(module, CONVOLUTIONS):
        with torch.no_grad():
            module.weight.normal_(std=math.sqrt(2 / fan_in(module)))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()
    else:
        return False
    return True


def renew(layers: Iterable[nn.Module], *, seed: int) -> None:
    """New weights for some layers, in place, each as `draw` makes them, drawn on the CPU from `seed`. Where a tensor
    lies and how it is laid out in memory stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            fresh = copy.deepcopy(layer).to("cpu")
            for parameter in fresh.parameters():
                parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
            draw(fresh)
            layer.load_state_dict(fresh.state_dict())


def fan_in(layer: nn.Module) -> float:
    """How many inputs each output of a convolution is made of; of a transposed one, on average."""
    weight, kernel = layer.get_parameter("weight"), math.prod(layer.get_parameter("weight").shape[2:])
    if isinstance(layer, TRANSPOSED):  # (in, out / groups, ...)
        return max(1.0, weight.shape[0] / layer.groups * kernel / math.prod(layer.stride))
    return weight.shape[1] * kernel


def reinitialised(network: Network, *, seed: int) -> tuple[Network, dict[str, Any], list[str]]:
    """A copy of `network` with new weights, the plan entry for it, and what `reinitialise` has left as it was."""
    fresh = network.clone()
    kept = reinitialise(fresh, seed=seed)
    return fresh, {"op": "reinitialise", "seed": seed}, kept


def replay_reinitialise(network: Network, entry: Mapping[str, Any]) -> Network:
    """A plan entry of kind "reinitialise". Raises `CutRefused` where it has no seed."""
    return reinitialised(network, seed=seed_of(entry))[0]


def seed_of(entry: Mapping[str, Any]) -> int:
    """A plan entry's seed. Raises `CutRefused` where it has none."""
    seed = entry.get("seed")
    if type(seed) is not int or not 0 <= seed < 2**63:
        fault = Fault("/seed", f"{str(seed)[:60]!r} is no seed", "an integer from 0 to 2**63 - 1")
        raise CutRefused("the plan entry has no seed", faults=[fault])
    return seed
