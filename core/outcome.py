"""What a method gives back, and what all steps together have left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.block_report import BlockHistory
from core.graph.network import Network
from core.graph.plans import replay
from core.report import Check, Cost, FrontPoint, KeptCheckpoint, LatencyRatio
from core.state import State
from core.training.port import add_costs


@dataclass(frozen=True)
class Outcome:
    """`plan`: what was done to the network that the method was given, replayable on it (`core.graph.plans.replay`).

    `front`: every network visited. `checks`: the proof of each cut. `cost`: of all training in the step.
    `skipped`: why nothing was to be done (the target held already); then the plan is empty. `warnings`: what a reader
    of the report should know. `accuracy`: of what is left, on validation. `removed`: of each round, how many units of
    which group; `random` removes as many. `latency`: of what is left, where the target asks for it. `checkpoints`:
    files that were kept. `blocks`: what its rounds were, where it removes blocks.
    """

    network: Network
    plan: list[dict[str, Any]]
    front: list[FrontPoint]
    cost: Cost
    checks: list[Check]
    skipped: str | None = None
    warnings: list[str] = field(default_factory=list)
    accuracy: float | None = None
    removed: list[dict[str, int]] = field(default_factory=list)
    latency: LatencyRatio | None = None
    checkpoints: list[KeptCheckpoint] = field(default_factory=list)
    blocks: BlockHistory | None = None


@dataclass
class Done:
    """What the steps so far have left. `plan` is replayable on the original. `accuracies`, `removed`, `latencies`,
    `blocks`: of each step, see `Outcome`. `entries`: of each step, how many of the plan are its own."""

    network: Network
    steps: int = 0
    plan: list[dict[str, Any]] = field(default_factory=list)
    front: list[FrontPoint] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    warnings: list[str] = field(default_factory=list)
    accuracies: list[float | None] = field(default_factory=list)
    removed: list[list[dict[str, int]]] = field(default_factory=list)
    latencies: list[LatencyRatio | None] = field(default_factory=list)
    checkpoints: list[KeptCheckpoint] = field(default_factory=list)
    blocks: list[BlockHistory | None] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, state: State, original: Network) -> Done:
        """As an earlier attempt saved it (`values`); nothing done where it saved nothing."""
        if "steps" not in state:
            return cls(original)
        network = replay(original, state["plan"]) if state["plan"] else original.clone()
        network.load_state_dict(state["weights"])
        return cls(
            network,
            steps=state["steps"],
            plan=list(state["plan"]),
            front=[FrontPoint(**point) for point in state["front"]],
            checks=[Check(**check) for check in state["checks"]],
            cost=Cost(**state["cost"]),
            warnings=list(state["warnings"]),
            accuracies=list(state["accuracies"]),
            removed=list(state["removed"]),
            latencies=[None if item is None else LatencyRatio(**item) for item in state["latencies"]],
            checkpoints=[KeptCheckpoint(**kept) for kept in state["checkpoints"]],
            blocks=[None if item is None else BlockHistory(**item) for item in state["blocks"]],
            entries=list(state["entries"]),
        )

    def add(self, outcome: Outcome) -> None:
        """One step more is done."""
        if outcome.skipped is not None:
            self.warnings.append(f"step {self.steps} was skipped: {outcome.skipped}")
        self.warnings += outcome.warnings
        self.network = outcome.network
        self.steps += 1
        self.accuracies.append(outcome.accuracy)
        self.removed.append(outcome.removed)
        self.latencies.append(outcome.latency)
        self.checkpoints += outcome.checkpoints
        self.blocks.append(outcome.blocks)
        self.entries.append(len(outcome.plan))
        self.plan += outcome.plan
        self.front += outcome.front
        self.checks += outcome.checks
        self.cost = add_costs(self.cost, outcome.cost)

    def values(self) -> dict[str, Any]:
        """For `State.save`."""
        return {
            "steps": self.steps,
            "plan": self.plan,
            "front": [point.model_dump() for point in self.front],
            "checks": [check.model_dump() for check in self.checks],
            "cost": self.cost.model_dump(),
            "warnings": self.warnings,
            "accuracies": self.accuracies,
            "removed": self.removed,
            "latencies": [None if item is None else item.model_dump() for item in self.latencies],
            "checkpoints": [kept.model_dump() for kept in self.checkpoints],
            "blocks": [None if item is None else item.model_dump() for item in self.blocks],
            "entries": self.entries,
            "weights": self.network.state_dict(),
        }
