"""Splits: what the upload splits itself is kept, what is missing is taken from train. Once, stratified, by seed."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.rows import Rows
from core.data.source import Images, Source, SplitName, pointer
from core.errors import DatasetMismatch, DatasetUnsuitable, Fault
from core.job import Splits

ORDER: tuple[SplitName, ...] = ("train", "pruning", "validation", "test")


@dataclass(frozen=True)
class Part:
    """One split. `index_sha256`: of its images' positions in the upload (little-endian int64)."""

    images: Images
    given: bool
    index_sha256: str


def order_classes(source: Source, class_order: Sequence[str] | None) -> Source:
    """The source with its classes in the order of the model's outputs.

    `class_order` may name classes that the dataset has no images of (a model of many classes, a dataset of some); it
    must name each that it has. One without labels has no classes. Raises `DatasetUnsuitable` (fewer than two classes,
    one without training images) or `DatasetMismatch` (the order).
    """
    if not source.classes:
        if class_order is None:
            return source
        fault = Fault("/preprocess/class_order", "the dataset has no labels", "no class_order")
        raise DatasetMismatch("there are no classes to be ordered", faults=[fault])
    counts = torch.bincount(source.splits["train"].y, minlength=len(source.classes)).tolist()
    faults = [
        Fault(pointer("file", name), f"class {name!r} has no training images", "at least one image of each class")
        for name, count in zip(source.classes, counts, strict=True)
        if count == 0
    ]
    if len(source.classes) < 2:
        faults.append(Fault("/file", f"only the class {source.classes[0]!r} was found", "two classes or more"))
    if faults:
        raise DatasetUnsuitable("the dataset cannot train a classifier", faults=faults)
    if class_order is None:
        return source
    where = "/preprocess/class_order"
    faults = [
        Fault(where, f"{name!r} is named more than once", "each class once")
        for name in sorted({name for name in class_order if class_order.count(name) > 1})
    ]
    faults += [
        Fault(where, f"the dataset's class {name!r} is missing", f"an order of {', '.join(source.classes[:50])}")
        for name in source.classes
        if name not in class_order
    ]
    if faults:
        raise DatasetMismatch("class_order does not list the dataset's classes", faults=faults)
    position = torch.tensor([class_order.index(name) for name in source.classes])
    splits = {name: Images(images.rows, position[images.y]) for name, images in source.splits.items()}
    warnings = list(source.warnings)
    without = [name for name in class_order if name not in source.classes]
    if without:
        warnings.append(f"class_order names {len(without)} class(es) without images: {_few(without)}")
    return dataclasses.replace(source, splits=splits, classes=tuple(class_order), warnings=warnings)


def split_source(source: Source, options: Splits) -> dict[SplitName, Part]:
    """All splits. Those that are missing are taken from train, class by class, in the shares of `options`; the pruning
    split, where there is to be one, always is. What stays in train comes first, and the pruning split right behind it.

    Every class gives each missing split at least one image and keeps at least one. Images in memory are reordered in
    place, so that they are held once. Raises `DatasetUnsuitable` where a class is too small.
    """
    shares: dict[SplitName, float] = {"test": options.test, "validation": options.validation}
    if options.pruning is not None:
        shares["pruning"] = options.pruning
    missing = {name: share for name, share in shares.items() if name not in source.splits}
    pool = source.splits["train"]
    taken = _stratified(pool.y.numpy(), missing, options.seed, source.classes)
    parts: dict[SplitName, Part] = {}
    order = np.concatenate([taken[name] for name in ORDER if name in taken])
    arranged = pool.rows.arranged(order)
    labels = pool.y[torch.from_numpy(order)]
    start = 0
    for name in ORDER:
        if name == "pruning" and name not in taken:
            continue
        if name in taken:
            rows = slice(start, start + len(taken[name]))
            images, index, start = Images(arranged.select(rows), labels[rows]), taken[name], rows.stop
        else:
            images = source.splits[name]
            index = np.arange(len(images))
        given = name in source.splits and not (name == "train" and missing)
        parts[name] = Part(images, given, hashlib.sha256(index.astype("<i8").tobytes()).hexdigest())
    return parts


