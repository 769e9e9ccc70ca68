"""A dataset held against a model: refused with every fault, or given back as the model asks for it."""

from __future__ import annotations

from collections.abc import Sequence

from core.data.datasets import Dataset
from core.errors import DatasetMismatch
from core.fit import Spec, fit_faults, given_channels, input_axes
from core.task_settings import TaskName


def check_fits(
    dataset: Dataset,
    inputs: Sequence[Spec],
    outputs: Sequence[Spec],
    task: TaskName = "classification",
    *,
    new_head: bool = False,
    wants_pruning: bool = False,
) -> Dataset:
    """The dataset with its channels as the model asks for them (where `preprocess.channels` leaves that open).

    inputs, outputs, new_head: as uploaded (see `core.fit.fit_faults`). wants_pruning: a pruning split, too. Raises
    `DatasetMismatch` with every fault.
    """
    options = dataset.options
    faults = fit_faults(
        inputs, outputs, image_shape=dataset.image_shape, classes=len(dataset.classes), options=options, task=task,
        new_head=new_head, lacks_pruning=wants_pruning and "pruning" not in dataset.splits,
    )  # fmt: skip
    if faults:
        raise DatasetMismatch("the dataset does not fit the model", faults=faults)
    channels = given_channels(options, input_axes(inputs[0].shape, options)[0], dataset.image_shape[0])
    assert channels is not None  # a fault otherwise
    return dataset.with_channels(channels)
