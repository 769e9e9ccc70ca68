"""What a method asks of a trainer, and gets. `core.training.trainer.Trainer` is the real one; tests script others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor

from core.graph.network import Network
from core.report import Cost
from core.state import State
from core.training.budget import EpochsBudget
from core.training_settings import Training

if TYPE_CHECKING:
    from core.tasks.task import Task  # whose scores are this module's

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Score:
    """Of a network on one split. accuracy: 1 at best; of a classifier top-1, 0-1. loss: of a classifier mean
    cross-entropy, nats. measures: what the task measures besides. See `core.tasks`."""

    accuracy: float
    loss: float
    images: int
    measures: Mapping[str, float] = field(default_factory=dict)

    def better_than(self, other: Score) -> bool:
        """By accuracy, then by loss. Equal scores are not better: of two equal epochs the earlier one is kept."""
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


@dataclass(frozen=True)
class FitResult:
    """`epochs`: one record per epoch, as emitted. `score`: on validation, of the weights that the network was left with
    (None where nothing was trained). `best_epoch`: theirs, from 1."""

    epochs: list[dict[str, Any]]
    score: Score | None
    best_epoch: int | None
    cost: Cost


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of a network, by name, with a learning rate and a weight decay of their own; None: as the optimizer's.
    The schedule's factor is on this rate, too."""

    names: Collection[str]
    lr: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True)
class Moment:
    """What a training is about to do: epoch `epoch` of `epochs`, from 1; batch `step` of it, from 0; its validation."""

    what: Literal["epoch", "batch", "validation"]
    epoch: int
    epochs: int
    step: int = 0


class TrainerPort(Protocol):
    plan: Sequence[Mapping[str, Any]]
    """What the steps before this one did to the original."""

    budget: EpochsBudget
    """Of the recipe's steps. `fit` books what it takes, and takes no more than is left: it does so many epochs, by a
    schedule of so many, and none where nothing is left."""

    warnings: list[str]
    """What a reader of the report should know of the trainings since it was emptied last."""

    task: Task
    """What training minimises and evaluation measures."""

    @property
    def training(self) -> Training:
        """The recipe's defaults of every training."""

    def fit(
        self,
        network: Network,
        *,
        training: Training,
        epochs: int,
        label: str,
        state: State,
        before: Callable[[Moment], None] | None = None,
        on_batch: Callable[[Network], None] | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
        restore_best: bool | None = None,
        moving: Callable[[int, int], Collection[str]] | None = None,
        penalty: Callable[[Network], Tensor] | None = None,
        groups: Sequence[ParameterGroup] = (),
        plan: Sequence[Mapping[str, Any]] = (),
    ) -> FitResult: ...

    def evaluate(self, network: Network, split: SplitName) -> Score: ...

    def recalibrate(self, network: Network, *, label: str) -> int: ...

    def expect(self, part: str, trainings: Sequence[tuple[int, int]]) -> None:
        """Tells the progress what is still to come in `part`: (epochs, the network's MACs) of each training."""

    def expect_scoring(self, part: str, scorings: Sequence[tuple[int, int]]) -> None:
        """Tells the progress what is still to be looked at in `part` to score what may go: (images through a network
        without gradients, the network's MACs) of each scoring."""

    def scored(self, part: str, images: float, macs: int) -> None:
        """Tells the progress that so many of these images have been looked at since it was told last."""

    def resumed(self, cost: Cost) -> None:
        """Tells the progress and the budget what was spent before."""


def add_costs(left: Cost, right: Cost) -> Cost:
    return Cost(**{name: getattr(left, name) + getattr(right, name) for name in Cost.model_fields})
