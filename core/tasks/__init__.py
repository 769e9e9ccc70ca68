"""What a network is for: what its training minimises, and how good its outputs are.

`task_of` makes the task of a recipe, `core.tasks.task.Task` says what one is.
"""

from __future__ import annotations

import torch

from core.data.datasets import Dataset
from core.graph.network import Network
from core.recipe import Recipe
from core.tasks.classification import Classification
from core.tasks.imitation import Imitation
from core.tasks.reconstruction import Reconstruction
from core.tasks.task import Figures, Gathering, Task, joined

__all__ = ["Classification", "Figures", "Gathering", "Imitation", "Reconstruction", "Task", "joined", "task_of"]


def task_of(recipe: Recipe, original: Network, dataset: Dataset, device: torch.device) -> Task:
    """The recipe's task, with `original` as the teacher where there is one. A copy of it is put on `device`.

    Raises `ModelRefused` or `DatasetMismatch` where model and dataset are of no use for it.
    """
    if recipe.task == "imitation":
        return Imitation(original, dataset, device)
    if recipe.task == "reconstruction":
        return Reconstruction(dataset.options, recipe.reconstruction.ssim_weight)
    return Classification(teacher=original, device=device)
