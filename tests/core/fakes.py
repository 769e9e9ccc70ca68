"""Stands-in at core's ports: an event list, a trainer that trains nothing, a small dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from core.data.datasets import Dataset, Split
from core.data.shelf import Shelf
from core.events import READ_BY_WORKER, STAGES
from core.graph.counts import count
from core.graph.network import Network
from core.job import Preprocess, Room
from core.measure.memory import MemoryNotMeasured
from core.report import Cost
from core.state import State
from core.tasks import Classification, Task
from core.training.budget import EpochsBudget
from core.training.port import FitResult, Moment, ParameterGroup, Score, SplitName
from core.training_settings import Training


class Events(list[tuple[str, dict[str, Any]]]):
    """An `Emit` that keeps what it is told."""

    def __call__(self, name: str, /, **body: Any) -> None:
        self.append((name, body))

    def not_taken(self) -> list[str]:
        """Names that a worker would fail the job for."""
        return [name for name, _ in self if name not in READ_BY_WORKER and name.partition("/")[0] not in STAGES]

    def named(self, ending: str) -> list[dict[str, Any]]:
        """Bodies of the events whose name ends in `ending`."""
        return [body for name, body in self if name.endswith(ending)]


class Killed(Exception):
    """Stands for kill -9: nothing of the process is left but its files."""


class Dying(Events):
    """Is killed right after the checkpoint of the number `at`, or after its first."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at = at

    def __call__(self, name: str, /, **body: Any) -> None:
        super().__call__(name, **body)
        if name == "checkpoint" and self.at in (None, body["number"]):
            raise Killed


class ScriptedTrainer:
    """A `TrainerPort` that leaves the weights alone: `steps` iterations per epoch, accuracies from a script.

    `forward` runs the network in training mode at each iteration, which is what activations are noticed in.
    """

    def __init__(self, accuracies: Sequence[float] = (), steps: int = 1, forward: bool = False) -> None:
        self.training = Training()
        self.budget = EpochsBudget()
        self.plan: Sequence[Mapping[str, Any]] = ()
        self.warnings: list[str] = []
        self.task: Task = Classification()
        self.moving: list[list[list[str]] | None] = []
        self.labels: list[tuple[str, int]] = []
        self.expected: list[list[tuple[int, int]]] = []
        self.scorings: list[list[tuple[int, int]]] = []
        self.looked: list[tuple[str, float, int]] = []
        self.recalibrated: list[str] = []
        self._accuracies = iter(accuracies)
        self._steps = steps
        self._forward = forward

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
        penalty: Callable[[Network], torch.Tensor] | None = None,
        groups: Sequence[ParameterGroup] = (),
        plan: Sequence[Mapping[str, Any]] = (),
    ) -> FitResult:
        self.moving.append(None if moving is None else [sorted(moving(n + 1, epochs)) for n in range(epochs)])
        epochs = self.budget.within(epochs)
        self.budget.spent += epochs
        self.labels.append((label, epochs))
        network.train()
        told = before or (lambda moment: None)
        for epoch in range(1, epochs + 1):
            told(Moment("epoch", epoch, epochs))
            for seed in range(self._steps):
                told(Moment("batch", epoch, epochs, seed))
                if self._forward:
                    with torch.no_grad():
                        network(network.example_input(batch=2, seed=seed))
                if on_batch is not None:
                    on_batch(network)
            told(Moment("validation", epoch, epochs))
            if on_epoch is not None:
                on_epoch({})
        network.eval()
        score = Score(next(self._accuracies, 0.5), 1.0, 10) if epochs else None
        params = count(network).params
        cost = Cost(epochs=epochs, epochs_kept=epochs, epoch_params=epochs * params, epoch_params_kept=epochs * params)
        return FitResult([{}] * epochs, score, epochs or None, cost)

    def evaluate(self, network: Network, split: SplitName) -> Score:
        return Score(next(self._accuracies, 0.5), 1.0, 10)

    def recalibrate(self, network: Network, *, label: str) -> int:
        self.recalibrated.append(label)
        return 0

    def expect(self, part: str, trainings: Sequence[tuple[int, int]]) -> None:
        self.expected.append(list(trainings))

    def expect_scoring(self, part: str, scorings: Sequence[tuple[int, int]]) -> None:
        self.scorings.append(list(scorings))

    def scored(self, part: str, images: float, macs: int) -> None:
        self.looked.append((part, images, macs))

    def resumed(self, cost: Cost) -> None:
        self.budget.spent += cost.epochs


def no_memory(*arguments: Any, **named: Any) -> Any:
    """Stands for `measure_memory` where a test is about something else: a dozen fresh processes less."""
    raise MemoryNotMeasured("left out in this test")


def small_dataset(
    *,
    images: int = 64,
    size: int = 8,
    channels: int = 1,
    classes: int = 4,
    seed: int = 0,
    preprocess: Preprocess | None = None,
) -> Dataset:
    """Images whose class is the place of a bright square: learnt in a few epochs. uint8; validation and test are each
    half as many."""
    generator = torch.Generator().manual_seed(seed)
    splits = {}
    for name, number in (("train", images), ("validation", images // 2), ("test", images // 2)):
        y = torch.arange(number) % classes
        x = torch.randint(0, 120, (number, channels, size, size), generator=generator, dtype=torch.uint8)
        half = size // 2
        for image, label in zip(x, y.tolist(), strict=True):
            top, left = half * (label // 2 % 2), half * (label % 2)
            image[:, top : top + half, left : left + half] += 100
        splits[name] = Split(x, y, given=True, index_sha256=name)
    return Dataset(
        splits=splits,  # type: ignore[arg-type]  # the keys are split names
        classes=tuple(f"class {index}" for index in range(classes)),
        options=preprocess or Preprocess(),
        channels="L" if channels == 1 else "RGB",
        details={},
        warnings=(),
    )


def stored(data: Dataset, folder: Path) -> Dataset:
    """The same dataset, its images on disk."""
    splits = {}
    for name, split in data.splits.items():
        images, *shape = split.rows.shape
        shelf = Shelf(Room(memory_bytes=0), folder)
        shelf.reserve(split.x.nbytes, pointer="", what="")
        writer = shelf.rows(images, tuple(shape), split.rows.dtype)
        writer.write(0, split.x)
        splits[name] = split.with_rows(writer.finish(images))
    return dataclasses.replace(data, splits=splits)


def empty_state(workdir: Path, events: Events | None = None) -> State:
    return State.open(workdir, fingerprint={"test": "x"}, emit=Events() if events is None else events)
