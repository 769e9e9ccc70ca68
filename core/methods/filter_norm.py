"""Iterative removal of several filters at once by their 2-norm.

Salcedo & Sharma, section 2.1.3, algorithms 1 to 3 (after Molchanov et al. 2017, who remove one at a time; by weights,
Li et al. 2016 with the L1 norm). Each round trains for N_i epochs (`every_epochs`), accumulating at each iteration

    weights:      ñ_i = ‖W_i‖₂ over dims 1, 2, 3       W_i (C_i, C_{i-1}, kh, kw) -> ñ_i (C_i,)
    activations:  ñ_i = ‖A_i‖₂ over dims 0, 2, 3       A_i (N, C_i, H, W)         -> ñ_i (C_i,)
    optionally    ñ_i ← ñ_i / max|ñ_i|;   then   n_i ← n_i + ñ_i

then makes one pruning pass: from every layer i the N_p = ⌊ratio_per_round · C_i⌋ filters with the smallest n_i go, the
network is replaced by the smaller one, and all n_i are reset. Rounds go on until the target holds; then fine-tuning.

Differs from the paper
- What goes is a *unit of a channel group*: filters that an `add` or a depthwise convolution ties together go together,
  scored by the root mean square of their norms (`core/saliency/filter_norms.py`). In VGG a unit is one filter.
- N_p is rounded down, of the layer's present width. Equation (1) says round(p/100 · N_total) of the whole network; its
  own figure (4224 -> 3136) is only reproduced by this reading (docs/methods/filter_norm.md has the sum).
- Kept widths are multiples of `channel_multiple`. What a round's share could not pay for is carried to the next; a
  share of less than one filter adds up. `channel_multiple: 1` is the paper.
- `scope: global` ranks the units of all groups together; each round's share is then of all of them.
- The last round takes no more than the target needs: chunks of weakest units, in order, until it holds. With a target
  of `latency`, which is measured after each cut, every round is whole.
- The paper stops after 50 epochs, this at the target; the paper has no fine-tuning after the last pass.
- `signal: random` scores by chance: the control. `scores: pruning_split` notices activations on images that the round
  has not trained on, after it, in evaluation mode.
- Every cut is proved exact, and BatchNorm statistics are measured afresh after it. Each round's training starts a new
  optimizer and goes through the recipe's schedule once.

Refuses
- a network in which no convolution may be cut, or none by a whole multiple (`NothingRemoved`, with reasons);
- a target that even the least widths miss (`TargetUnreachable`). Both before any training. A latency that even they
  miss is no error, as it is known only then: the step ends with them, and the report says that it was not met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from torch import Tensor

from core.batch_size import inference_batch
from core.data.datasets import Dataset
from core.events import Emit
from core.graph.counts import count
from core.graph.exactness import check_cut
from core.graph.groups import ChannelGroup
from core.graph.network import Network
from core.graph.plans import replay
from core.guard import Guard
from core.outcome import Outcome
from core.pruning_run import PruningRun
from core.report import Cost
from core.rounds import (
    Scope,
    cut_no_more_than_needed,
    filter_groups,
    is_at_least,
    least_of,
    planned_rounds,
    require_reachable,
    select,
    weakest,
)
from core.saliency.filter_norms import FilterNorms
from core.saliency.random_scores import RandomScores
from core.state import State
from core.step_settings import FilterNorm
from core.targets import Goal, Present
from core.training.memory_format import images_channels_last
from core.training.policies import FineTuning, expected_trainings
from core.training.port import TrainerPort
from core.training.rewinding import Origins
from core.training.vicinity import changed_layers
from core.training_settings import FineTune

PROOF_IMAGES = 4
"""Real inputs that each cut is proved on, in float64."""


def filter_norm(
    network: Network,
    data: Dataset,
    *,
    signal: Literal["weights", "activations", "random"],
    ratio_per_round: float,
    every_epochs: int,
    scope: Scope,
    normalize: Literal["none", "max"],
    scores: Literal["training", "pruning_split"] = "training",
    target: Goal,
    fine_tune: FineTune,
    channel_multiple: int,
    trainer: TrainerPort,
    emit: Emit,
    state: State,
    step: int = 0,
    seed: int = 0,
    like: Sequence[Mapping[str, int]] | None = None,
    initial: Callable[[], Network] | None = None,
) -> Outcome:
    """Prunes `network` in rounds until `target` holds, fine-tuning by the policy of `fine_tune`. See the top of this
    file.

    Args:
        data: gives the images that cuts are proved on.
        state: this step's own scope: empty, or what an earlier attempt saved. A run that goes on from it ends in the
            same bits as an undisturbed one.
        step: index of the step in the recipe, for the names of events.
        seed: of random scores, and of noise on weights.
        like: for the control `random`: how many units of which group go in each round, in place of shares and target.
        initial: for `rewind`, see `core.training.rewinding.Origins`.
        The others are the recipe's (`core.recipe.FilterNorm`).

    Raises `NothingRemoved`, `TargetUnreachable`; `ExactnessFailed` if a cut is not exact; `TrainingDiverged`.
    """
    label = f"prune/step/{step}"
    run = _Run.of(state)
    given = network
    network = replay(given, run.plan) if run.plan else given.clone()  # what was given is left as it is
    if "weights" in state:
        network.load_state_dict(state["weights"])
    trainer.resumed(run.cost)

    def measured(network: Network) -> Present:
        return target.present(network, None if like is not None else target.measured_latency(network))

    def is_done(present: Present) -> bool:
        if like is not None:
            return run.round >= len(like)
        return target.met(present) or (target.target.latency is not None and is_at_least(network, channel_multiple))

    def is_over(present: Present) -> bool:
        """Whether there is no other round, be it for lack of epochs."""
        room = like is not None or trainer.budget.has_room_for(every_epochs, fine_tuned=fine_tune.epochs > 0)
        return is_done(present) or not room

    if "front" not in state:  # a fresh start
        present = measured(network)
        if target.met(present) if like is None else not like:
            reason = "the target is met already"
            results = [result.model_dump() for result in target.results(present)]
            emit(f"{label}/skipped", reason=reason, targets=results)
            return Outcome(network, [], [], Cost(), [], skipped=reason, latency=present.latency)
        if like is None:
            require_reachable(network, target, channel_multiple=channel_multiple, step=step)
            trainer.budget.require_room_for(every_epochs, fine_tuned=fine_tune.epochs > 0, step=step)
        run.visit(step, present, trainer.evaluate(network, "validation").accuracy)
        state.put(**run.values())

    if like is None:
        rounds = planned_rounds(network, target, ratio=ratio_per_round, channel_multiple=channel_multiple)
    else:
        rounds = [count(network).macs] * (len(like) - run.round + 1)
    tuning = FineTuning(
        fine_tune,
        trainer=trainer,
        state=state.scope("fine_tune"),
        step=step,
        seed=seed,
        rounds=run.round + len(rounds) - 1,
        round_epochs=every_epochs,
        accuracy=run.front[0].validation_accuracy or 0.0,
        origins=Origins(given, initial),
    )
    guard = Guard(target, state=state.scope("guard"))
    to_come = tuning.expect(rounds[1:], done=run.round)
    emit(f"{label}/plan", rounds_done=run.round, rounds_to_come=len(rounds) - 1,
         epochs=trainer.budget.within((len(rounds) - 1) * every_epochs + sum(epochs for epochs, _ in to_come)),
         groups=_described(filter_groups(network), channel_multiple))  # fmt: skip

    while True:
        if state.get("stopped"):  # by the guard, before the end of an earlier attempt
            break
        met = is_over(target.present(network, run.latency))  # as it was measured then: what was decided stays
        if met and not state.get("ended"):  # fine-tuning has left too few epochs for the rounds that were planned
            tuning.after(run.round, run.accuracy, last=True)
            state.put(ended=True)
        rounds = rounds if met or len(rounds) > 1 else [count(network).macs, rounds[-1]]  # the estimate was short
        due = [(tuning.due.epochs, count(network).macs)] if tuning.due else []
        trainer.expect(
            f"step/{step}",
            due if met else [*due, *((every_epochs, macs) for macs in rounds[:-1]),
                             *tuning.expect(rounds[1:], done=run.round)],
        )  # fmt: skip
        if tuning.due is not None:
            whole = tuning.due.whole
            fit = tuning.run(network, last=met, on_epoch=lambda record: state.drop("weights"), plan=run.plan)
            run.trained(fit)
            guard.look(network, len(run.plan), run.accuracy)
            stopped = whole and bool(run.plan) and not guard.admits(run.accuracy)
            state.save(**run.values(), weights=network.state_dict(), stopped=stopped)
            if stopped:
                break
        if met:
            break
        if is_over(target.present(network, run.latency)):
            continue
        rounds = rounds[1:]

        groups = filter_groups(network)
        # algorithm 3, lines 2 to 4: train, accumulate
        layers = dict.fromkeys(producer.layer for group in groups for producer in group.producers)
        norms: FilterNorms | RandomScores
        if signal == "random":
            norms = RandomScores(seed=seed, round=run.round)
        else:
            norms = FilterNorms(layers, signal=signal, normalize=normalize)
        if "norms" in state:
            norms.load(state["norms"])

        def remember(record: Mapping[str, Any], norms: FilterNorms | RandomScores = norms) -> None:
            state.drop("weights")  # the training's own checkpoint has newer ones
            state.put(norms=norms.state())

        name = f"{label}/round/{run.round + 1}"
        with norms.recording(network):
            fit = trainer.fit(
                network,
                training=trainer.training.model_copy(update={"early_stop": 0}),  # norms are of every_epochs epochs
                epochs=every_epochs,
                label=name,
                state=state.scope("fit"),
                on_batch=norms.add if scores == "training" else None,
                on_epoch=remember,
                restore_best=False,
                plan=run.plan,
            )
        if isinstance(norms, FilterNorms) and scores == "pruning_split":
            norms.look(network, _pruning_images(network, data))
        run.trained(fit)
        guard.look(network, len(run.plan), run.accuracy if run.plan else None)

        # lines 5 and 6: the pruning pass
        found = {group.name: norms.scores(group) for group in groups}
        carried = run.carried
        if like is None:
            chosen, carried = select(
                groups, found, scope=scope, ratio=ratio_per_round, channel_multiple=channel_multiple, carried=carried
            )
        else:
            chosen = weakest(found, like[run.round])
        removal: dict[str, list[int]] = {}
        wound: list[str] = []
        check = None
        accuracy = fit.score.accuracy if fit.score else None
        if chosen:
            removal, smaller, entry = cut_no_more_than_needed(network, chosen, target if like is None else None)
            device = next(network.parameters()).device
            images, _ = next(iter(data.batches("validation", PROOF_IMAGES, device=device)))
            check = check_cut(network, removal, smaller, images).model_copy(update={"name": f"exactness/{name}"})
            wound = changed_layers(network, smaller)
            network = smaller
            trainer.recalibrate(network, label=f"{name}/recalibrate")
            accuracy = trainer.evaluate(network, "validation").accuracy
            run.plan.append(entry)
            run.checks.append(check)
        run.over({name: len(units) for name, units in removal.items()})
        run.carried = carried
        present = measured(network) if removal else target.present(network, run.latency)
        counts = present.counts
        if removal:
            run.visit(step, present, accuracy)
            guard.look(network, len(run.plan), accuracy)
        ended = is_over(present)
        tuned = tuning.after(run.round, accuracy, last=ended, wound=wound)
        emit(f"{name}/select", signal=signal, scope=scope, scores=found, removed=removal,
             layers=run.plan[-1]["layers"] if removal else {},
             widths={group.name: group.width - len(removal.get(group.name, [])) for group in groups},
             carried={key: float(value) for key, value in carried.items()},
             params=counts.params, macs=counts.macs, filters=counts.filters, file_bytes=present.file_bytes,
             latency=present.latency.model_dump() if present.latency else None, validation_accuracy=accuracy,
             exactness=check.error if check else None, **tuned)  # fmt: skip

        # lines 7 and 8: reset
        state.drop("fit", "norms")
        state.save(**run.values(), weights=network.state_dict(), ended=ended)

    warnings, accuracy = [*tuning.never_reached(run.round), *tuning.cut_short()], run.accuracy
    present = target.present(network, run.latency)
    if not is_done(present) and not state.get("stopped"):
        warnings.append(f"step {step} ended after {run.round} round(s), short of its target: {trainer.budget.told}")
    if not guard.admits(run.accuracy):
        network, accuracy, warning = run.back_inside(guard, given, step=step, label=label, emit=emit)
        warnings.append(warning)
    elif like is None and is_done(present) and not target.met(present):
        warnings.append(
            f"step {step} ended at the least widths (channel_multiple {channel_multiple}): nothing more could be "
            f"removed, and the latency {target.target.latency} was not reached"
        )
    return Outcome(
        network, run.plan, run.front, run.cost, run.checks, warnings=warnings, accuracy=accuracy, removed=run.removed,
        latency=run.kept_latency,
    )  # fmt: skip


# --- what is told beforehand ------------------------------------------------------------------------------------------


def planned_trainings(
    network: Network, step: FilterNorm, *, target: Goal, channel_multiple: int
) -> list[tuple[int, int]]:
    """(epochs, MACs) of each training that `step` is expected to take on `network`."""
    rounds = planned_rounds(network, target, ratio=step.ratio_per_round, channel_multiple=channel_multiple)
    own = [(step.every_epochs, macs) for macs in rounds[:-1]]
    return [*own, *expected_trainings(step.fine_tune, rounds[1:], done=0, rounds=len(own))]


def _pruning_images(network: Network, data: Dataset) -> Iterator[Tensor]:
    """The pruning split as model input, not augmented, in order."""
    device = next(network.parameters()).device
    for images, _ in data.batches("pruning", inference_batch(network), device=device):
        yield images_channels_last(images, data.options.layout)


def _described(groups: Sequence[ChannelGroup], channel_multiple: int) -> dict[str, Any]:
    return {
        group.name: {
            "width": group.width,
            "least": least_of(group, channel_multiple),
            "layers": [producer.layer for producer in group.producers],
        }
        for group in groups
    }


# --- what is remembered between rounds --------------------------------------------------------------------------------


@dataclass
class _Run(PruningRun):
    """`carried`: removals that a group is still owed, see `select`."""

    carried: dict[str, Fraction] = field(default_factory=dict)

    @classmethod
    def read(cls, state: State) -> dict[str, Any]:
        return {
            **super().read(state),
            "carried": {name: Fraction(text) for name, text in state["carried"].items()},
        }

    def values(self) -> dict[str, Any]:
        return {**super().values(), "carried": {name: str(value) for name, value in self.carried.items()}}
