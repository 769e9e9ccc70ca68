"""What a dry run makes of networks that nobody trained: layers before and after, requirements, and what it assumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from core.block_settings import DATALESS, BlockRemoval
from core.dry_run_report import Foreseen, LayerCut, Size
from core.graph.counts import LayerCount, count
from core.graph.network import Network
from core.recipe import Recipe
from core.report import LatencyRatio
from core.requirements import COMPARISONS, Requirements
from core.step_settings import FilterNorm, Step, Train
from core.training.vicinity import changed_layers


def without_accuracy(recipe: Recipe) -> Recipe:
    """The recipe without what goes by the accuracy of trained networks (guards), and without noise, which a training
    would make up for."""
    return recipe.model_copy(update={"steps": tuple(_without_accuracy(step) for step in recipe.steps)})


def _without_accuracy(step: Step) -> Step:
    if isinstance(step, Train):
        return step
    target = step.target.model_copy(update={"max_accuracy_drop": None})
    return step.model_copy(
        update={"target": target, "fine_tune": step.fine_tune.model_copy(update={"noise": None})}
    )  # fmt: skip


GONE = LayerCount(kind="", channels=0, params=0, macs=0)


def layer_cuts(before: Network, after: Network) -> list[LayerCut]:
    """The layers of `before` that have other shapes in `after`, or are gone."""
    counts = (count(before).layers, count(after).layers)
    layers = (before.layers(), after.layers())
    found = []
    for name in changed_layers(before, after):
        old, new = (each.get(name, GONE) for each in counts)
        shapes = [
            [] if name not in each or (weight := each[name]._parameters.get("weight")) is None else list(weight.shape)
            for each in layers
        ]
        found.append(
            LayerCut(name=name, kind=old.kind, channels_before=old.channels, channels_after=new.channels,
                     weight_before=shapes[0], weight_after=shapes[1], params_before=old.params,
                     params_after=new.params, macs_before=old.macs, macs_after=new.macs)
        )  # fmt: skip
    return found


def size_ratios(before: Size, after: Size, latency: LatencyRatio | None) -> dict[str, float]:
    """after / before, named as in a report; without those of which the original has none."""
    names = ("params", "macs", "filters", "file_bytes")
    found = {
        f"{name}_ratio": getattr(after, name) / getattr(before, name) for name in names if getattr(before, name) > 0
    }
    return found if latency is None else {**found, "latency_ratio": latency.ratio}


def foreseen(requirements: Requirements, ratios: Mapping[str, float], latency: LatencyRatio | None) -> list[Foreseen]:
    """Each requirement that is set, and whether it can be told already that it holds."""
    found = []
    for name, (sign, number) in requirements.comparisons().items():
        value, compare = ratios.get(name), COMPARISONS[sign]
        holds = None if value is None else compare(value, number)
        note = "only the job can tell" if value is None else None
        if value is None and name == "latency_ratio":
            note = "not measured: nothing is cut"
        if (
            name == "latency_ratio"
            and latency is not None
            and compare(latency.low, number) != compare(latency.high, number)
        ):
            holds = None
            note = f"too close to call: measured {latency.low:.4g} to {latency.high:.4g}"
        found.append(Foreseen(name=name, required=f"{sign} {number:g}", value=value, holds=holds, note=note))
    return found


def assumptions(recipe: Recipe, *, timed: bool, looked_at: int, pruning: int, scored: int) -> list[str]:
    """In which the job may differ from the dry run, in plain sentences.

    looked_at, pruning: images that norms of activations are of, where those are noticed in training, and on the
    pruning split. scored: images that blocks are scored on at most.
    """
    found = []
    kinds = {FilterNorm: "filters", BlockRemoval: "blocks"}
    removed = dict.fromkeys(kinds[type(step)] for step in recipe.steps if not isinstance(step, Train))
    if removed:
        found.append(
            f"Nothing was trained: which {' and '.join(removed)} go was chosen by the weights that the steps begin "
            "with. The job chooses after training, and may choose others."
        )
    for index, step in enumerate(recipe.steps):
        if isinstance(step, FilterNorm):
            found += [f"Step {index}: {told}" for told in _of_filters(step, looked_at, pruning)]
        elif isinstance(step, BlockRemoval):
            found += [f"Step {index}: {told}" for told in _of_blocks(step, scored)]
        if not isinstance(step, Train):
            found += [f"Step {index}: {told}" for told in _of_any(step)]
    if any(training.early_stop for training, epochs in recipe.trainings() if epochs):
        found.append(
            "No training was taken to stop early; the lower ends of the estimate take each as short as it gets."
        )
    if timed:
        found.append(
            "The times are of this worker, as busy as it was when they were measured; time in the queue, checkpoints "
            "and transfers are not in them."
        )
    else:
        found.append(
            "How long the job takes is not told: it would run on a GPU, and this was measured by a worker for the CPU."
        )
    return found


def _of_filters(step: FilterNorm, looked_at: int, pruning: int) -> Iterator[str]:
    if step.scope == "global":
        yield "with scope global, how many filters each layer keeps, and how many rounds there are, may differ too."
    elif step.signal != "random":
        yield "each layer keeps as many filters as in the job, but for the last round, whose order goes by the scores."
    if step.signal == "activations" and step.scores == "training":
        yield f"the norms of activations are of {looked_at} images of train in each round."
    if step.scores == "pruning_split":
        yield f"the norms of activations are of at most {pruning} images of the pruning split in each round."


def _of_blocks(step: BlockRemoval, images: int) -> Iterator[str]:
    if step.saliency == "random":
        yield "which blocks go is drawn from the seed, as in the job."
    else:
        yield "blocks are not all of one size: where the job chooses others, the result is of another size."
    if step.saliency not in DATALESS:
        split = "the pruning split" if step.scores == "pruning_split" else "validation"
        yield (
            f"blocks were scored by {step.saliency} once, in front of the first round, on at most {images} images of "
            f"{split}."
        )
    if step.racing is not None:
        yield "the time that scoring takes is that without racing."


def _of_any(step: FilterNorm | BlockRemoval) -> Iterator[str]:
    if step.target.max_accuracy_drop is not None:
        yield (
            f"the guard max_accuracy_drop {step.target.max_accuracy_drop:g} was left out: what cuts cost in accuracy "
            "is known only once the job has trained, and it may stop the step before its target."
        )
    moments = step.fine_tune.policy.moments
    if moments is not None and moments.threshold is not None:
        yield (
            f"no cut was taken to cost more than the threshold {moments.threshold:g}; the upper ends of the estimate "
            "have a whole fine-tuning after every round."
        )
    if step.fine_tune.noise is not None:
        yield "the noise on the weights was left out."
    if step.fine_tune.local is not None:
        yield "local fine-tunings were timed as if they trained the whole network."
    if step.target.latency is not None:
        yield "the latency was measured here after each round; elsewhere another round may be the last."
