"""The steps of a recipe, one after the other, each by its method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from core.block_settings import BlockRemoval
from core.data.datasets import Dataset
from core.events import Emit
from core.graph.counts import Counts, count
from core.graph.network import Network
from core.graph.plans import replay
from core.kept import Keep
from core.methods import block_removal as blocks
from core.methods import filter_norm as filters
from core.methods.train import train
from core.outcome import Done, Outcome
from core.progress import SCORING, Progress
from core.recipe import Export
from core.state import State
from core.step_settings import FilterNorm, Step, Train
from core.targets import Exports, Goal
from core.training.budget import EpochsBudget
from core.training.port import TrainerPort
from core.training.seeds import derived_seed

METHODS: Mapping[str, Callable[..., Outcome]] = {
    "filter_norm": filters.filter_norm,
    "block_removal": blocks.block_removal,
    "train": train,
}
_RESOLVED = {"method", "target", "fine_tune"}
"""Fields of a step that are not handed to its method as they are."""


def planned(step: Step, network: Network, original: Counts, export: Export, exports: Exports) -> list[tuple[int, int]]:
    """(epochs, MACs) of each training that `step` would take on `network`; a guess, which the step corrects."""
    if isinstance(step, Train):
        return [(step.epochs, count(network).macs)] if step.epochs else []
    target = Goal(step.target, original, exports=exports)
    if isinstance(step, BlockRemoval):
        return blocks.planned_trainings(network, step, target=target)
    return filters.planned_trainings(network, step, target=target, channel_multiple=export.channel_multiple)


def given(
    step: Step,
    *,
    original: Counts,
    accuracy: float,
    export: Export,
    exports: Exports,
    seed: int,
    like: Sequence[Mapping[str, int]] | None,
    keep: Keep | None,
    initial: Callable[[], Network],
) -> dict[str, Any]:
    """What `step` says, as arguments of its method."""
    if isinstance(step, Train):
        return {"epochs": step.epochs, "settings": step, "checkpoint_every": step.checkpoint_every, "keep": keep}
    return {
        "target": Goal(step.target, original, accuracy, exports),
        "fine_tune": step.fine_tune,
        "seed": seed,
        "like": like,
        "initial": initial,
        **({"channel_multiple": export.channel_multiple} if isinstance(step, FilterNorm) else {}),
        **{name: getattr(step, name) for name in type(step).model_fields if name not in _RESOLVED},
    }


def run_steps(
    steps: Sequence[Step],
    network: Network,
    dataset: Dataset,
    *,
    original: Counts,
    accuracy: float | Callable[[Network], float],
    export: Export,
    exports: Exports,
    seed: int,
    trainer: TrainerPort,
    progress: Progress,
    emit: Emit,
    state: State,
    prefix: str = "",
    like: Sequence[Sequence[Mapping[str, int]] | None] | None = None,
    epochs_budget: int | None = None,
    keep: Keep | None = None,
) -> Done:
    """What `steps` make of `network`, each from where an earlier attempt left it in `state`.

    Args:
        original: counts of the original, the unit of targets.
        accuracy: its validation accuracy, 0-1, or what tells it of the network in front of the first step that removes
            something (or behind all steps).
        exports: what networks are as files, for targets of size and latency.
        like: for the control `random`: of each step and round, how many units of which group go; None: by its target.
        epochs_budget: that all trainings of the steps may take together.
        keep: what is done with the checkpoints that a step is told to keep.
        prefix: of the parts of the progress and, as `emit` and `trainer` put it in front already, of the events.
    """
    done = Done.of(state, network)
    trainer.budget = EpochsBudget(epochs_budget)
    if done.steps:
        trainer.resumed(done.cost)
    later = [] if epochs_budget is None else [planned(step, network, original, export, exports) for step in steps]
    for index, step in enumerate(steps[done.steps :], start=done.steps):
        trainer.plan = list(done.plan)
        trainer.budget.expect(
            [
                (sum(epochs for epochs, _ in trainings), isinstance(other, Train))
                for other, trainings in zip(steps[index + 1 :], later[index + 1 :], strict=False)
            ]
        )
        part = f"{prefix}step/{index}"
        progress.begin(prefix.partition("/")[0] or "prune", part)
        lost_from = 0.0 if isinstance(step, Train) else accuracy(done.network) if callable(accuracy) else accuracy
        outcome = METHODS[step.method](
            done.network,
            dataset,
            trainer=trainer,
            emit=emit,
            state=state.scope("method"),
            step=index,
            **given(
                step,
                original=original,
                accuracy=lost_from,
                export=export,
                exports=exports,
                seed=derived_seed(seed, f"{prefix}step/{index}"),
                like=None if like is None else like[index],
                keep=keep,
                initial=partial(replay, network, list(done.plan)),
            ),
        )
        done.add(outcome)
        done.warnings += trainer.warnings
        trainer.warnings.clear()
        state.drop("method")
        state.save(**done.values())
        progress.expect(f"{part}/{SCORING}")
        progress.end(part)
    if callable(accuracy):
        accuracy(done.network)
    return done
