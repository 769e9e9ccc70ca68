"""How long training and evaluating take per image on this machine, measured on a few real batches of a copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from core.batch_size import inference_batch
from core.data.batches import batch_bounds
from core.data.datasets import Dataset
from core.graph.network import Network
from core.progress import Progress
from core.state import State
from core.tasks.task import Task
from core.training.memory_format import images_channels_last, to_channels_last
from core.training.trainer import Trainer
from core.training.untrained import images_per_epoch
from core.training_settings import Training

MOST_BATCHES = 8
"""That are timed, behind one that is not: the first pays for warming up. Where that alone takes all the time that there
is, it is what is timed."""
MOST_EPOCHS = 1_000
ALONE_DOUBT = 1.5
"""By which factor a single time may be off, either way: nothing says how much it varies."""


@dataclass(frozen=True)
class Rate:
    """Seconds per image: the median of what was timed, and the least and the most of it."""

    seconds: float
    low: float
    high: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Rate:
        """Raises `ValueError` where there are no times."""
        if not times:
            raise ValueError("nothing was timed")
        if len(times) == 1:
            return cls(times[0], times[0] / ALONE_DOUBT, times[0] * ALONE_DOUBT)
        return cls(statistics.median(times), min(times), max(times))


def _silent(name: str, /, **body: Any) -> None:
    """Nobody keeps the events of what is only timed."""


class _Enough(Exception):
    """Ends a training of which a few batches were wanted."""


class Stopwatch:
    """Notes the seconds per image of each batch; `ready` says when there are enough.

    Args:
        seconds: when these are over there are no more, but one batch is always timed.
        device: waited for at each look at the clock.
    """

    def __init__(self, seconds: float, device: torch.device, clock: Callable[[], float]) -> None:
        self._device = device
        self._clock = clock
        self._times: list[float] = []
        self._mark = self._now()
        self._end = self._mark + seconds

    def start(self) -> None:
        """The next batch begins."""
        self._mark = self._now()

    def lap(self, images: int) -> None:
        """A batch of so many images is over."""
        now = self._now()
        self._times.append((now - self._mark) / images)
        self._mark = now

    @property
    def ready(self) -> bool:
        return len(self._times) > MOST_BATCHES or (bool(self._times) and self._mark >= self._end)

    @property
    def rate(self) -> Rate:
        return Rate.of(self._times[1:] or self._times)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()


def time_training(
    network: Network,
    training: Training,
    dataset: Dataset,
    *,
    task: Task,
    device: torch.device,
    seconds: float,
    plan: Sequence[Mapping[str, Any]] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> Rate:
    """Of one image, forward, backward and the optimizer's step, by `training` as it is: its batches, its augmentation,
    its precision, distillation. A copy of `network`, which `plan` has led to, is trained and thrown away.

    Raises what a training raises: `RecipeInvalid` where batches are too small for a BatchNorm, `TrainingDiverged` where
    the loss is not finite to begin with.
    """
    slow = training.optimizer.model_copy(update={"lr": 1e-12})
    training = training.model_copy(update={"optimizer": slow, "early_stop": 0})
    trainer = Trainer(
        dataset, training=training, device=device, seed=0, original_macs=1, emit=_silent, progress=Progress(_silent),
        task=task,
    )  # fmt: skip
    watch = Stopwatch(seconds, device, clock)
    sizes = [last - first for first, last in batch_bounds(images_per_epoch(dataset, training), training.batch_size)]
    done = 0

    def lap(_: Network) -> None:
        nonlocal done
        watch.lap(sizes[done % len(sizes)])
        done += 1
        if watch.ready:
            raise _Enough

    with suppress(_Enough):
        trainer.fit(
            network.clone(), training=training, epochs=MOST_EPOCHS, label="timing", state=State.unsaved(), on_batch=lap,
            on_epoch=lambda _: watch.start(), restore_best=False, plan=plan,
        )  # fmt: skip
    return watch.rate


def time_evaluation(
    network: Network,
    dataset: Dataset,
    *,
    task: Task,
    device: torch.device,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Rate:
    """Of one image of validation through `network`, without gradients, with what the task makes of it."""
    network = network.clone().to(device).eval()
    to_channels_last(network)
    watch = Stopwatch(seconds, device, clock)
    with torch.inference_mode():
        while True:
            watch.start()
            for images, labels in dataset.batches("validation", inference_batch(network), device=device):
                images = images_channels_last(images, dataset.options.layout)
                task.figures(task.outputs(network, images), task.wanted(images, labels))
                watch.lap(len(labels))
                if watch.ready:
                    return watch.rate
