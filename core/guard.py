"""The guard of a target: how much validation accuracy a step may cost, and the smallest network seen within that."""

from __future__ import annotations

import math
from typing import Any

from core.errors import Fault, NothingRemoved
from core.graph.network import Network
from core.graph.plans import replay
from core.state import State
from core.targets import ROUNDING, Goal


class Guard:
    """Remembers the smallest network that lost no more than `max_accuracy_drop` of the original's validation accuracy.

    Args:
        state: this object's own scope; what is put there is written by whoever saves next.

    A target without a guard admits everything and remembers nothing.
    """

    def __init__(self, target: Goal, *, state: State) -> None:
        self.allowed = target.target.max_accuracy_drop
        if self.allowed is not None and target.accuracy is None:
            raise ValueError("a guard needs the original's accuracy")
        self._original = target.accuracy or 0.0
        self._state = state

    def lost(self, accuracy: float) -> float:
        """Of the original's validation accuracy."""
        return self._original - accuracy

    def admits(self, accuracy: float | None) -> bool:
        """Whether a network of that validation accuracy is inside the guard. What was not measured is not."""
        if self.allowed is None:
            return True
        return accuracy is not None and self.lost(accuracy) <= self.allowed + ROUNDING

    def look(self, network: Network, cuts: int, accuracy: float | None) -> None:
        """Notes a network, after the first `cuts` entries of the step's plan, as it is now; one of which nothing has
        been cut is no smaller network."""
        if self.allowed is None or accuracy is None or cuts == 0:
            return
        least = min(self._state.get("least_lost", math.inf), self.lost(accuracy))
        self._state.put(least_lost=least)
        if self.admits(accuracy):
            self._state.put(inside={"cuts": cuts, "accuracy": accuracy, "weights": network.state_dict()})

    def smallest(self, given: Network, plan: list[dict[str, Any]], *, step: int) -> tuple[Network, int, float]:
        """The smallest network inside: itself, how many entries of `plan` (replayable on `given`) lead to it, and its
        validation accuracy. Raises `NothingRemoved` where none was."""
        inside = self._state.get("inside")
        if inside is None:
            least = self._state.get("least_lost")
            told = "nothing was cut" if least is None else f"the least was {least:.4g}"
            message = (
                f"every network that was visited lost more than the {self.allowed:g} of validation accuracy that "
                f"max_accuracy_drop allows; {told}"
            )
            fault = Fault(
                f"/steps/{step}/target/max_accuracy_drop", message, "a larger one, smaller rounds or more fine-tuning"
            )
            raise NothingRemoved(message, faults=[fault])
        network = replay(given, plan[: inside["cuts"]])
        network.load_state_dict(inside["weights"])
        return network, inside["cuts"], inside["accuracy"]
