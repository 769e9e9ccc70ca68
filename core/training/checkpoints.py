"""A training that is under way, and its checkpoint: enough to go on from there in the same bits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.graph.network import Network
from core.report import Cost
from core.state import State
from core.training.stepping import Stepping


@dataclass
class Fit:
    """What a checkpoint holds of the training called `label`, besides weights and optimizer.

    `epochs`: the records of those that are done. `best`: {"epoch", "accuracy", "loss", "weights"} where it is wanted.
    """

    label: str
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    cost: Cost = field(default_factory=Cost)

    @classmethod
    def resumed(cls, label: str, state: State, network: Network, stepping: Stepping) -> Fit:
        """As `state` has it, with weights and optimizer put back; a fresh one where it holds no training `label`."""
        if state.get("label") != label:
            return cls(label)
        network.load_state_dict(state["weights"])
        stepping.load(state["stepping"])
        return cls(label, list(state["epochs"]), state["best"], Cost(**state["cost"]))

    def save(self, state: State, network: Network, stepping: Stepping) -> None:
        """Writes a checkpoint."""
        state.save(
            label=self.label,
            epochs=self.epochs,
            best=self.best,
            cost=self.cost.model_dump(),
            weights=network.state_dict(),
            stepping=stepping.state(),
        )
