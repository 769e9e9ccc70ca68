"""Whether a dataset fits a model, as far as their summaries tell: a job that cannot work is refused before it waits.

The worker checks again, on the data itself (`core.data.fit`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from core.errors import Fault
from core.fit import fit_faults
from core.job import Preprocess
from core.recipe import Recipe
from core.requirements import Requirements
from core.task_settings import MEASURES, TOP, TaskName


class _Tensor(BaseModel):
    name: str
    shape: list[int | str]


class _Structure(BaseModel):
    format: str | None = None
    layers: int | None = None
    filters: int | None = None
    params: int | None = None
    inputs: list[_Tensor] = []
    outputs: list[_Tensor] = []


class _ModelSummary(BaseModel):
    inputs: list[_Tensor]
    outputs: list[_Tensor]


class _DatasetSummary(BaseModel):
    classes: list[str]
    image_shape: tuple[int, int, int]  # channels, height, width, after resizing
    splits: dict[str, Any] = {}


def summary_faults(
    model: Mapping[str, Any] | None,
    dataset: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    pointer: str,
    *,
    task: TaskName,
    new_head: bool = False,
    wants_pruning: bool = False,
) -> list[Fault]:
    """What does not fit, with pointers below `pointer` (the dataset's place in the request) or at `/model`."""
    try:
        network = _ModelSummary.model_validate(model)
        images = _DatasetSummary.model_validate(dataset)
        preprocess = Preprocess.model_validate(options.get("preprocess", {}))
    except ValidationError:
        return []  # a summary that says less (it is still being checked): the worker finds out
    faults = fit_faults(
        network.inputs, network.outputs, image_shape=images.image_shape, classes=len(images.classes),
        options=preprocess, task=task, new_head=new_head,
        lacks_pruning=wants_pruning and "pruning" not in images.splits,
    )  # fmt: skip
    return [
        fault if fault.pointer == "/model" else dataclasses.replace(fault, pointer=pointer + fault.pointer)
        for fault in faults
    ]


def task_requirement_faults(task: TaskName, own: Requirements) -> list[Fault]:
    """Of a job's own requirements those that its recipe's task never measures."""
    others = {name: other for other, names in MEASURES.items() if other != task for name in names}
    return [
        Fault(f"/requirements/{name}", f"{name} is of task: {others[name]}, the recipe's is {task}", "leave it out")
        for name in own.comparisons()
        if name in others
    ]


def top_5_faults(recipe: Recipe, own: Requirements, dataset: Mapping[str, Any] | None) -> list[Fault]:
    """Whether top-5 accuracy is required, by the recipe or the job's `own` over it, of a dataset without any."""
    if recipe.task != "classification" or recipe.requirements.overridden_by(own).top_5 is None:
        return []
    try:
        classes = len(_DatasetSummary.model_validate(dataset).classes)
    except ValidationError:
        return []
    if classes > TOP:
        return []
    pointer = "/requirements/top_5" if own.top_5 is not None else "/recipe/requirements/top_5"
    message = f"top-5 accuracy is measured on more than {TOP} classes, the dataset has {classes}"
    return [Fault(pointer, message, "accuracy instead")]


def weights_faults(model: Mapping[str, Any] | None, other: Mapping[str, Any] | None, pointer: str) -> list[Fault]:
    """What tells, of two models' summaries, that they are not the same network. The worker compares the graphs."""
    try:
        ours, theirs = _Structure.model_validate(model), _Structure.model_validate(other)
    except ValidationError:
        return []
    expected = "a model of the same structure"
    # where formats differ, an array beside the layers may be a parameter in one of them only
    counted = ("layers", "filters", *(("params",) if ours.format == theirs.format else ()))
    faults = []
    for name in counted:
        here, there = getattr(ours, name), getattr(theirs, name)
        if here is not None and there is not None and here != there:
            faults.append(Fault(pointer, f"it has {there:,} {name}, the job's model {here:,}", expected))
    for kind, here, there in (("input", ours.inputs, theirs.inputs), ("output", ours.outputs, theirs.outputs)):
        if here and there and not _alike(here, there):
            message = f"its {kind}s are {_shapes(there)}, those of the job's model {_shapes(here)}"
            faults.append(Fault(pointer, message, expected))
    return faults


def _alike(one: Sequence[_Tensor], other: Sequence[_Tensor]) -> bool:
    """As many, of shapes that can be the same: a size that is left open may be any, a batch differs freely."""
    return len(one) == len(other) and all(
        len(a.shape) == len(b.shape)
        and all(
            x == y or isinstance(x, str) or isinstance(y, str) for x, y in zip(a.shape[1:], b.shape[1:], strict=True)
        )
        for a, b in zip(one, other, strict=True)
    )


def _shapes(tensors: Sequence[_Tensor]) -> str:
    return ", ".join("(" + ", ".join(map(str, tensor.shape)) + ")" for tensor in tensors[:10])
