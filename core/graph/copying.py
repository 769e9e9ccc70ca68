"""Deep copies of canonical graphs, in a fraction of the time of `copy.deepcopy`, which copies every attribute of every
layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn


def copied(module: fx.GraphModule, instead: Mapping[int, Tensor]) -> fx.GraphModule:
    """Own layers, parameters, buffers and nodes; modes and names stay. `instead` has other tensors by the old ones' id.

    Layers and tensors that are there under two names are copied once. Hooks and gradients are left behind.
    """
    memo: dict[int, nn.Module | Tensor] = dict(instead)
    twin = fx.GraphModule(_module(module, memo), copy.deepcopy(module.graph))
    twin.training = module.training
    return twin


def _module(module: nn.Module, memo: dict[int, nn.Module | Tensor]) -> nn.Module:
    known = memo.get(id(module))
    if isinstance(known, nn.Module):
        return known
    kind = nn.Module if isinstance(module, fx.GraphModule) else type(module)
    twin = memo[id(module)] = nn.Module.__new__(kind)
    nn.Module.__init__(twin)
    own = {name: value for name, value in vars(module).items() if name not in vars(twin) or name == "training"}
    vars(twin).update(own)
    vars(twin)["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    twin._parameters.update((name, _tensor(value, memo)) for name, value in module._parameters.items())  # type: ignore[misc]
    twin._buffers.update((name, _tensor(value, memo)) for name, value in module._buffers.items())
    twin._modules.update((name, _module(child, memo)) for name, child in module._modules.items() if child is not None)
    return twin


def _tensor(tensor: Tensor | None, memo: dict[int, nn.Module | Tensor]) -> Tensor | None:
    if tensor is None:
        return None
    known = memo.get(id(tensor))
    if isinstance(known, Tensor):
        return known
    twin = tensor.detach().clone(memory_format=torch.preserve_format)
    if isinstance(tensor, nn.Parameter):
        twin = nn.Parameter(twin, tensor.requires_grad)
    memo[id(tensor)] = twin
    return twin
