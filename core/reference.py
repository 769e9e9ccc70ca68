"""What the pruned network is held against: the original; or, where the recipe gives it a new classifier, the network
that the `train` steps in front of the first pruning step have made of it, since without them it knows nothing."""

from __future__ import annotations

from typing import Any

import torch

from core.baseline import is_better_than_guessing
from core.data.datasets import Dataset
from core.errors import BaselineNearChance, Fault
from core.events import Emit
from core.graph.network import Network
from core.state import State
from core.training.port import SplitName, TrainerPort
from core.training.trainer import Trainer

KEY = "reference"
SPLITS: tuple[SplitName, ...] = ("validation", "test")


def measured(network: Network, trainer: TrainerPort, emit: Emit) -> dict[str, Any]:
    """Accuracies (0-1) of `network` on validation and test, and how many images it has right in both together."""
    found: dict[str, Any] = {"correct": 0}
    for split in SPLITS:
        score = trainer.evaluate(network, split)
        emit(f"baseline/{split}", accuracy=score.accuracy, loss=score.loss, images=score.images)
        found["correct"] += round(score.accuracy * score.images)
        found[split] = score.accuracy
    return found


def images_per_class(dataset: Dataset) -> list[int]:
    """Of validation and test together."""
    found: list[int] = torch.bincount(torch.cat([dataset.splits[split].y for split in SPLITS])).tolist()
    return found


class Reference:
    """Looked at once, when the steps come to it; a later attempt has it from `state`.

    Args:
        start: what the steps begin with; the reference has its structure.
        trainer: measures it, and distils from it afterwards.
        near_chance: whether one that is no better than guessing is pruned all the same.
    """

    def __init__(
        self, start: Network, dataset: Dataset, trainer: Trainer, *, state: State, emit: Emit, near_chance: bool
    ) -> None:
        self.network = start.clone()
        self._dataset = dataset
        self._trainer = trainer
        self._state = state
        self._emit = emit
        self._near_chance = near_chance
        self._is_known = False

    def __call__(self, network: Network) -> float:
        """Its accuracy on validation, 0-1; the first time that it is asked for it is `network`.

        Raises `BaselineNearChance`.
        """
        if not self._is_known:
            self._look(network)
            self._is_known = True
        return float(self._state[KEY]["validation"])

    def _look(self, network: Network) -> None:
        if KEY not in self._state:
            found = measured(network, self._trainer, self._emit)
            self._state.put(**{KEY: {**found, "weights": network.state_dict()}})
        known, per_class = self._state[KEY], images_per_class(self._dataset)
        if not self._near_chance and not is_better_than_guessing(known["correct"], per_class):
            raise BaselineNearChance(
                f"with its new classifier, after the train steps in front of pruning, the network classifies "
                f"{known['correct']} of {sum(per_class)} images rightly: no better than guessing",
                faults=[
                    Fault("/recipe/steps", "the new classifier has learnt nothing", "more epochs, or another rate"),
                    Fault("/recipe/allow_near_chance", "the job stops here unless the recipe says otherwise", "true"),
                ],
            )
        self.network.load_state_dict(known["weights"])
        self._trainer.teach(self.network)
