"""What a method gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.graph.network import Network
from core.report import Check, Cost, FrontPoint


@dataclass(frozen=True)
class Outcome:
    """`plan`: what was done to the network that the method was given, replayable on it (`core.graph.cuts.replay`).

    `front`: every network visited. `checks`: the proof of each cut. `cost`: of all training in the step.
    `skipped`: why nothing was to be done (the target held already); then the plan is empty.
    """

    network: Network
    plan: list[dict[str, Any]]
    front: list[FrontPoint]
    cost: Cost
    checks: list[Check]
    skipped: str | None = None
