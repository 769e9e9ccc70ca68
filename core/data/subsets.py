"""Some of a dataset's classes: so that one upload makes several datasets."""

from __future__ import annotations

import dataclasses

import torch

from core.data.source import Images, Source, pointer
from core.errors import DatasetUnsuitable, Fault
from core.job import Splits


def chosen_classes(source: Source, options: Splits) -> Source:
    """`source` with the classes of `options.classes` only, or without those of `options.holdout_classes`, in the order
    that they had; as it is where neither is given.

    Raises `DatasetUnsuitable` for names that the dataset does not have, or where a split would be left empty.
    """
    field = "classes" if options.classes is not None else "holdout_classes"
    named = getattr(options, field)
    if named is None:
        return source
    expected = f"one of {_few(source.classes)}" if source.classes else "none: it has no labels"
    faults = [
        Fault(pointer("splits", field, index), f"the dataset has no class {name!r}", expected)
        for index, name in enumerate(named)
        if name not in source.classes
    ]
    if faults:
        raise DatasetUnsuitable("classes are named that the dataset does not have", faults=faults)
    kept = [name for name in source.classes if (name in named) == (field == "classes")]
    positions = torch.full((len(source.classes),), -1, dtype=torch.int64)
    for position, name in enumerate(kept):
        positions[source.classes.index(name)] = position
    splits = {}
    for split, images in source.splits.items():
        labels = positions[images.y]
        chosen = torch.nonzero(labels >= 0)[:, 0]
        splits[split] = Images(images.rows.select(chosen.numpy()), labels[chosen])
        if not len(splits[split]):
            message = f"{split} has no images of {_few(kept) or 'no class'}"
            faults.append(Fault(pointer("splits", field), message, "classes of which every split has images"))
    if faults:
        raise DatasetUnsuitable("a split would be left empty", faults=faults)
    left_out = len(source.classes) - len(kept)
    details = source.details | {"classes_left_out": left_out}
    return dataclasses.replace(source, splits=splits, classes=tuple(kept), details=details)


def _few(names: tuple[str, ...] | list[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (" …" if len(names) > limit else "")
