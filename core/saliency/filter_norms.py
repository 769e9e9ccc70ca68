"""2-norms of filters, accumulated over training iterations (Salcedo & Sharma, algorithm 1).

Per layer i with C filters, at each iteration, ñ_i (C,):

    weights:      ñ_i[c] = ‖W_i[c, :, :, :]‖₂            W_i (C, in, kh, kw)
    activations:  ñ_i[c] = ‖A_i[:, c, :, :]‖₂            A_i (N, C, H, W), the convolution's output in training
    optionally    ñ_i ← ñ_i / max|ñ_i|                   `normalize: max`
    accumulated   n_i ← n_i + ñ_i

A channel group may join filters of several layers (the layers that meet in a residual `add`). Its unit u then scores

    s[u] = √( mean over the filters of u of n² )

the root mean square of its filters' accumulated norms. For a unit of one filter that is the paper's n_i[c]. Inside a
group it ranks as the 2-norm of all that the unit holds, taken together; unlike that norm, it does not grow with the
number of layers that are joined, so that groups can be compared (`scope: global`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.errors import PruningError
from core.graph.groups import ChannelGroup
from core.graph.network import Network
from core.graph.operators.convolution import CONVOLUTIONS, TRANSPOSED


def weight_norms(layer: nn.Module) -> Tensor:
    """(C,) float64: per output channel, the 2-norm of its weights, over input channels and kernel, without the bias."""
    _require_supported(layer)
    weight = layer.get_parameter("weight").detach()  # (C, in, ...)
    if isinstance(layer, TRANSPOSED):  # (in, C / groups, ...): each group of inputs has filters of its own
        grouped = weight.reshape(layer.groups, -1, weight.shape[1], math.prod(layer.kernel_size))
        weight = grouped.transpose(1, 2).flatten(0, 1)  # (C, in / groups, kernel)
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1, dtype=torch.float64)
    return norms


def activation_norms(layer: nn.Module, output: Tensor) -> Tensor:
    """(C,) float64: per output channel, the 2-norm of `output`, (N, C, ...); (N, ..., C) of a Linear."""
    _require_supported(layer)
    channel = output.dim() - 1 if isinstance(layer, nn.Linear) else 1
    others = [dim for dim in range(output.dim()) if dim != channel]
    norms: Tensor = torch.linalg.vector_norm(output.detach().float(), dim=others)  # the squares of halves overflow
    return norms.double()


def normalized_by_max(norms: Tensor) -> Tensor:
    """norms / max |norms|; unchanged where all are 0."""
    largest = norms.abs().max()
    return torch.where(largest > 0, norms / largest, norms)


NORMALIZERS: Mapping[str, Callable[[Tensor], Tensor]] = {"none": lambda norms: norms, "max": normalized_by_max}


class FilterNorms:
    """Accumulates the norms of `layers` of a network. `add` is called once per iteration, after the optimizer step.

    `signal: activations` is noticed by hooks while `recording()` is entered, in training mode only; or by `look`.
    """

    def __init__(
        self,
        layers: Iterable[str],
        *,
        signal: Literal["weights", "activations"],
        normalize: Literal["none", "max"],
    ) -> None:
        self._layers = tuple(layers)
        self._signal = signal
        self._normalize = NORMALIZERS[normalize]
        self._seen: dict[str, Tensor] = {}
        self._training = True
        self.totals: dict[str, Tensor] = {}
        self.iterations = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"totals": self.totals, "iterations": self.iterations}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.totals = {name: total.clone() for name, total in state["totals"].items()}
        self.iterations = state["iterations"]

    @contextmanager
    def recording(self, network: Network) -> Iterator[None]:
        """Notices activations meanwhile, where the signal is activations."""
        layers = self._layers if self._signal == "activations" else ()
        handles = [network.module.get_submodule(name).register_forward_hook(self._hook(name)) for name in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen.clear()

    def look(self, network: Network, batches: Iterable[Tensor]) -> None:
        """Accumulates over `batches` of model input, one iteration each, in evaluation mode and without gradients."""
        network.eval()
        self._training = False
        try:
            with self.recording(network), torch.no_grad():
                for images in batches:
                    network(images)
                    self.add(network)
        finally:
            self._training = True

    def add(self, network: Network) -> None:
        """One iteration is over."""
        for name in self._layers:
            if self._signal == "weights":
                norms = weight_norms(network.module.get_submodule(name))
            else:
                norms = self._seen.pop(name)
            norms = self._normalize(norms)
            if name in self.totals:
                self.totals[name] = self.totals[name].to(norms.device) + norms
            else:
                self.totals[name] = norms
        self.iterations += 1

    def scores(self, group: ChannelGroup) -> list[float]:
        """Per unit, the root mean square of its filters' accumulated norms, divided by the number of iterations."""
        found = []
        totals = {layer.layer: self.totals[layer.layer].tolist() for layer in group.producers}
        for unit in range(group.width):
            norms = [totals[layer.layer][channel] for layer in group.producers for channel in layer.channels[unit]]
            found.append(math.sqrt(math.fsum(norm * norm for norm in norms) / len(norms)) / self.iterations)
        return found

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def notice(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            if layer.training == self._training:
                norms = activation_norms(layer, output)
                # a layer that is used twice has one norm over all that it gave
                self._seen[name] = torch.hypot(self._seen[name], norms) if name in self._seen else norms

        return notice


def _require_supported(layer: nn.Module) -> None:
    if not isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
        raise PruningError(f"filter norms of a {type(layer).__name__} are not defined")
