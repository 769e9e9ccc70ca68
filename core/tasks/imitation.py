"""To say what the original says: any network, any number of outputs, no labels.

The error of an output over some images is Σ(y − t)² / Σt², y said and t said by the original; over several outputs the
mean of theirs. Its root is the relative error, 1 − that the accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from core.batch_size import inference_batch
from core.data.datasets import Dataset
from core.errors import Fault, ModelRefused
from core.graph.network import Network
from core.tasks.task import Figures, OutputKind, bootstrap_difference, run
from core.tasks.teacher import Teacher
from core.training.memory_format import images_channels_last
from core.training.mixing import Mixed
from core.training.port import Score
from core.training_settings import Training

SCALE_IMAGES = 512


class Imitation:
    """See `core.tasks.task.Task`. Outputs are all that are floats, each (B, numbers), as the file gives them.

    accuracy: 1 − relative error. loss: its square. measures: `relative_error`; `cosine`, the mean over images and
    outputs of the cosine between what is said and what the original says (1 where both are all zeros).

    Training minimises the mean over outputs of mean (y − t)² / mean t², the latter of the first 512 images of train: a
    batch of blank images must not count for more than others.

    Raises `ModelRefused` where no output is of floats.
    """

    def __init__(self, original: Network, dataset: Dataset, device: torch.device) -> None:
        self._floats = [
            index for index, node in enumerate(original.output_nodes()) if node.meta["dtype"].is_floating_point
        ]
        if not self._floats:
            fault = Fault("/model", "no output is of floating-point numbers", "one that can be imitated")
            raise ModelRefused("the model has nothing that can be imitated", faults=[fault])
        self.teacher = Teacher(original, device)
        self._scales = self._measured_scales(dataset, device)

    def outputs(self, network: Network, images: Tensor) -> tuple[Tensor, ...]:
        return self._of_floats(run(network, images))

    def wanted(self, images: Tensor, labels: Tensor, training: Training | None = None) -> tuple[Tensor, ...]:
        """What the original says; asked in batches that it has room for, which a smaller network's need not be."""
        size = inference_batch(self.teacher.network)
        answers = [self.teacher.ask(self.outputs, part) for part in torch.split(images, size)]
        return tuple(torch.cat(parts) for parts in zip(*answers, strict=True))

    def loss(
        self, outputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...], training: Training, mix: Mixed | None = None
    ) -> tuple[Tensor, Figures]:
        losses = [
            functional.mse_loss(said, target) / scale
            for said, target, scale in zip(outputs, wanted, self._scales, strict=True)
        ]
        with torch.no_grad():
            squares = _squares(outputs, wanted)
        return torch.stack(losses).mean(), squares

    def figures(self, outputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Figures:
        """error, target: float64 (B, outputs), Σ(y − t)² and Σt². cosine: float64 (B,)."""
        cosines = [_cosine(said.double(), target.double()) for said, target in zip(outputs, wanted, strict=True)]
        return {**_squares(outputs, wanted), "cosine": torch.stack(cosines, 1).mean(1)}

    def accuracy(self, figures: Figures) -> float:
        return 1 - math.sqrt(_error(figures))

    def score(self, figures: Figures) -> Score:
        error = _error(figures)
        measures = {"relative_error": math.sqrt(error), "cosine": figures["cosine"].mean().item()}
        return Score(1 - math.sqrt(error), error, len(figures["error"]), measures)

    def of_file(self, outputs: Sequence[NDArray[np.float32]], kind: OutputKind, classes: int) -> tuple[Tensor, ...]:
        return self._of_floats(tuple(torch.from_numpy(output) for output in outputs))

    def difference(self, ours: Figures, theirs: Figures) -> tuple[float, float, float]:
        return bootstrap_difference(self, ours, theirs)

    def doubt(self, figures: Figures) -> str | None:
        return "no better than an output of zeros" if self.accuracy(figures) <= 0 else None

    def check_original(self, figures: Figures) -> None:
        """Nothing: it is what is imitated."""

    def _of_floats(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(outputs[index].reshape(len(outputs[index]), -1) for index in self._floats)

    def _measured_scales(self, dataset: Dataset, device: torch.device) -> list[float]:
        """Mean square of each output of the original; 1 where it is all zeros."""
        size = min(SCALE_IMAGES, inference_batch(self.teacher.network))
        sums = torch.zeros(len(self._floats), dtype=torch.float64, device=device)
        numbers, seen = sums.clone(), 0
        for images, _ in dataset.batches("train", size, device=device):
            said = self.teacher.ask(self.outputs, images_channels_last(images, dataset.options.layout))
            sums += torch.stack([each.double().square().sum() for each in said])
            numbers += torch.tensor([each.numel() for each in said], device=device)
            seen += len(images)
            if seen >= SCALE_IMAGES:
                break
        scales: list[float] = torch.where(sums == 0, 1.0, sums / numbers).tolist()
        if not all(np.isfinite(scales)):
            fault = Fault("/preprocess", "the original's outputs are not finite", "the images that it was trained on")
            raise ModelRefused("what the model says to the images cannot be imitated", faults=[fault])
        return scales


def _squares(outputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> dict[str, Tensor]:
    errors = [(said - target).double().square().sum(1) for said, target in zip(outputs, wanted, strict=True)]
    targets = [target.double().square().sum(1) for target in wanted]
    return {"error": torch.stack(errors, 1), "target": torch.stack(targets, 1)}


def _error(figures: Figures) -> float:
    """Mean over outputs of Σ(y − t)² / Σt²; of an output that is all zeros in the original, Σ(y − t)² itself."""
    errors, targets = figures["error"].sum(0), figures["target"].sum(0)
    shares = errors / torch.where(targets > 0, targets, 1.0)
    return float(shares.mean())


def _cosine(said: Tensor, target: Tensor) -> Tensor:
    """(B,) of (B, numbers) each."""
    both_zero = (said == 0).all(1) & (target == 0).all(1)
    return torch.where(both_zero, 1.0, functional.cosine_similarity(said, target, dim=1, eps=1e-30))
