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
- The last round takes no more than the target needs: chunks of weakest units, in order, until it holds.
- The paper stops after 50 epochs, this at the target; the paper has no fine-tuning after the last pass.
- Every cut is proved exact, and BatchNorm statistics are measured afresh after it. Each round's training starts a new
  optimizer and goes through the recipe's schedule once.

Refuses
- a network in which no convolution may be cut, or none by a whole multiple (`NothingRemoved`, with reasons);
- a target that even the least widths miss (`TargetUnreachable`). Both before any training.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any, Literal

from core.data.datasets import Dataset
from core.errors import Fault, NothingRemoved, TargetUnreachable
from core.events import Emit
from core.graph.counts import Counts, count
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.groups import ChannelGroup, channel_groups
from core.graph.network import Network
from core.graph.operators.convolution import CONVOLUTIONS
from core.graph.plans import replay
from core.outcome import Outcome
from core.recipe import FilterNorm
from core.report import Check, Cost, FrontPoint
from core.saliency.filter_norms import FilterNorms
from core.state import State
from core.targets import Goal
from core.training.port import FitResult, TrainerPort, add_costs
from core.training_settings import FineTune
from core.widths import Chunk, chunks, least_width, removal_of, share_of, simulated_widths, take, unit_multiple

PROOF_IMAGES = 4
"""Real inputs that each cut is proved on, in float64."""

Scope = Literal["local", "global"]


def filter_norm(
    network: Network,
    data: Dataset,
    *,
    signal: Literal["weights", "activations"],
    ratio_per_round: float,
    every_epochs: int,
    scope: Scope,
    normalize: Literal["none", "max"],
    target: Goal,
    fine_tune: FineTune,
    channel_multiple: int,
    trainer: TrainerPort,
    emit: Emit,
    state: State,
    step: int = 0,
) -> Outcome:
    """Prunes `network` in rounds until `target` holds, then fine-tunes. See the top of this file.

    Args:
        data: gives the images that cuts are proved on.
        state: this step's own scope: empty, or what an earlier attempt saved. A run that goes on from it ends in the
            same bits as an undisturbed one.
        step: index of the step in the recipe, for the names of events.
        The others are the recipe's (`core.recipe.FilterNorm`).

    Raises `NothingRemoved`, `TargetUnreachable`; `ExactnessFailed` if a cut is not exact; `TrainingDiverged`.
    """
    label = f"prune/step/{step}"
    run = _Run.of(state)
    network = replay(network, run.plan) if run.plan else network.clone()  # what was given is left as it is
    if "weights" in state:
        network.load_state_dict(state["weights"])
    trainer.resumed(run.cost)

    if "front" not in state:  # a fresh start
        if target.met(count(network)):
            reason = "the target is met already"
            results = [result.model_dump() for result in target.results(count(network))]
            emit(f"{label}/skipped", reason=reason, targets=results)
            return Outcome(network, [], [], Cost(), [], skipped=reason)
        require_reachable(network, target, channel_multiple=channel_multiple, step=step)
        run.visit(step, count(network), trainer.evaluate(network, "validation").accuracy)
        state.put(**run.values())

    rounds = planned_rounds(network, target, ratio=ratio_per_round, channel_multiple=channel_multiple)
    emit(f"{label}/plan", rounds_done=run.round, rounds_to_come=len(rounds) - 1,
         epochs=(len(rounds) - 1) * every_epochs + fine_tune.epochs,
         groups=_described(filter_groups(network), channel_multiple))  # fmt: skip

    while not target.met(count(network)):
        groups = filter_groups(network)
        rounds = rounds if len(rounds) > 1 else [count(network).macs, rounds[-1]]  # the estimate was short: one more
        trainer.expect(
            f"step/{step}", [*((every_epochs, macs) for macs in rounds[:-1]), (fine_tune.epochs, rounds[-1])]
        )
        rounds = rounds[1:]

        # algorithm 3, lines 2 to 4: train, accumulate
        layers = dict.fromkeys(producer.layer for group in groups for producer in group.producers)
        norms = FilterNorms(layers, signal=signal, normalize=normalize)
        if "norms" in state:
            norms.load(state["norms"])

        def remember(record: Mapping[str, Any], norms: FilterNorms = norms) -> None:
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
                on_batch=norms.add,
                on_epoch=remember,
                restore_best=False,
            )
        run.trained(fit)

        # lines 5 and 6: the pruning pass
        scores = {group.name: norms.scores(group) for group in groups}
        chosen, carried = select(
            groups, scores, scope=scope, ratio=ratio_per_round, channel_multiple=channel_multiple, carried=run.carried
        )
        removal: dict[str, list[int]] = {}
        check = None
        accuracy = fit.score.accuracy if fit.score else None
        if chosen:
            removal, smaller, entry = cut_no_more_than_needed(network, chosen, target)
            device = next(network.parameters()).device
            images, _ = next(iter(data.batches("validation", PROOF_IMAGES, device=device)))
            check = check_cut(network, removal, smaller, images).model_copy(update={"name": f"exactness/{name}"})
            network = smaller
            trainer.recalibrate(network, label=f"{name}/recalibrate")
            accuracy = trainer.evaluate(network, "validation").accuracy
            run.plan.append(entry)
            run.checks.append(check)
        run.round += 1
        run.carried = carried
        counts = count(network)
        if removal:
            run.visit(step, counts, accuracy)
        emit(f"{name}/select", signal=signal, scope=scope, scores=scores, removed=removal,
             layers=run.plan[-1]["layers"] if removal else {},
             widths={group.name: group.width - len(removal.get(group.name, [])) for group in groups},
             carried={key: float(value) for key, value in carried.items()},
             params=counts.params, macs=counts.macs, filters=counts.filters, validation_accuracy=accuracy,
             exactness=check.error if check else None)  # fmt: skip

        # lines 7 and 8: reset
        state.drop("fit", "norms")
        state.save(**run.values(), weights=network.state_dict())

    trainer.expect(f"step/{step}", [(fine_tune.epochs, count(network).macs)])
    fit = trainer.fit(
        network,
        training=fine_tune.resolved(trainer.training),
        epochs=fine_tune.epochs,
        label=f"fine_tune/{step}",
        state=state.scope("fit"),
        on_epoch=lambda record: state.drop("weights"),
    )
    run.trained(fit)
    return Outcome(network, run.plan, run.front, run.cost, run.checks)


