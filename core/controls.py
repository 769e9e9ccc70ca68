"""The controls of a recipe (`baselines`): the same data and training, without what the recipe claims to be good.

`unpruned`: is it the pruning, or only the longer training? `random`: does it matter what is removed? `scratch`: are the
original's weights of any use? (Liu et al. 2019; Blalock et al. 2020.) `scratch_standard`: is the structure that pruning
has found better than the usual one with as many blocks? (Velici 2022.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal

from core.baselines import Baseline, Kind, Name
from core.block_settings import BlockRemoval
from core.blocks.standard import standard
from core.data.datasets import Dataset
from core.errors import PruningError, RecipeInvalid, TrainingDiverged
from core.events import Emit
from core.graph.counts import Counts, count
from core.graph.initialise import reinitialise
from core.graph.network import Network
from core.outcome import Done
from core.progress import Progress
from core.recipe import Recipe
from core.report import Cost
from core.schedule_settings import Milestones
from core.state import State
from core.step_settings import FilterNorm, Step, Train
from core.steps import planned, run_steps
from core.target_settings import Target
from core.targets import Exports
from core.training.port import TrainerPort, add_costs
from core.training.seeds import derived_seed
from core.training_settings import Training


@dataclass
class Control:
    """A control that has been run. `network` is what it ends with, `budget` that of its training, in words. `done`: of
    one that ran the recipe's steps."""

    name: Name
    network: Network
    cost: Cost
    budget: str
    warnings: list[str] = field(default_factory=list)
    done: Done | None = None


@dataclass(frozen=True)
class Failed:
    """A control that could not be run to its end; the job goes on without it, and says so."""

    name: Name
    reason: str


@dataclass(frozen=True)
class Ran:
    """What the recipe's own run began with and left: the network in front of the steps, and behind them."""

    start: Network
    done: Done
    original: Counts
    accuracy: float


@dataclass(frozen=True)
class Surroundings:
    """What every control is given. `trainer(prefix)`: one whose events and parts begin with `prefix`."""

    recipe: Recipe
    dataset: Dataset
    trainer: Callable[[str], TrainerPort]
    progress: Progress
    emit: Emit
    state: State
    exports: Exports


def prefix_of(name: Name) -> str:
    """What the names of a control's events begin with."""
    return f"baseline/{name}/"


def expected(recipe: Recipe, network: Network, original: Counts, exports: Exports) -> dict[str, list[tuple[int, int]]]:
    """(epochs, MACs) of the trainings of each part of the controls, guessed before the steps have run."""
    found: dict[str, list[tuple[int, int]]] = {}
    steps = [planned(step, network, original, recipe.export, exports) for step in recipe.steps]
    every = [training for trainings in steps for training in trainings]
    epochs = sum(number for number, _ in every)
    if recipe.epochs_budget is not None:
        epochs = min(epochs, recipe.epochs_budget)
    last = every[-1][1] if every else original.macs
    for baseline in recipe.baselines:
        prefix = prefix_of(baseline.name)
        if baseline.kind == "random":
            found.update({f"{prefix}step/{index}": trainings for index, trainings in enumerate(steps)})
        elif baseline.kind == "unpruned":
            leading = steps[: len(_leading(recipe))]
            found.update({f"{prefix}step/{index}": trainings for index, trainings in enumerate(leading)})
            done = sum(number for trainings in leading for number, _ in trainings)
            found[f"{prefix}fine_tune"] = [(max(0, epochs - done), original.macs)]
        else:
            budget = baseline.settings.budget
            equal = sum(number * macs for number, macs in every) // max(1, last)
            number = budget if isinstance(budget, int) else epochs if budget == "equal_epochs" else equal
            found[f"{prefix}train"] = [(number, last)]
    return found


def run_controls(ran: Ran, around: Surroundings) -> list[Control | Failed]:
    """Every control of the recipe, in its order, each from where an earlier attempt left it."""
    found: list[Control | Failed] = []
    for baseline in around.recipe.baselines:
        state = around.state.scope(baseline.name)
        try:
            found.append(CONTROLS[baseline.kind](baseline, ran, around, state))
        except (PruningError, RecipeInvalid, TrainingDiverged) as error:
            around.emit(f"{prefix_of(baseline.name)}failed", code=error.code, reason=error.message)
            found.append(Failed(baseline.name, error.message))
    return found


def unpruned(baseline: Baseline, ran: Ran, around: Surroundings, state: State) -> Control:
    """The network in front of the first step that removes something, as the steps before it have trained it, trained on
    for as many epochs as the pruned network, as the last training was."""
    leading = [] if "weights" in state else _leading(around.recipe)  # it is done already
    before = _steps("unpruned", leading, ran, around, state.scope("leading"), [None] * len(leading))
    epochs = ran.done.cost.epochs - before.cost.epochs
    network = before.network.clone()  # without such steps it is what the other controls begin with, too
    training = stretched(*around.recipe.steps[-1].trainings(around.recipe.training)[-1])
    cost, warnings = _trained(network, "fine_tune", epochs, training, baseline, around, state, before=before)
    return Control("unpruned", network, cost, f"{cost.epochs} epochs, as the pruned network's", warnings)


def _leading(recipe: Recipe) -> list[Step]:
    """The steps in front of the first that removes something."""
    return list(takewhile(lambda step: isinstance(step, Train), recipe.steps))


