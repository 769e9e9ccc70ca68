"""What a network is for, as a recipe says it (`task`), and what goes with it. Torch-free; `core.tasks` does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from core.sections import Section
from core.training_settings import Training

TaskName = Literal["classification", "reconstruction", "imitation"]
MEASURES: Mapping[TaskName, tuple[str, ...]] = {
    "classification": ("top_5",),
    "reconstruction": ("ssim", "l1"),
    "imitation": ("relative_error", "cosine"),
}
"""What is measured besides accuracy and loss (see `core.tasks`)."""
TOP = 5
"""Of `top_5`: it is measured where there are more classes than that."""
_MIXED = {"mixup": 0.0, "cutmix": 0.0}
_FOR_CLASSIFIERS = {"label_smoothing": 0.0, "distill": None, "freeze": "none"}
_NOT_FOR: Mapping[TaskName, tuple[Mapping[str, Any], Mapping[str, float], str]] = {
    "classification": ({}, {}, ""),
    "reconstruction": (
        _FOR_CLASSIFIERS,
        {**_MIXED, "erase": 0.0, "noise": 0.0},
        "the image that is wanted back would be as damaged as the one that is given",
    ),
    "imitation": (_FOR_CLASSIFIERS, {}, ""),
}
"""Of trainings and of augmentations: what each task cannot use, with the value that stands for nothing; and why."""


class Reconstruct(Section):
    """Of `task: reconstruction`: the loss is (1 - ssim_weight) L1 + ssim_weight (1 - SSIM), of pixels from 0 to 1."""

    ssim_weight: float = Field(0.5, ge=0, le=1)


def task_faults(task: TaskName, trainings: Sequence[Training]) -> list[str]:
    """What `trainings` ask for that is not for `task`, in words."""
    settings, augmentations, reason = _NOT_FOR[task]
    found = [
        f"{name} is for classification, not for {task}"
        for name, nothing in settings.items()
        if any(getattr(training, name) != nothing for training in trainings)
    ]
    return found + [
        f"augment.{name} is not for {task}: {reason}"
        for name, nothing in augmentations.items()
        if any(getattr(training.augment, name) != nothing for training in trainings)
    ]
