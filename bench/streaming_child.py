"""The child of `bench.streaming`: loads a dataset and trains on it, under the guard of the worker."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from core.data.datasets import Dataset, load_dataset
from core.data.rows import Stored
from core.devices import torch_settings
from core.events import Emit
from core.graph.architectures import build
from core.job import DatasetCheck, Room
from core.progress import Progress
from core.state import State
from core.training.trainer import Trainer
from core.training_settings import Augmentation, Sgd, Training
from worker.child import main


class Plan(BaseModel):
    """What the child is to do: `rounds` of 0 is one epoch of what `check` says; else epochs of it held in memory and
    streamed, in turn, after one of each that is thrown away."""

    check: DatasetCheck
    architecture: str
    batch_size: int
    rounds: int = 0


def work(workdir: Path, emit: Emit) -> Mapping[str, Any]:
    plan = Plan.model_validate_json((workdir / "job.json").read_bytes())
    with torch_settings(torch.device("cpu"), plan.check.threads):
        found = rates(plan, workdir) if plan.rounds else one_epoch(plan, workdir)
    return {**found, "threads": plan.check.threads or torch.get_num_threads()}


def one_epoch(plan: Plan, workdir: Path) -> dict[str, Any]:
    """As a job does it: load, summary, an epoch with its validation."""
    began = time.perf_counter()
    data = load_dataset(plan.check.dataset, plan.check.room, workdir / "images")
    loaded = time.perf_counter()
    data.summary()
    summed = time.perf_counter()
    seconds = epoch(data, plan, workdir)
    rows = [split.rows for split in data.splits.values()]
    return {
        "load_seconds": loaded - began,
        "summary_seconds": summed - loaded,
        "epoch_seconds": seconds,
        "images": sum(len(split) for split in data.splits.values()),
        "train_images": len(data.splits["train"]),
        "decoded_bytes": sum(len(part) * part.row_bytes for part in rows),
        "streamed": all(isinstance(part, Stored) for part in rows),
        "highest_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def rates(plan: Plan, workdir: Path) -> dict[str, Any]:
    """Seconds of each round. `cold`: the file's pages are dropped from the page cache before."""
    held = load_dataset(plan.check.dataset, Room(), workdir / "images")
    streamed = load_dataset(plan.check.dataset, Room(memory_bytes=0), workdir / "images")
    kinds = {"held": held, "streamed": streamed, "cold": streamed}
    seconds: dict[str, list[float]] = {name: [] for name in [*kinds, "decoding", "reading"]}
    for number in range(plan.rounds + 1):
        names = list(kinds)
        for name in names[number % 3 :] + names[: number % 3]:
            if name == "cold":
                forget(streamed)
            taken = epoch(kinds[name], plan, workdir)
            if number:
                seconds[name].append(taken)
        began = time.perf_counter()
        load_dataset(plan.check.dataset, Room(memory_bytes=0), workdir / "images")
        loaded = time.perf_counter()
        for name in streamed.splits:
            for _ in streamed.batches(name, plan.batch_size, shuffle=True, epoch=number):
                pass
        if number:
            seconds["decoding"].append(loaded - began)
            seconds["reading"].append(time.perf_counter() - loaded)
    return {
        "seconds": seconds,
        "train_images": len(held.splits["train"]),
        "images": sum(len(split) for split in held.splits.values()),
    }


def epoch(data: Dataset, plan: Plan, workdir: Path) -> float:
    """Seconds of one epoch of `Trainer.fit`, crops, flips and the validation included."""
    channels, height, width = data.image_shape
    torch.manual_seed(0)
    network = build(plan.architecture, num_classes=len(data.classes), in_channels=channels, image_size=(height, width))
    training = Training(optimizer=Sgd(lr=0.05), batch_size=plan.batch_size, augment=Augmentation(crop=True, flip=True))

    def silent(name: str, /, **body: Any) -> None:
        pass

    trainer = Trainer(data, training=training, device=torch.device("cpu"), seed=0, original_macs=1, emit=silent,
                      progress=Progress(silent))  # fmt: skip
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        state = State.open(Path(folder), fingerprint={}, emit=silent)
        began = time.perf_counter()
        trainer.fit(network, training=training, epochs=1, label="train", state=state, restore_best=False)
        return time.perf_counter() - began


def forget(data: Dataset) -> None:
    """Drops what the page cache has of a dataset's files."""
    for split in data.splits.values():
        assert isinstance(split.rows, Stored)
        os.fsync(split.rows.file.descriptor)
        os.posix_fadvise(split.rows.file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    status = main(operations={"train": work})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