def stretched(training: Training, epochs: int) -> Training:
    """A training meant for `epochs`, for another number: what is told in epochs becomes a share, and it is not stopped
    early, as the rounds that it stands beside are not."""
    changes: dict[str, Any] = {"early_stop": 0}
    epochs = max(1, epochs)
    schedule = training.schedule
    if isinstance(schedule, Milestones) and any(isinstance(item, int) for item in schedule.milestones):
        shares = tuple(milestone / epochs for milestone in schedule.milestones if milestone < epochs)
        changes["schedule"] = schedule.model_copy(update={"milestones": shares})
    if isinstance(training.warmup, int) and training.warmup:
        changes["warmup"] = min(training.warmup / epochs, 0.5)
    return training.model_copy(update=changes)


def random(baseline: Baseline, ran: Ran, around: Surroundings, state: State) -> Control:
    """The recipe's steps with random scores: in each round as many units of each group as the pruned network lost.

    Once other blocks have gone than in the pruned network, there are other layers: filters then go until no more of
    what the step's target names is left than the pruned network had behind that step.
    """
    steps: list[Step] = []
    like: list[Sequence[Mapping[str, int]] | None] = []
    for index, (step, removed) in enumerate(zip(around.recipe.steps, ran.done.removed, strict=True)):
        chosen = step.at_random()
        other_layers = any(isinstance(earlier, BlockRemoval) for earlier in steps)
        if isinstance(chosen, FilterNorm) and other_layers and removed:
            chosen = chosen.model_copy(update={"target": _reached(chosen, index, ran.done)})
            like.append(None)
        else:
            like.append(removed)
        steps.append(chosen)
    done = _steps("random", steps, ran, around, state, like)
    warnings = [f"control random: {warning}" for warning in done.warnings]
    return Control("random", done.network, done.cost, "the recipe's steps", warnings, done)


def _reached(step: FilterNorm, index: int, done: Done) -> Target:
    """What the step's target names, as counts that the step has left; MACs for a latency."""
    rounds = len(done.removed[index])
    left = next(point for point in reversed(done.front) if point.step == index and point.round <= rounds)
    counts = {"params": left.params, "macs": left.macs, "filters": left.filters, "size": left.file_bytes}
    return Target(**{name: counts[name] for name in step.target.sizes() or ("macs",)})


def _steps(
    kind: Literal["unpruned", "random"],
    steps: Sequence[Step],
    ran: Ran,
    around: Surroundings,
    state: State,
    like: Sequence[Sequence[Mapping[str, int]] | None],
) -> Done:
    """What `steps`, the first of the recipe's, make of what the recipe began with."""
    prefix = prefix_of(kind)

    def emit(name: str, /, **body: Any) -> None:
        around.emit(prefix + name, **body)

    return run_steps(
        steps,
        ran.start,
        around.dataset,
        original=ran.original,
        accuracy=ran.accuracy,
        export=around.recipe.export,
        exports=around.exports,
        seed=around.recipe.seed,
        trainer=around.trainer(prefix),
        progress=around.progress,
        emit=emit,
        state=state,
        prefix=prefix,
        like=like,
        epochs_budget=around.recipe.epochs_budget,
    )


def scratch(baseline: Baseline, ran: Ran, around: Surroundings, state: State) -> Control:
    """The pruned network's structure, or the standard one, with random weights, trained by the baseline's settings."""
    settings, spent, name = baseline.settings, ran.done.cost, baseline.name
    if settings.structure == "pruned":
        network, plan = ran.done.network.clone(), ran.done.plan
    else:
        network, plan = standard(ran.start, count(ran.done.network).blocks)
    kept = reinitialise(network, seed=derived_seed(around.recipe.seed, f"{prefix_of(name)}weights"))
    params = count(network).params
    epochs = {"equal_epochs": spent.epochs, "equal_cost": max(1, round(spent.epoch_params / params))}.get(
        str(settings.budget), settings.budget
    )
    assert isinstance(epochs, int)
    training = settings.training(around.recipe.training)
    cost, warnings = _trained(network, "train", epochs, training, baseline, around, state, plan=plan)
    told = settings.budget if isinstance(settings.budget, str) else "as the recipe says"
    if kept:
        warnings.append(f"control {name}: parameters of no layer keep their values: {', '.join(kept)}")
    return Control(name, network, cost, f"{epochs} epochs, {told.replace('_', ' ')}", warnings)


CONTROLS: Mapping[Kind, Callable[[Baseline, Ran, Surroundings, State], Control]] = {
    "unpruned": unpruned,
    "random": random,
    "scratch": scratch,
}


def _trained(
    network: Network,
    label: str,
    epochs: int,
    training: Training,
    baseline: Baseline,
    around: Surroundings,
    state: State,
    plan: Sequence[Mapping[str, Any]] = (),
    before: Done | None = None,
) -> tuple[Cost, list[str]]:
    """Trains `network` in place, which `plan` has led to, or takes what an earlier attempt has trained. Returns what it
    cost, with what was done `before`, and warnings."""
    prefix = prefix_of(baseline.name)
    if "weights" in state:
        network.load_state_dict(state["weights"])
        return Cost(**state["cost"]), list(state["warnings"])
    trainer = around.trainer(prefix)
    around.progress.begin("baseline", prefix + label)
    trainer.expect(label, [(epochs, count(network).macs)])
    fit = trainer.fit(network, training=training, epochs=epochs, label=label, state=state.scope("fit"), plan=plan)
    state.drop("fit")
    state.drop("leading")
    cost = fit.cost if before is None else add_costs(before.cost, fit.cost)
    told = [*(() if before is None else before.warnings), *trainer.warnings]
    warnings = [f"control {baseline.name}: {warning}" for warning in told]
    state.save(weights=network.state_dict(), cost=cost.model_dump(), warnings=warnings)
    around.progress.end(prefix + label)
    return cost, warnings
