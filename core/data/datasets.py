"""A dataset: read once, split once, held in memory or streamed from disk, preprocessed batch by batch on the device.

`load_dataset` is the way in, `READERS` the formats. `core.data.fit.check_fits` holds a dataset against a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.data import augment as augmentation
from core.data.batches import batch_bounds, epoch_order
from core.data.digits import read_digits
from core.data.npz import read_npz
from core.data.parquet import read_parquet
from core.data.rows import Rows
from core.data.shelf import Shelf
from core.data.source import SPLIT_NAMES, Images, Source, SplitName
from core.data.splits import content_sha256, find_overlaps, order_classes, split_source, unused_shares
from core.data.subsets import chosen_classes
from core.data.zips import read_zip
from core.errors import DatasetMismatch
from core.fit import Channels, per_channel_faults
from core.job import DatasetFormat, DatasetInput, Preprocess, Room
from core.training_settings import Augmentation

NOTHING = Augmentation()
Reader = Callable[[Path | None, Preprocess, Shelf], Source]


def in_memory(read: Callable[[Path | None, Preprocess], Source]) -> Reader:
    """A reader that knows no shelf: whatever it reads is held in memory."""
    return lambda path, preprocess, _: read(path, preprocess)


READERS: Mapping[DatasetFormat, Reader] = {
    "image_folder": read_zip,
    "npz": read_npz,
    "parquet": read_parquet,
    "digits": in_memory(read_digits),
}


class Split(Images):
    """One split, in memory or on disk.

    x (see `Images`): (N, C, H, W), uint8, or float32 in 0-255 where uint8 would round, already of the size that the
    model gets; y: int64 (N,), positions in `Dataset.classes`. `given`: split off by the upload itself.
    `index_sha256`: of the samples' positions in what was uploaded.
    """

    def __init__(self, x: Tensor | Rows, y: Tensor, given: bool, index_sha256: str) -> None:
        super().__init__(x, y)
        self.given = given
        self.index_sha256 = index_sha256

    def with_rows(self, rows: Rows) -> Split:
        """The same split, its images changed."""
        return Split(rows, self.y, self.given, self.index_sha256)


@dataclass(frozen=True)
class Dataset:
    """Splits, and how their images become the model's input.

    `classes`: names in the order of the model's outputs; none where there are no labels. `image_shape`: (C, H, W) as
    held. `options`: the preprocess options. `channels`: what the model is given; follows the images until `check_fits`
    sees the model.
    """

    splits: Mapping[SplitName, Split]
    classes: tuple[str, ...]
    options: Preprocess
    channels: Channels
    details: Mapping[str, Any]
    warnings: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image as held."""
        _, channels, height, width = self.splits["train"].rows.shape
        return channels, height, width

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one preprocessed image in the model's layout: (C, H, W), or (H, W, C) for NHWC."""
        _, height, width = self.image_shape
        channels = 1 if self.channels == "L" else 3
        return (channels, height, width) if self.options.layout == "NCHW" else (height, width, channels)

    def with_channels(self, channels: Channels) -> Dataset:
        """The same dataset for a model that takes `channels`. RGB images are turned grey: here, once, where they are in
        memory, else whenever they are read."""
        splits = dict(self.splits)
        if channels == "L" and self.image_shape[0] == 3:
            train, pruning = splits["train"], splits.pop("pruning", None)
            if pruning is not None:  # together, so that they stay where they can be joined
                splits["train"] = train.with_rows(train.rows.joined(pruning.rows))
            splits = {name: split.with_rows(split.rows.grey()) for name, split in splits.items()}
            if pruning is not None:
                both, here = splits["train"].rows, len(train)
                splits["train"] = train.with_rows(both.select(slice(0, here)))
                splits["pruning"] = pruning.with_rows(both.select(slice(here, len(both))))
        return dataclasses.replace(self, splits=splits, channels=channels)

    def with_pruning_in_train(self) -> Dataset:
        """The same dataset with the images of the pruning split in train, too, behind those that are there."""
        train, pruning = self.splits["train"], self.splits["pruning"]
        both = Split(train.rows.joined(pruning.rows), torch.cat([train.y, pruning.y]), train.given, train.index_sha256)
        return dataclasses.replace(self, splits={**self.splits, "train": both})

    def preprocess(self, batch: Tensor) -> Tensor:
        """The model's input: (x · scale − mean) / std, in the model's channels and layout, on the batch's device.

        batch: (B, C, H, W) as held (`Split.rows`). Returns float32 (B, C', H, W), or (B, H, W, C') for NHWC. `mean` and
        `std` are in the order of the model's channels. Raises `DatasetMismatch` where their lengths are wrong.
        """
        grey = batch.shape[1] == 1
        if self.channels == "BGR" and not grey:
            batch = batch.flip(1)
        factor, shift = self._affine()
        images = torch.addcmul(shift.to(batch.device), batch.to(torch.float32), factor.to(batch.device))
        if self.channels != "L" and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1).contiguous()
        return images if self.options.layout == "NCHW" else images.permute(0, 2, 3, 1).contiguous()

    def batches(
        self,
        split: SplitName,
        batch_size: int,
        *,
        epoch: int = 0,
        seed: int = 0,
        shuffle: bool = False,
        augment: Augmentation = NOTHING,
        device: torch.device | str = "cpu",
        start: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of (model input float32, labels int64) on `device`, at most `batch_size` images each.

        Order and augmentation depend on (seed, epoch) alone; `start` skips that many batches of the epoch. A split that
        is held in memory is copied to an accelerator once and batches are made there; one on disk is read ahead. Either
        way the batches are the same. They are evened out (see `batch_bounds`).
        """
        device = torch.device(device)
        rows, labels = self.splits[split].rows, self.splits[split].y.to(device)
        order = epoch_order(len(labels), seed=seed, epoch=epoch, shuffle=shuffle)
        draws = augmentation.draw(augment, len(labels), *rows.shape[2:], seed=seed, epoch=epoch)
        bounds = batch_bounds(len(labels), batch_size)[start:]
        # in order, a slice is a view; gathering would copy
        wanted = [order[first:last] if shuffle else slice(first, last) for first, last in bounds]
        with closing(rows.batches(wanted, device)) as batches:
            for (first, last), batch in zip(bounds, batches, strict=True):
                samples = order[first:last]
                if draws is not None:
                    batch = augmentation.apply(batch, draws.take(samples, device))
                if augment.noise:
                    generator = augmentation.seeded(seed, epoch, f"noise/{first}", device)
                    batch = augmentation.add_noise(batch, augment.noise, generator)
                yield self.preprocess(batch), labels[samples.to(device, non_blocking=True)]

    def batch_count(self, split: SplitName, batch_size: int) -> int:
        """How many batches `batches` yields."""
        return len(batch_bounds(len(self.splits[split]), batch_size))

    def summary(self) -> dict[str, Any]:
        """JSON: counts per split and class, image shape, mean and std per channel of train after `scale`, warnings,
        hashes. `index_sha256` is of the positions in the upload, `content_sha256` of the images and labels as held."""
        splits = {}
        for name, split in self.splits.items():
            counts = torch.bincount(split.y, minlength=len(self.classes)).tolist()
            splits[name] = {
                "images": len(split),
                "per_class": dict(zip(self.classes, counts, strict=True)) if self.classes else {},
                "given": split.given,
                "index_sha256": split.index_sha256,
                "content_sha256": content_sha256(split.rows, split.y),
            }
        mean, std = _statistics(self.splits["train"].rows)
        return {
            "images": sum(len(split) for split in self.splits.values()),
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "dtype": str(self.splits["train"].rows.dtype).removeprefix("torch."),
            "mean": [value * self.options.scale for value in mean],
            "std": [value * self.options.scale for value in std],
            "splits": splits,
            "preprocess": self.options.model_dump(mode="json"),
            "warnings": list(self.warnings),
            **self.details,
        }

    def _affine(self) -> tuple[Tensor, Tensor]:
        """factor and shift, each (1, C' or 1, 1, 1), with factor · x + shift = (x · scale − mean) / std."""
        wanted = 1 if self.channels == "L" else 3
        faults = per_channel_faults(self.options, wanted)
        if faults:
            raise DatasetMismatch("preprocess does not fit the images' channels", faults=faults)
        mean = torch.tensor(self.options.mean, dtype=torch.float64).view(1, -1, 1, 1)
        std = torch.tensor(self.options.std, dtype=torch.float64).view(1, -1, 1, 1)
        return (self.options.scale / std).float(), (-mean / std).float()


def load_dataset(dataset: DatasetInput, room: Room | None = None, folder: Path | None = None) -> Dataset:
    """Read, check and split. Raises a subclass of `DatasetRefused` with every fault that was found.

    `room`: what it may take (default: `Room()`); where that is too little memory, its images are stored in `folder`
    (default: where temporary files go) for as long as the dataset is used.
    """
    preprocess = dataset.options.preprocess
    shelf = Shelf(room, folder)
    if dataset.format == "parquet":
        source = read_parquet(dataset.path, preprocess, shelf, columns=dataset.options.columns)
    else:
        source = READERS[dataset.format](dataset.path, preprocess, shelf)
    source = chosen_classes(source, dataset.options.splits)
    source = order_classes(source, preprocess.class_order)
    parts = split_source(source, dataset.options.splits)
    warnings = [*source.warnings, *unused_shares(source, dataset.options.splits), *find_overlaps(parts)]
    splits = {
        name: Split(part.images.rows, part.images.y, part.given, part.index_sha256) for name, part in parts.items()
    }
    stored: Channels = "L" if splits["train"].rows.shape[1] == 1 else "RGB"
    details = {
        "format": dataset.format,
        "sha256": dataset.sha256,
        "split_options": dataset.options.splits.model_dump(mode="json"),
        **source.details,
    }
    loaded = Dataset(splits, source.classes, preprocess, stored, details, tuple(warnings))
    return loaded.with_channels(preprocess.channels or stored)


STATISTICS_ELEMENTS = 2**21
"""Of the images that are float64 at a time: 16 MiB."""


def _statistics(rows: Rows) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of the raw 0-255 values, in float64, chunk by chunk."""
    images, channels, height, width = rows.shape
    chunk = max(1, STATISTICS_ELEMENTS // (channels * height * width))
    total = torch.zeros(channels, dtype=torch.float64)
    squares = torch.zeros(channels, dtype=torch.float64)
    for part in rows.chunks(chunk):
        values = part.to(torch.float64).transpose(0, 1).reshape(channels, -1)
        total += values.sum(1)
        squares += values.square().sum(1)
    pixels = images * height * width
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    return mean.tolist(), std.tolist()


__all__ = ["READERS", "SPLIT_NAMES", "Dataset", "Images", "Split", "SplitName", "load_dataset"]