# --- which filters ----------------------------------------------------------------------------------------------------


def filter_groups(network: Network) -> list[ChannelGroup]:
    """The groups that may be cut and hold a convolution's filters. Groups of linear layers alone are left alone."""
    layers = network.layers()
    return [
        group
        for group in channel_groups(network).groups
        if group.cuttable and any(isinstance(layers[producer.layer], CONVOLUTIONS) for producer in group.producers)
    ]


def select(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Sequence[float]],
    *,
    scope: Scope,
    ratio: float,
    channel_multiple: int,
    carried: Mapping[str, Fraction],
) -> tuple[list[Chunk], dict[str, Fraction]]:
    """Algorithm 2, PruneAllConv2DLayers: what goes in this round, weakest first, and what is left over for the next.

    `scores` and, for `scope: local`, `carried` are per group name; for `scope: global`, `carried` has the one key "".
    Across groups, local scope orders chunks by their score relative to their group's mean (raw norms of different
    layers are not comparable, and it does not compare them otherwise); global scope by the score itself, as it ranks.
    """
    found = {
        group.name: chunks(group.name, scores[group.name], unit_multiple(group, channel_multiple), group.always_kept)
        for group in groups
    }
    if scope == "global":
        pool = sorted((chunk for own in found.values() for chunk in own), key=lambda chunk: chunk.score)
        owed = carried.get("", Fraction(0)) + share_of(sum(group.width for group in groups), ratio)
        taken, left = take(pool, owed)
        return taken, {"": left}
    relative: list[tuple[float, Chunk]] = []
    left_over = {}
    for group in groups:
        owed = carried.get(group.name, Fraction(0)) + share_of(group.width, ratio)
        taken, left_over[group.name] = take(found[group.name], owed)
        mean = sum(scores[group.name]) / group.width
        relative += [(chunk.score / mean if mean > 0 else 0.0, chunk) for chunk in taken]
    return [chunk for _, chunk in sorted(relative, key=lambda item: item[0])], left_over


def cut_no_more_than_needed(
    network: Network, chosen: list[Chunk], target: Goal
) -> tuple[dict[str, list[int]], Network, dict[str, Any]]:
    """Removes the shortest beginning of `chosen` with which `target` holds; all of it where it does not hold even then.

    Returns what was removed, the smaller network and the plan entry.
    """

    def met(number: int) -> bool:
        return target.met(count(cut(network, removal_of(chosen[:number]))[0]))

    smaller, entry = cut(network, removal_of(chosen))
    if len(chosen) > 1 and target.met(count(smaller)):
        fewer = 1 + bisect_left(range(1, len(chosen)), True, key=met)
        if fewer < len(chosen):
            chosen = chosen[:fewer]
            smaller, entry = cut(network, removal_of(chosen))
    return removal_of(chosen), smaller, entry


# --- before any training ----------------------------------------------------------------------------------------------


