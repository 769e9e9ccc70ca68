"""What every task answers to. A new one is a class of these methods and a line in `core.tasks.task_of`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import Fault, RecipeInvalid
from core.graph.network import Network
from core.tasks.teacher import Teacher
from core.training.mixing import Mixed
from core.training.port import Score
from core.training_settings import Training

Figures = Mapping[str, Tensor]
"""Of some images, by name: what was seen of each, (N, ...), in their order. A score is made of all of them together."""
OutputKind = Literal["logits", "probabilities", "log_probabilities"]
"""What a file's first output is. probabilities are those of a final Softmax, log_probabilities of a LogSoftmax."""


class Task(Protocol):
    """A task. Tensors are batches, dimension 0 first; `images` are model input. `teacher`: the original, where its
    answers are asked for."""

    @property
    def teacher(self) -> Teacher | None: ...

    def outputs(self, network: Network, images: Tensor) -> tuple[Tensor, ...]:
        """What `network` says to `images`, as `loss` and `figures` take it. Raises `RecipeInvalid` where a batch is too
        small for a BatchNorm in training mode."""

    def wanted(self, images: Tensor, labels: Tensor, training: Training | None = None) -> tuple[Tensor, ...]:
        """What it should say. `training`: what is to be trained, if anything is. labels: (B,)."""

    def loss(
        self, outputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...], training: Training, mix: Mixed | None = None
    ) -> tuple[Tensor, Figures]:
        """The number that training minimises, with its gradient, and figures from which `accuracy` can be told."""

    def figures(self, outputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Figures:
        """All figures of these images."""

    def accuracy(self, figures: Figures) -> float:
        """How good the outputs are, 1 at best: what policies, guards and `restore_best` look at."""

    def score(self, figures: Figures) -> Score:
        """Accuracy, loss and whatever else the task measures."""

    def of_file(self, outputs: Sequence[NDArray[np.float32]], kind: OutputKind, classes: int) -> tuple[Tensor, ...]:
        """What an ONNX file says, all outputs in its order, as `outputs` has it of a network."""

    def difference(self, ours: Figures, theirs: Figures) -> tuple[float, float, float]:
        """Accuracy of `ours` − `theirs`, both of the same images, and the ends of its 95 % interval."""

    def doubt(self, figures: Figures) -> str | None:
        """In words, why these outputs are no better than some that look at no image; None where they are."""

    def check_original(self, figures: Figures) -> None:
        """Raises `BaselineNearChance` where the original is no better than that, with what may be the reason."""


def joined(parts: Sequence[Figures]) -> Figures:
    """The figures of all batches, in order."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class Gathering:
    """Figures of at most `images` images, batch after batch, in tensors of that length.

    A list of the batches' own, each of a few hundred bytes between activations that come and go, would keep the
    allocator from giving memory back: hundreds of MiB over some thousand batches.
    """

    def __init__(self, images: int) -> None:
        self._images = images
        self._found: dict[str, Tensor] = {}
        self._seen = 0

    def add(self, figures: Figures) -> None:
        """Those of the next images. Raises `ValueError` where they are too many."""
        count = len(next(iter(figures.values())))
        if self._seen + count > self._images:
            raise ValueError(f"figures of {self._seen + count} images, and {self._images} were foreseen")
        for name, each in figures.items():
            if name not in self._found:
                with torch.inference_mode(False):
                    self._found[name] = each.new_empty((self._images, *each.shape[1:]))
            self._found[name][self._seen : self._seen + count] = each.detach()
        self._seen += count

    def figures(self) -> Figures:
        """Of all images so far, in order."""
        return {name: each[: self._seen] for name, each in self._found.items()}


def run(network: Any, images: Tensor) -> tuple[Tensor, ...]:
    """All outputs of `network(images)`. Raises `RecipeInvalid` where a batch is too small to train a BatchNorm."""
    try:
        outputs = network(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        fault = Fault(
            "/training/batch_size",
            f"a batch of {len(images)} image(s) leaves BatchNorm one value per channel",
            "a batch_size of at least 2, and at least 2 training images",
        )
        raise RecipeInvalid("batches are too small for the network's BatchNorm", faults=[fault]) from None
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


RESAMPLES = 1_000


def bootstrap_difference(task: Task, ours: Figures, theirs: Figures) -> tuple[float, float, float]:
    """Accuracy of `ours` − `theirs` and the 2.5 and 97.5 percentiles of it over images drawn again, pairs together
    (Efron & Tibshirani 1993, section 13.3). The draws are of a fixed seed."""
    ours, theirs = ({name: each.cpu() for name, each in figures.items()} for figures in (ours, theirs))
    images = len(next(iter(ours.values())))
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = torch.randint(0, images, (images,), generator=generator)
        one, other = ({name: each[chosen] for name, each in figures.items()} for figures in (ours, theirs))
        drawn.append(task.accuracy(one) - task.accuracy(other))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return task.accuracy(ours) - task.accuracy(theirs), float(low), float(high)
