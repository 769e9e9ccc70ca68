"""The epochs that all trainings of a recipe's steps may take together (`epochs_budget`).

Steps `train` and the rounds of a method take what they say, one after the other. Fine-tunings share what that leaves,
in proportion to what each would take: e epochs become ⌊e · free / planned⌋ where `planned`, theirs and those that are
still expected, are more than `free`. So a `train` of 200 epochs and one fine-tuning of 500 with a budget of 500 are
200 and 300, as in Velici 2022, section 4.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import Fault, NothingRemoved


@dataclass
class EpochsBudget:
    """`total`: None is no limit. `spent`: of trainings that are over. `train_later`, `others_later`: what later steps
    are expected to take, those that only train and the others."""

    total: int | None = None
    spent: int = 0
    train_later: int = 0
    others_later: int = 0

    @property
    def left(self) -> int | None:
        """Epochs that may still be taken; None: as many as there are."""
        return None if self.total is None else max(0, self.total - self.spent)

    @property
    def told(self) -> str:
        """In words, for a warning."""
        return f"epochs_budget is {self.total}"

    def expect(self, later: Sequence[tuple[int, bool]]) -> None:
        """Notes of each later step how many epochs it would take, and whether it only trains."""
        self.train_later = sum(epochs for epochs, trains in later if trains)
        self.others_later = sum(epochs for epochs, trains in later if not trains)

    def within(self, epochs: int) -> int:
        """`epochs`, or what is left of them."""
        return epochs if self.left is None else min(epochs, self.left)

    def leaving(self, room: int, epochs: int) -> int:
        """`epochs`, or what is left of them beside `room` epochs of a training behind them."""
        return epochs if self.left is None else max(0, min(epochs, self.left - room))

    def share(self, epochs: int, *, rounds: int = 0, to_come: int = 0, least: int = 0) -> int:
        """Of a fine-tuning that would take `epochs`, what it gets: `least`, where there is as much left. Of the same
        step there are still expected `rounds` epochs of its rounds and `to_come` of other fine-tunings."""
        if self.left is None:
            return epochs
        free = max(0, self.left - rounds - self.train_later)
        planned = epochs + to_come + self.others_later
        return epochs if planned <= free else min(self.left, max(epochs * free // planned, min(epochs, least)))

    def has_room_for(self, round_epochs: int, *, fine_tuned: bool) -> bool:
        """Whether another round fits in whole, and an epoch of fine-tuning behind it where there is to be one."""
        return self.left is None or self.left >= round_epochs + fine_tuned

    def require_room_for(self, round_epochs: int, *, fine_tuned: bool, step: int) -> None:
        """Raises `NothingRemoved` where not even the first round of a step fits in."""
        if self.has_room_for(round_epochs, fine_tuned=fine_tuned):
            return
        needed = round_epochs + fine_tuned
        message = f"step {step} has {self.left} epoch(s) left, and its first round needs {needed}"
        fault = Fault("/epochs_budget", message, f"at least {self.spent + needed}")
        raise NothingRemoved(f"{message}: {self.told}", faults=[fault])