def require_reachable(network: Network, target: Goal, *, channel_multiple: int, step: int) -> None:
    """Raises `NothingRemoved` where nothing may go, `TargetUnreachable` where all that may go is not enough."""
    groups = filter_groups(network)
    frozen = channel_groups(network).frozen
    reasons = "; ".join(f"{', '.join(item.layers)} ({item.reason}: {item.operator} {item.node})" for item in frozen)
    if not groups:
        raise NothingRemoved(f"no convolution of this network may be cut. Frozen: {reasons or 'nothing'}")
    widths = {group.name: _least(group, channel_multiple) for group in groups}
    removal = {group.name: list(range(group.width - widths[group.name])) for group in groups}
    removal = {name: units for name, units in removal.items() if units}
    if not removal:
        message = f"no layer is wide enough to lose channels and keep a multiple of {channel_multiple}"
        described = ", ".join(f"{group.name} has {group.width}" for group in groups)
        fault = Fault("/export/channel_multiple", f"{message}: {described}", "a smaller channel_multiple")
        raise NothingRemoved(message, faults=[fault])
    missed = [result for result in target.results(count(cut(network, removal)[0])) if not result.met]
    if not missed:
        return
    faults = [
        Fault(f"/steps/{step}/target/{result.name}", f"{result.reached:.4g} is the least that can remain",
              target.least(result))
        for result in missed
    ]  # fmt: skip
    least = ", ".join(f"{result.name} {result.reached:.4g} (asked: {result.target:g})" for result in missed)
    raise TargetUnreachable(
        f"with every layer at its least width (channel_multiple {channel_multiple}) there remain {least}. "
        f"Frozen: {reasons or 'nothing'}",
        faults=faults,
    )


def planned_rounds(network: Network, target: Goal, *, ratio: float, channel_multiple: int) -> list[int]:
    """MACs at the start of each round that is expected until `target` holds (or widths are least), and after the last.

    Widths are simulated with local scope (which the scores do not enter); the last round, which takes only what the
    target needs, is taken to go half of its way; counts in between are on a straight line. Only the progress depends
    on it.
    """
    groups = filter_groups(network)
    widths = {group.name: group.width for group in groups}
    multiples = {group.name: (unit_multiple(group, channel_multiple), group.always_kept) for group in groups}

    @cache
    def after(rounds: int) -> Counts:
        left = simulated_widths(widths, multiples, ratio, rounds)
        removal = {name: list(range(widths[name] - left[name])) for name in left if left[name] < widths[name]}
        return count(cut(network, removal)[0]) if removal else count(network)

    if target.met(count(network)):
        return [count(network).macs]
    most, least = 1, {group.name: _least(group, channel_multiple) for group in groups}
    while not target.met(after(most)) and simulated_widths(widths, multiples, ratio, most) != least:
        most *= 2
    rounds = 1 + bisect_left(range(1, most), True, key=lambda number: target.met(after(number)))
    first, last = count(network).macs, (after(rounds - 1).macs + after(rounds).macs) // 2
    return [first + (last - first) * number // rounds for number in range(rounds + 1)]


def planned_trainings(
    network: Network, step: FilterNorm, *, target: Goal, channel_multiple: int
) -> list[tuple[int, int]]:
    """(epochs, MACs) of each training that `step` is expected to take on `network`."""
    *rounds, last = planned_rounds(network, target, ratio=step.ratio_per_round, channel_multiple=channel_multiple)
    return [*((step.every_epochs, macs) for macs in rounds), *([(step.fine_tune.epochs, last)] if rounds else [])]


def _least(group: ChannelGroup, channel_multiple: int) -> int:
    return least_width(group.width, unit_multiple(group, channel_multiple), group.always_kept)


def _described(groups: Sequence[ChannelGroup], channel_multiple: int) -> dict[str, Any]:
    return {
        group.name: {
            "width": group.width,
            "least": _least(group, channel_multiple),
            "layers": [producer.layer for producer in group.producers],
        }
        for group in groups
    }


# --- what is remembered between rounds --------------------------------------------------------------------------------


@dataclass
class _Run:
    """Rounds done and what they left. `carried`: removals that a group is still owed, see `select`."""

    round: int = 0
    plan: list[dict[str, Any]] = field(default_factory=list)
    carried: dict[str, Fraction] = field(default_factory=dict)
    front: list[FrontPoint] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    @classmethod
    def of(cls, state: State) -> _Run:
        if "front" not in state:
            return cls()
        return cls(
            round=state["round"],
            plan=list(state["plan"]),
            carried={name: Fraction(text) for name, text in state["carried"].items()},
            front=[FrontPoint(**point) for point in state["front"]],
            checks=[Check(**check) for check in state["checks"]],
            cost=Cost(**state["cost"]),
        )

    def values(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "plan": self.plan,
            "carried": {name: str(value) for name, value in self.carried.items()},
            "front": [point.model_dump() for point in self.front],
            "checks": [check.model_dump() for check in self.checks],
            "cost": self.cost.model_dump(),
        }

    def visit(self, step: int, counts: Counts, accuracy: float | None) -> None:
        """Notes a network. Its accuracy is that of the moment; training it replaces it (`trained`)."""
        self.front.append(
            FrontPoint(step=step, round=self.round, params=counts.params, macs=counts.macs, filters=counts.filters,
                       validation_accuracy=accuracy)
        )  # fmt: skip

    def trained(self, fit: FitResult) -> None:
        """Books a training of the network visited last."""
        self.cost = add_costs(self.cost, fit.cost)
        if fit.score is not None and self.round > 0:  # the original's point stays what it was given as
            self.front[-1] = self.front[-1].model_copy(update={"validation_accuracy": fit.score.accuracy})