def unused_shares(source: Source, options: Splits) -> list[str]:
    """Warnings about shares that were asked for (other than the defaults) of splits that the upload makes itself."""
    return [
        f"splits.{name} {getattr(options, name):g} is not used: the dataset has a {name} split of its own"
        for name in ("validation", "test")
        if name in source.splits and getattr(options, name) != Splits.model_fields[name].default
    ]


def find_overlaps(parts: Mapping[SplitName, Part]) -> list[str]:
    """Warnings about images that are in two splits, pixel by pixel.

    Raises `DatasetUnsuitable` where a whole validation or test split is inside another: it would measure memory.
    """
    digests = {name: np.sort(_digests(part.images.rows)) for name, part in parts.items()}
    warnings, faults = [], []
    for first, second in combinations([name for name in ORDER if name in parts], 2):
        if second == "pruning":  # both are from what was uploaded as train
            continue
        inside = _within(digests[second], digests[first])
        shared = int(inside.sum())
        if first == "train" and parts[second].given:
            # what was uploaded as train, before another split was taken from it
            for name, part in parts.items():
                if not part.given:
                    inside |= _within(digests[second], digests[name])
        if inside.all():
            message = f"all {len(digests[second])} images of {second} are in {first} too"
            faults.append(Fault(pointer("file", second), message, f"images that are not in {first}"))
        elif shared:
            warnings.append(f"{shared} of {len(digests[second])} images of {second} are in {first} too")
    if faults:
        raise DatasetUnsuitable("the splits overlap", faults=faults)
    return warnings


def content_sha256(rows: Rows, y: Tensor) -> str:
    """SHA-256 of images and labels in order, as held in memory or stored."""
    digest = hashlib.sha256(f"{rows.dtype} {rows.shape}".encode())
    for images in rows.chunks():
        digest.update(np.ascontiguousarray(images.numpy()).data)
    digest.update(y.numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _stratified(
    labels: NDArray[np.int64], shares: Mapping[SplitName, float], seed: int, classes: Sequence[str]
) -> dict[SplitName, NDArray[np.int64]]:
    """Ascending positions of each split of `shares`, and of what remains as "train"."""
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen: dict[SplitName, list[NDArray[np.int64]]] = {name: [] for name in ORDER if name in (*shares, "train")}
    faults = []
    for label in np.unique(labels):
        positions = generator.permutation(np.flatnonzero(labels == label))
        counts = {name: max(1, math.floor(share * len(positions) + 0.5)) for name, share in shares.items()}
        if sum(counts.values()) >= len(positions):
            whose = f"class {classes[label]!r} has" if classes else "there are"
            message = f"{whose} {len(positions)} images to share among train, {', '.join(shares)}"
            where = pointer("file", *classes[label : label + 1])
            faults.append(Fault(where, message, "more images, or smaller shares in /splits"))
            continue
        for name, count in counts.items():
            chosen[name].append(positions[:count])
            positions = positions[count:]
        chosen["train"].append(positions)
    if faults:
        raise DatasetUnsuitable("there are too few images to be split", faults=faults)
    return {name: np.sort(np.concatenate(positions)) for name, positions in chosen.items()}


def _within(some: NDArray[np.bytes_], others: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Which of `some` are among `others`, both sorted."""
    places = np.searchsorted(others, some).clip(max=len(others) - 1)
    found: NDArray[np.bool_] = others[places] == some
    return found


def _digests(rows: Rows) -> NDArray[np.bytes_]:
    """(N,), 16 bytes for each image; as Python's objects they would take as much as small images."""
    found = np.empty(len(rows), dtype="S16")
    index = 0
    for images in rows.chunks():
        for image in images.numpy():
            found[index] = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            index += 1
    return found


def _few(names: Sequence[str], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
