"""What a classifier's training minimises: cross-entropy, and nearness to a teacher's answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from core.errors import TrainingDiverged
from core.training.mixing import Mixed
from core.training_settings import Distill, Training


def distillation(logits: Tensor, teacher: Tensor, settings: Distill) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(logits / T)), the mean over the batch. Both (B, classes).

    Hinton, Vinyals & Dean 2015, section 2: T² keeps its gradients as large as those of the cross-entropy.
    """
    soft = functional.log_softmax(logits / settings.temperature, 1)
    wanted = functional.log_softmax(teacher / settings.temperature, 1)
    return functional.kl_div(soft, wanted, reduction="batchmean", log_target=True) * settings.temperature**2


def training_loss(
    logits: Tensor, labels: Tensor, training: Training, *, mix: Mixed | None = None, teacher: Tensor | None = None
) -> Tensor:
    """(1 − weight) · cross-entropy + weight · distillation, a number; the first alone where there is no `teacher`.

    logits, teacher: (B, classes), in front of a Softmax. labels: (B,). mix: what was mixed into the images.
    """

    def cross_entropy(wanted: Tensor) -> Tensor:
        return functional.cross_entropy(logits, wanted, label_smoothing=training.label_smoothing)

    loss = cross_entropy(labels)
    if mix is not None:
        loss = mix.share * loss + (1 - mix.share) * cross_entropy(mix.labels)
    if teacher is None or training.distill is None:
        return loss
    weight = training.distill.weight
    return (1 - weight) * loss + weight * distillation(logits, teacher, training.distill)


def distils(training: Training) -> bool:
    """Whether a teacher is asked at all."""
    return training.distill is not None and training.distill.weight > 0


def check_losses(losses: Tensor, rates: Sequence[float], *, label: str, epoch: int) -> None:
    """Raises `TrainingDiverged` at the first step whose loss is not finite. losses: (steps,), rates: of each step."""
    finite = torch.isfinite(losses)
    if bool(finite.all()):
        return
    step = int((~finite).nonzero()[0])
    raise TrainingDiverged(
        f"the loss became {losses[step].item()} in {label}, epoch {epoch}, step {step + 1}, at learning rate "
        f"{rates[step]:g}; a lower rate may help"
    )
