"""What a method that removes in rounds remembers between them, and how it ends where its guard has stopped it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from core.events import Emit
from core.graph.network import Network
from core.guard import Guard
from core.report import Check, Cost, FrontPoint, LatencyRatio
from core.state import State
from core.targets import Present
from core.training.port import FitResult, add_costs


@dataclass
class PruningRun:
    """Rounds done and what they left. `removed`: of each round, how many units of which group. `ends`: after each, how
    long the plan was."""

    round: int = 0
    plan: list[dict[str, Any]] = field(default_factory=list)
    front: list[FrontPoint] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    removed: list[dict[str, int]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, state: State) -> Self:
        """As an earlier attempt saved it (`values`); nothing done where it saved nothing."""
        if "front" not in state:
            return cls()
        return cls(**cls.read(state))

    @classmethod
    def read(cls, state: State) -> dict[str, Any]:
        return {
            "round": state["round"],
            "plan": list(state["plan"]),
            "front": [FrontPoint(**point) for point in state["front"]],
            "checks": [Check(**check) for check in state["checks"]],
            "cost": Cost(**state["cost"]),
            "removed": list(state["removed"]),
            "ends": list(state["ends"]),
        }

    def values(self) -> dict[str, Any]:
        """For `State.save`."""
        return {
            "round": self.round,
            "plan": self.plan,
            "front": [point.model_dump() for point in self.front],
            "checks": [check.model_dump() for check in self.checks],
            "cost": self.cost.model_dump(),
            "removed": self.removed,
            "ends": self.ends,
        }

    def over(self, removed: dict[str, int]) -> None:
        """One round more is done."""
        self.round += 1
        self.removed.append(removed)
        self.ends.append(len(self.plan))

    def keep(self, entries: int) -> None:
        """Forgets every entry of the plan but the first `entries`, and the rounds after them; what they cost stays."""
        rounds = self.ends.index(entries) + 1
        self.plan, self.removed, self.ends = self.plan[:entries], self.removed[:rounds], self.ends[:rounds]
        self.checks = self.checks[:entries]

    def visit(self, step: int, present: Present, accuracy: float | None) -> None:
        """Notes a network. Its accuracy is that of the moment; training it replaces it (`trained`)."""
        counts = present.counts
        self.front.append(
            FrontPoint(step=step, round=self.round, params=counts.params, macs=counts.macs, filters=counts.filters,
                       blocks=counts.blocks, validation_accuracy=accuracy, file_bytes=present.file_bytes,
                       latency=present.latency)
        )  # fmt: skip

    @property
    def latency(self) -> LatencyRatio | None:
        """Of the network visited last, as it was measured then."""
        return self.front[-1].latency

    @property
    def kept_latency(self) -> LatencyRatio | None:
        """Of the network that the plan leads to."""
        return next(point for point in reversed(self.front) if point.round <= len(self.ends)).latency

    @property
    def accuracy(self) -> float | None:
        """On validation, of the network visited last, as it was trained last."""
        return self.front[-1].validation_accuracy

    def spent(self, cost: Cost) -> None:
        """Books a training of a network that was not visited."""
        self.cost = add_costs(self.cost, cost)

    def trained(self, fit: FitResult) -> None:
        """Books a training of the network visited last."""
        self.spent(fit.cost)
        if fit.score is not None and self.plan:  # the point of what was given stays as it is
            self.front[-1] = self.front[-1].model_copy(update={"validation_accuracy": fit.score.accuracy})

    def back_inside(
        self, guard: Guard, given: Network, *, step: int, label: str, emit: Emit
    ) -> tuple[Network, float, str]:
        """What the step ends with where the network visited last is outside of `guard`: the smallest one inside, its
        validation accuracy, and a warning that says so. Raises `NothingRemoved` where none was."""
        network, entries, accuracy = guard.smallest(given, self.plan, step=step)
        emit(f"{label}/guard", max_accuracy_drop=guard.allowed, lost=guard.lost(self.accuracy or 0.0),
             kept_cuts=entries, kept_lost=guard.lost(accuracy))  # fmt: skip
        warning = (
            f"step {step} was stopped by max_accuracy_drop {guard.allowed:g} after {len(self.plan)} cut(s): the "
            f"network after {entries} of them is kept, which lost {guard.lost(accuracy):.4g} on validation"
        )
        self.keep(entries)
        return network, accuracy, warning
