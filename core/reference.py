"""What the pruned network is held against: the original; or, where the recipe gives it a new classifier, the network
that the `train` steps in front of the first pruning step have made of it, since without them it knows nothing."""

from __future__ import annotations

from core.errors import BaselineNearChance, Fault
from core.events import Emit
from core.graph.network import Network
from core.recipe import Recipe
from core.state import State
from core.tasks.task import Figures, joined
from core.training.port import SplitName
from core.training.trainer import Trainer

KEY = "reference"
SPLITS: tuple[SplitName, ...] = ("validation", "test")


def measured(network: Network, trainer: Trainer, emit: Emit) -> tuple[dict[str, float], Figures]:
    """Accuracies of `network` on validation and test, and the figures of both together."""
    figures = [trainer.figures(network, split) for split in SPLITS]
    found: dict[str, float] = {}
    for split, each in zip(SPLITS, figures, strict=True):
        score = trainer.task.score(each)
        more = {"measures": dict(score.measures)} if score.measures else {}
        emit(f"baseline/{split}", accuracy=score.accuracy, loss=score.loss, images=score.images, **more)
        found[split] = score.accuracy
    return found, joined(figures)


class Reference:
    """Looked at once, when the steps come to it; a later attempt has it from `state`.

    Args:
        start: what the steps begin with; the reference has its structure.
        trainer: measures it, and distils from it afterwards.
        recipe: says whether one that is no better than guessing is pruned all the same.
    """

    def __init__(self, start: Network, trainer: Trainer, recipe: Recipe, *, state: State, emit: Emit) -> None:
        self.network = start.clone()
        self._trainer = trainer
        self._state = state
        self._emit = emit
        self._near_chance = recipe.allow_near_chance
        self._is_known = KEY in state
        if self._is_known:  # from an earlier attempt: the teacher is to be the same from the start
            self._look(start)

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
            found, figures = measured(network, self._trainer, self._emit)
            if not self._near_chance and (doubt := self._trainer.task.doubt(figures)) is not None:
                told = f"the network is {doubt} (accuracy {found['test']:.1%} on test)"
                faults = [
                    Fault("/recipe/steps", "the new classifier has learnt nothing", "more epochs, or another rate"),
                    Fault("/recipe/allow_near_chance", "the job stops here unless the recipe says otherwise", "true"),
                ]
                raise BaselineNearChance(
                    f"with its new classifier, after the train steps in front of pruning, {told}", faults=faults
                )
            self._state.put(**{KEY: {**found, "weights": network.state_dict()}})
        known = self._state[KEY]
        self.network.load_state_dict(known["weights"])
        self._trainer.teach(self.network)
