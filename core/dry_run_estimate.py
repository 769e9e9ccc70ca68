"""The time and cost of a job, from the trainings that its steps and controls asked for and from what an image takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from core.data.datasets import Dataset
from core.dry_run_report import Estimate, Spending
from core.expected import besides_training
from core.outcome import Done
from core.recipe import Recipe
from core.step_settings import Train
from core.training.timing import Rate
from core.training.trainer import RECALIBRATION_IMAGES
from core.training.untrained import Booked
from core.training_settings import Training

STEPS = "steps"
"""The part that is not a control."""
Pick = Callable[[Rate], float]
PICKS: tuple[Pick, Pick, Pick] = (lambda rate: rate.seconds, lambda rate: rate.low, lambda rate: rate.high)


def kind_of(training: Training) -> str:
    """What the time of a training depends on: two trainings of one kind take as long for an image."""
    told = {"batch_size", "augment", "precision", "compile", "distill", "freeze", "pruning_split"}
    return f"{training.optimizer.name} {training.clip_norm > 0} {training.model_dump_json(include=told)}"


def kinds_of_training(parts: Mapping[str, Sequence[Booked]]) -> dict[str, Training]:
    """Each kind of training that was asked for, with one that is of it; the one with most images of the steps first."""
    images: dict[str, int] = {}
    found: dict[str, Training] = {}
    for part, trainings in parts.items():
        for booked in trainings:
            kind = kind_of(booked.training)
            found.setdefault(kind, booked.training)
            images[kind] = images.get(kind, 0) + (booked.epochs * booked.images if part == STEPS else 0)
    return {kind: found[kind] for kind in sorted(found, key=lambda kind: -images[kind])}


@dataclass(frozen=True)
class Between:
    """Seconds per image, measured of two networks; of others between them by their MACs, on a straight line."""

    original: Rate
    original_macs: int
    pruned: Rate
    pruned_macs: int

    def seconds(self, macs: int, pick: Pick) -> float:
        first, last = pick(self.original), pick(self.pruned)
        if self.original_macs == self.pruned_macs:
            return first
        way = (self.original_macs - macs) / (self.original_macs - self.pruned_macs)
        return first + (last - first) * min(1.0, max(0.0, way))


@dataclass(frozen=True)
class Rates:
    """`training`: by its kind. `cutting_seconds`: that the cuts, their proofs and the latencies of rounds took."""

    training: Mapping[str, Between]
    evaluation: Between
    cutting_seconds: float

    def of(self, trainings: Sequence[Booked], validation: int, pick: Pick, *, least: bool = False) -> float:
        """Seconds of `trainings`, each epoch with its look at the images of `validation`."""
        total = 0.0
        for booked in trainings:
            image = self.training[kind_of(booked.training)].seconds(booked.macs, pick)
            epoch = booked.images * image + validation * self.evaluation.seconds(booked.macs, pick)
            total += (booked.least_epochs if least else booked.epochs) * epoch
        return total


def estimate(
    recipe: Recipe,
    dataset: Dataset,
    parts: Mapping[str, Sequence[Booked]],
    done: Done,
    rates: Rates | None,
    *,
    scorings: Sequence[tuple[int, int]],
    device: str,
    threads: int,
) -> Estimate:
    """Adds up.

    Args:
        recipe: as given, with its policies.
        parts: the trainings that were asked for, of the steps and of each control.
        done: what the steps have left.
        rates: None where nothing was timed.
        scorings: (images, MACs of the network) of each scoring of blocks.
    """
    steps = parts[STEPS]
    epochs = sum(booked.epochs for booked in steps)
    extra = _past_thresholds(recipe, done, epochs)
    shares = {part: _shares(part, recipe, steps, extra) for part in parts}
    spending = [_spending(part, trainings, dataset, rates) for part, trainings in parts.items()]
    total = low = high = None
    if rates is not None:
        besides = [_besides(recipe, dataset, parts, done, rates, scorings, pick) for pick in PICKS]
        validation = len(dataset.splits["validation"])
        found = [
            (rates.of(trainings, validation, PICKS[0]),
             rates.of(trainings, validation, PICKS[1], least=True) * shares[part][0],
             rates.of(trainings, validation, PICKS[2]) * shares[part][1])
            for part, trainings in parts.items()
        ]  # fmt: skip
        total, low, high = (sum(each[end] for each in found) + besides[end] for end in range(3))
    first = next(iter(kinds_of_training(parts)), None)
    longest = None if rates is None or first is None else rates.training[first]
    return Estimate(
        epochs=sum(booked.epochs for trainings in parts.values() for booked in trainings),
        epochs_low=sum(
            round(shares[part][0] * sum(booked.least_epochs for booked in trainings))
            for part, trainings in parts.items()
        ),
        epochs_high=sum(
            round(shares[part][1] * sum(booked.epochs for booked in trainings)) for part, trainings in parts.items()
        ),
        images=sum(item.images for item in spending),
        epoch_params=sum(item.epoch_params for item in spending),
        spending=spending,
        estimated_seconds=total,
        estimated_seconds_low=low,
        estimated_seconds_high=high,
        training_seconds_per_image_original=None if longest is None else longest.original.seconds,
        training_seconds_per_image_pruned=None if longest is None else longest.pruned.seconds,
        device=device,
        threads=threads,
    )


def _spending(part: str, trainings: Sequence[Booked], dataset: Dataset, rates: Rates | None) -> Spending:
    costs = [booked.cost for booked in trainings]
    seconds = None if rates is None else rates.of(trainings, len(dataset.splits["validation"]), PICKS[0])
    return Spending(
        part=part,
        epochs=sum(cost.epochs for cost in costs),
        images=sum(cost.images for cost in costs),
        epoch_params=sum(cost.epoch_params for cost in costs),
        estimated_seconds=seconds,
    )


def _past_thresholds(recipe: Recipe, done: Done, epochs: int) -> int:
    """Epochs more than `epochs`, those of the steps, where every threshold of a policy is passed after every round."""
    extra = 0
    for step, removed in zip(recipe.steps, done.removed, strict=True):
        if not isinstance(step, Train):
            policy = step.fine_tune.policy
            if policy.moments is not None and policy.moments.threshold is not None:
                whole = max(0, step.fine_tune.epochs - (policy.low or 0))
                extra += max(0, len(removed) - 1) * whole
    return extra if recipe.epochs_budget is None else min(extra, max(0, recipe.epochs_budget - epochs))


def _shares(part: str, recipe: Recipe, steps: Sequence[Booked], extra: int) -> tuple[float, float]:
    """What the ends of a part's epochs are multiplied by. Controls get the epochs that the steps had, or their cost."""
    epochs = sum(booked.epochs for booked in steps)
    if epochs == 0:
        return 1.0, 1.0
    high = (epochs + extra) / epochs
    if part in (STEPS, "random"):  # whose own trainings may stop early
        return 1.0, high
    budgets = [baseline.settings.budget for baseline in recipe.baselines if baseline.name == part]
    if part.startswith("scratch") and any(isinstance(budget, int) for budget in budgets):
        return 1.0, 1.0
    return sum(booked.least_epochs for booked in steps) / epochs, high


def _besides(
    recipe: Recipe,
    dataset: Dataset,
    parts: Mapping[str, Sequence[Booked]],
    done: Done,
    rates: Rates,
    scorings: Sequence[tuple[int, int]],
    pick: Pick,
) -> float:
    """Seconds of all that is no training."""
    work = besides_training(recipe, dataset).values()
    image = rates.evaluation.seconds(rates.evaluation.original_macs, pick)
    images = min(RECALIBRATION_IMAGES, len(dataset.splits["train"])) + len(dataset.splits["validation"])
    cuts = sum(bool(units) for removed in done.removed for units in removed)
    looked = cuts * (2 if "random" in parts else 1) * images  # each cut is measured afresh, then scored
    scored = sum(number * rates.evaluation.seconds(macs, pick) for number, macs in scorings)
    return sum(each.passes * image + each.seconds for each in work) + looked * image + scored + rates.cutting_seconds
