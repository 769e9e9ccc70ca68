"""The oracle: the error of the network without the block (Velici 2022, section 3.3.1).

    s_i = 1 − accuracy of the network without block i, on the images that blocks are scored on

Of equal errors the one with the lower loss goes first.

- All candidates share what lies in front of them (`core.graph.shared_runs`): n of them cost about n/2 evaluations.
- `cache_mib` bounds what is held of activations at once, images included. Batches have as many images as fit, at most
  as many as an evaluation's; where fewer than 8 would, less is shared and computed again for each candidate.
- `racing`: see `core.saliency.block_racing`.

Differs from the thesis: scored on whichever split the recipe names, by what its task calls accuracy. On the CPU the
scores are those of evaluating one smaller network after the other, in batches of the same size, bit for bit.

Refuses a `cache_mib` that not even one image fits into.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from core.batch_size import inference_batch
from core.data.batches import batch_bounds
from core.errors import Fault, RecipeInvalid
from core.graph.network import Network
from core.graph.shared_runs import SharedRuns, Sharing, Variant, without
from core.saliency.block_racing import Race
from core.tasks.classification import right
from core.tasks.task import Figures, Gathering, Task
from core.training.memory_format import images_channels_last, to_channels_last
from core.training.port import Score
from core.training.seeds import derived_seed

if TYPE_CHECKING:
    from core.saliency.block_scores import Scoring

MIB = 2**20
FEW_IMAGES = 8
"""Batches of fewer images are slower than computing again what would be held in their place."""
SHARING: tuple[Sharing, ...] = ("all", "before", "nothing")


def oracle(scoring: Scoring) -> dict[str, float]:
    """The error without each candidate: the lowest first, of equal ones that with the lower loss.

    Raises `RecipeInvalid` where `cache_mib` is too little for one image.
    """
    network = scoring.network.clone()
    to_channels_last(network)  # else a last bit could depend on whether a run was resumed
    network.eval()
    variants = {candidate.name: without(network, candidate.blocks) for candidate in scoring.candidates}
    sharing, size = batch_that_fits(network, variants, scoring.cache_mib * MIB, step=scoring.step)
    answers = _Answers(network, variants, sharing)
    if scoring.racing is None:
        scores = _all(scoring, answers, size)
        errors = {name: 1 - score.accuracy for name, score in scores.items()}
    else:
        scores, errors = _raced(scoring, answers, size)
    return dict(sorted(errors.items(), key=lambda item: (_nan_last(item[1]), _nan_last(scores[item[0]].loss))))


def batch_that_fits(
    network: Network, variants: Mapping[str, Variant], room_bytes: int, *, step: int
) -> tuple[Sharing, int]:
    """What the variants share, and how many images go through at once, so that no more than `room_bytes` are held.

    Raises `RecipeInvalid` where not even one image fits.
    """
    most = inference_batch(network)
    found: list[tuple[int, Sharing]] = []
    for sharing in SHARING:
        needed = SharedRuns(network.module, variants, sharing).bytes_per_image
        images = min(most, room_bytes // needed)
        if images >= min(most, FEW_IMAGES):
            return sharing, images
        found.append((images, sharing))
    images, sharing = max(found, key=lambda pair: pair[0])
    if images < 1:
        least = math.ceil(needed / MIB)
        fault = Fault(
            f"/steps/{step}/cache_mib",
            f"the activations of one image do not fit into {room_bytes / MIB:g} MiB",
            f"at least {least}",
        )
        raise RecipeInvalid(f"cache_mib is too little for one image of this network: {least} are needed",
                            faults=[fault])  # fmt: skip
    return sharing, images


class _Answers:
    """What is told of images without each of `running`, asked for as a task asks a network."""

    def __init__(self, network: Network, variants: Mapping[str, Variant], sharing: Sharing) -> None:
        self._network = network
        self._variants = variants
        self._sharing = sharing
        self._runs: dict[fx.GraphModule, SharedRuns] = {}
        self.running: Collection[str] = tuple(variants)

    def only(self, running: Collection[str]) -> None:
        """From now on no others are asked for."""
        if len(running) < len(self.running):
            self.running = running
            self._runs.clear()

    def figures(self, images: Tensor, labels: Tensor, task: Task) -> Iterator[tuple[str, Figures]]:
        """Of a batch, by variant, in the order in which they come about."""
        wanted = task.wanted(images, labels)
        rest: Iterator[tuple[str, Any]] | None = None
        name = ""

        def through(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Any:
            nonlocal rest, name
            rest = self._of(module)(*inputs) if rest is None else rest
            name, outputs = next(rest)
            return outputs

        self._network.through = through
        for _ in self.running:
            figures = task.figures(task.outputs(self._network, images), wanted)
            yield name, figures

    def _of(self, module: fx.GraphModule) -> SharedRuns:
        """`module`: the network's, or that in front of its final Softmax."""
        if module not in self._runs:
            left = {name: self._variants[name] for name in self.running}
            self._runs[module] = SharedRuns(module, left, self._sharing)
        return self._runs[module]


def _all(scoring: Scoring, answers: _Answers, size: int) -> dict[str, Score]:
    task, images_in_all = scoring.trainer.task, len(scoring.data.splits[scoring.split])
    found = {name: Gathering(images_in_all) for name in answers.running}
    with torch.inference_mode():
        for images, labels in scoring.data.batches(scoring.split, size, device=_device(scoring)):
            images = images_channels_last(images, scoring.data.options.layout)
            for name, figures in answers.figures(images, labels, task):
                found[name].add(figures)
                scoring.looked(len(labels) / 2)
    return {name: task.score(each.figures()) for name, each in found.items()}


def _raced(scoring: Scoring, answers: _Answers, size: int) -> tuple[dict[str, Score], dict[str, float]]:
    """Scores on the images that each candidate saw, and errors on all, measured or estimated."""
    assert scoring.racing is not None
    task, images_in_all = scoring.trainer.task, len(scoring.data.splits[scoring.split])
    size = min(size, math.ceil(scoring.racing.first * images_in_all))
    ends = [end for _, end in batch_bounds(images_in_all, size)]
    race = Race(answers.running, scoring.racing, keep=_kept(scoring), ends=ends)
    found = {name: Gathering(images_in_all) for name in answers.running}
    batches = scoring.data.batches(
        scoring.split, size, seed=derived_seed(scoring.seed, f"race/{scoring.round}"), shuffle=True,
        device=_device(scoring),
    )  # fmt: skip
    with torch.inference_mode():
        for images, labels in batches:
            images = images_channels_last(images, scoring.data.options.layout)
            wrong = {}
            for name, figures in answers.figures(images, labels, task):
                found[name].add(figures)
                wrong[name] = ~right(figures)
                scoring.looked(len(labels) / 2)
            race.seen(wrong)
            answers.only(race.running)
            if len(race.running) == 1:
                break
    scores = {name: task.score(each.figures()) for name, each in found.items()}
    scoring.emit(
        f"prune/step/{scoring.step}/round/{scoring.round + 1}/race",
        images={name: score.images for name, score in scores.items()}, of=images_in_all,
    )  # fmt: skip
    return scores, race.errors({name: 1 - scores[name].accuracy for name in race.running})


def _kept(scoring: Scoring) -> int:
    """How many of the best must stay in a race: one that goes may keep others from going that share a block with it."""
    neighbours = max(len(candidate.blocks) for candidate in scoring.candidates)
    return scoring.goes + (scoring.goes - 1) * 2 * (neighbours - 1)


def _device(scoring: Scoring) -> torch.device:
    return next(scoring.network.parameters()).device


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
