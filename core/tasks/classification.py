"""Which class an image is of: cross-entropy, and how many are right."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from core.baseline import check_better_than_guessing, is_better_than_guessing
from core.graph.network import Network
from core.task_settings import TOP
from core.tasks.task import Figures, OutputKind, run
from core.tasks.teacher import Teacher
from core.training.losses import distils, training_loss
from core.training.mixing import Mixed
from core.training.port import Score
from core.training_settings import Training


class Classification:
    """See `core.tasks.task.Task`. Outputs are logits (B, classes), in front of a final Softmax.

    accuracy: top-1. loss: mean cross-entropy, nats. measures: `top_5`, where there are more than five classes.
    teacher: whose logits `distill` is about.
    """

    def __init__(self, teacher: Network | None = None, device: torch.device | str = "cpu") -> None:
        self.teacher = None if teacher is None else Teacher(teacher, torch.device(device))

    def outputs(self, network: Network, images: Tensor) -> tuple[Tensor, ...]:
        return (class_logits(network, images),)

    def wanted(self, images: Tensor, labels: Tensor, training: Training | None = None) -> tuple[Tensor, ...]:
        """The labels, and the teacher's logits where the training wants them."""
        if training is None or not distils(training):
            return (labels,)
        if self.teacher is None:
            raise ValueError("distill needs a teacher")
        return (labels, *self.teacher.ask(self.outputs, images))

    def loss(
        self, outputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...], training: Training, mix: Mixed | None = None
    ) -> tuple[Tensor, Figures]:
        (logits,), (labels, *teacher) = outputs, wanted
        loss = training_loss(logits, labels, training, mix=mix, teacher=teacher[0] if teacher else None)
        return loss, {"predicted": logits.detach().argmax(1), "label": labels}

    def figures(self, outputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Figures:
        """predicted, label: int64 (B,). loss: float64 (B,), nats. top_5: bool (B,)."""
        (logits,), labels = outputs, wanted[0]
        loss = functional.cross_entropy(logits, labels, reduction="none").double()
        found = {"predicted": logits.argmax(1), "label": labels, "loss": loss}
        if logits.shape[1] > TOP:
            found["top_5"] = (logits.topk(TOP, 1).indices == labels[:, None]).any(1)
        return found

    def accuracy(self, figures: Figures) -> float:
        return int(right(figures).sum()) / len(figures["label"])

    def score(self, figures: Figures) -> Score:
        images = len(figures["label"])
        measures = {"top_5": int(figures["top_5"].sum()) / images} if "top_5" in figures else {}
        return Score(self.accuracy(figures), figures["loss"].sum().item() / images, images, measures)

    def of_file(self, outputs: Sequence[NDArray[np.float32]], kind: OutputKind, classes: int) -> tuple[Tensor, ...]:
        """Natural logarithms of the class probabilities, float64 (B, classes). Raises `ValueError` where the first
        output is not one number per class."""
        images = len(outputs[0])
        scores = torch.from_numpy(outputs[0].reshape(images, -1)).double()  # (B, K, 1, 1) of convolutional models too
        if scores.shape != (images, classes):
            raise ValueError(f"the file's output for {images} images is {tuple(scores.shape)}, not {(images, classes)}")
        if kind == "probabilities":
            # a float32 softmax underflows to 0, which would make the loss infinite
            scores = scores.clamp(min=float(np.finfo(np.float32).tiny)).log()
        return (scores,)

    def difference(self, ours: Figures, theirs: Figures) -> tuple[float, float, float]:
        return paired_difference(right(ours).cpu(), right(theirs).cpu())

    def doubt(self, figures: Figures) -> str | None:
        if is_better_than_guessing(int(right(figures).sum()), torch.bincount(figures["label"]).tolist()):
            return None
        return "no better than guessing"

    def check_original(self, figures: Figures) -> None:
        check_better_than_guessing(int(right(figures).sum()), torch.bincount(figures["label"]).tolist())


def class_logits(network: Network, images: Tensor) -> Tensor:
    """The first output in front of a final Softmax, for model input `images` (B, ...), as (B, classes).

    Raises `RecipeInvalid` where a batch is too small for a BatchNorm in training mode.
    """
    return run(network.logits, images)[0].flatten(1)  # (B, classes, 1, 1) where the network ends in a convolution


def right(figures: Figures) -> Tensor:
    """Of each image, whether its class was told: bool (N,)."""
    return figures["predicted"] == figures["label"]


def confusion(figures: Figures, classes: int) -> Tensor:
    """int64 (classes, classes): how many images of the class of the row were taken for that of the column."""
    pairs = figures["label"] * classes + figures["predicted"]
    return torch.bincount(pairs.cpu(), minlength=classes**2).view(classes, classes)


def paired_difference(ours: Tensor, theirs: Tensor) -> tuple[float, float, float]:
    """Accuracy of `ours` − `theirs`, bool (N,) of the same images, and the ends of its 95 % interval.

    Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions": half an image is added
    to each of the four kinds of pairs, so that an interval never is a point.
    """
    images = len(ours)
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    total, more, fewer = images + 2, only_ours + 0.5, only_theirs + 0.5
    middle = (more - fewer) / total
    half = 1.96 * math.sqrt(max(0.0, more + fewer - (more - fewer) ** 2 / total)) / total
    return (only_ours - only_theirs) / images, middle - half, middle + half
