"""One step of a training: the rates of this moment, the gradients, their scale and their norm, the optimizer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from core.graph.network import Network
from core.training.optimizers import build_optimizer, grouped, load_optimizer, set_rate
from core.training.port import ParameterGroup
from core.training_settings import Training


class Stepping:
    """Steps of the parameters of `network` called `names`, in groups of their own where `groups` say so.

    With `precision: float16` the loss is scaled up, and the gradients back, so that small ones are not lost; a step
    whose gradients are not finite is left out and the scale halved (Micikevicius et al. 2018, section 3.2).
    """

    def __init__(
        self,
        network: Network,
        training: Training,
        names: Collection[str],
        *,
        groups: Sequence[ParameterGroup] = (),
        device: torch.device,
    ) -> None:
        self._network = network
        self._training = training
        self.optimizer = build_optimizer(training.optimizer, grouped(network, training, names, groups))
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "float16")

    def begin(self, factor: float, momentum: float | None) -> float:
        """Sets every rate to `factor` times its own, forgets gradients. Returns the rate."""
        set_rate(self.optimizer, factor, momentum)
        self.optimizer.zero_grad(set_to_none=True)
        return self._training.optimizer.lr * factor

    def end(self, loss: Tensor) -> None:
        """Gradients of `loss`, and the step along them."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self._training.clip_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._training.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
