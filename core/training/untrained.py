"""A trainer that trains nothing and books what the trainings would cost: for a dry run.

The ledger follows `core.training.trainer.Trainer.fit`: as many epochs as the budget has left, and of each all images of
its split train and the parameters that the network has then. Weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.batch_size import inference_batch
from core.data.datasets import NOTHING, Dataset
from core.graph.batch_norm import recalibrate
from core.graph.counts import count
from core.graph.network import Network
from core.report import Cost
from core.state import State
from core.tasks.classification import Classification
from core.tasks.task import Task, run
from core.training.budget import EpochsBudget
from core.training.freezing import trained_parameters
from core.training.memory_format import images_channels_last, to_channels_last
from core.training.port import FitResult, Moment, ParameterGroup, Score, SplitName
from core.training.seeds import derived_seed
from core.training_settings import Augmentation, Training

LOOK_BATCH = 16
"""Images that go through a network at once where a method looks at activations."""


def images_per_epoch(dataset: Dataset, training: Training) -> int:
    """That a training goes through: those of train, and of the pruning split where that is trained on, too."""
    besides = 0 if training.pruning_split == "held_out" else len(dataset.splits["pruning"])
    return len(dataset.splits["train"]) + besides


@dataclass(frozen=True)
class Booked:
    """A training that was asked for. `images`: of one epoch. `params`, `macs`: of the network that it is about.
    `least_epochs`: where `early_stop` ends it as soon as it may."""

    label: str
    training: Training
    epochs: int
    least_epochs: int
    images: int
    params: int
    macs: int

    @property
    def cost(self) -> Cost:
        """Which epoch would be the best is not known: all of them are counted as kept."""
        return Cost(
            epochs=self.epochs,
            epochs_kept=self.epochs,
            epoch_params=self.epochs * self.params,
            epoch_params_kept=self.epochs * self.params,
            images=self.epochs * self.images,
        )


class Untrained:
    """Implements `core.training.port.TrainerPort`.

    Args:
        dataset: the whole of it.
        training: the recipe's defaults.
        accuracy: what every network is said to have on validation, 0-1: what cuts cost is not known untrained.
        looked_at: images of train that go through a network in training mode at each training whose batches a method
            looks at (for norms of activations), and through which BatchNorm statistics are measured afresh; 0: none.
        booked: gets what is asked for.
        task: what training would minimise; classification, where none is given.
        prefix: in front of labels.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        training: Training,
        device: torch.device,
        seed: int,
        accuracy: float,
        looked_at: int,
        booked: list[Booked],
        task: Task | None = None,
        prefix: str = "",
    ) -> None:
        self.training = training
        self.budget = EpochsBudget()
        self.plan: Sequence[Mapping[str, Any]] = ()
        self.warnings: list[str] = []
        self.task: Task = Classification() if task is None else task
        self.booked = booked
        self._dataset = dataset
        self._device = device
        self._seed = seed
        self._accuracy = accuracy
        self._looked_at = looked_at
        self._prefix = prefix

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
    ) -> FitResult:
        """Books a training. `on_batch` is called for some images of train; `before` and `on_epoch` are not: there
        was no epoch.

        Raises `RecipeInvalid` where nothing would be left to be trained.
        """
        network.to(self._device)
        epochs = self.budget.within(epochs)
        trained_parameters(network, training, moving, epochs)
        self.budget.spent += epochs
        counts = count(network)
        booked = Booked(
            self._prefix + label,
            training,
            epochs,
            min(epochs, training.early_stop + 1) if training.early_stop else epochs,
            images_per_epoch(self._dataset, training),
            counts.params,
            counts.macs,
        )
        self.booked.append(booked)
        if on_batch is not None and epochs:
            self._look(network, training, label, on_batch)
        network.eval()
        if not epochs:
            return FitResult([], None, None, booked.cost)
        return FitResult([], Score(self._accuracy, 0.0, 0), epochs, booked.cost)

    def evaluate(self, network: Network, split: SplitName) -> Score:
        """What every network is said to have."""
        return Score(self._accuracy, 0.0, 0)

    def recalibrate(self, network: Network, *, label: str) -> int:
        """BatchNorm statistics from the images that are looked at; where none are, nothing goes by them."""
        if not self._looked_at:
            return 0
        network.to(self._device)
        return recalibrate(network, self._images(network, label, LOOK_BATCH, NOTHING))

    def expect(self, part: str, trainings: Sequence[tuple[int, int]]) -> None:
        """Nothing: what is booked is told in the end."""

    def expect_scoring(self, part: str, scorings: Sequence[tuple[int, int]]) -> None:
        """Nothing: the estimate has it by itself."""

    def scored(self, part: str, images: float, macs: int) -> None:
        """Nothing, likewise."""

    def resumed(self, cost: Cost) -> None:
        """Nothing: there is no earlier attempt at a dry run."""

    def _look(self, network: Network, training: Training, label: str, on_batch: Callable[[Network], None]) -> None:
        """A method sees batches as while the network trains; its BatchNorm statistics stay as they are."""
        if not self._looked_at:
            on_batch(network)
            return
        to_channels_last(network)
        buffers = {name: buffer.clone() for name, buffer in network.module.named_buffers()}
        network.train()
        torch.manual_seed(derived_seed(self._seed, f"dropout/{label}"))
        with torch.no_grad():
            for images in self._images(network, label, training.batch_size, training.augment):
                run(network, images)
                on_batch(network)
            for name, buffer in network.module.named_buffers():
                buffer.copy_(buffers[name])

    def _images(self, network: Network, label: str, most: int, augment: Augmentation) -> Iterator[Tensor]:
        """The images that are looked at, as model input, in batches of at most `most`."""
        batches = self._dataset.batches(
            "train",
            min(most, inference_batch(network, LOOK_BATCH)),
            seed=derived_seed(self._seed, label),
            shuffle=True,
            augment=augment,
            device=self._device,
        )
        seen = 0
        for images, _ in batches:
            yield images_channels_last(images, self._dataset.options.layout)
            seen += len(images)
            if seen >= self._looked_at:
                return
