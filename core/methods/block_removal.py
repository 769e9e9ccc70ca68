"""Residual blocks are taken out one after the other, those with the lowest saliency first.

Velici 2022, chapters 3 and 4. Each round scores the blocks that are left (`saliency`, `rescore_every`), removes the
lowest, and fine-tunes by the policy; rounds go on until the target holds. What is left in a block's place is its
shortcut: y = shortcut(x); a block that changes shapes keeps the convolution of its shortcut (section 3.1.1).

With `fade` a block's residual path is multiplied by a factor that falls to zero before it goes (`core.blocks.fading`,
section 4.2); with `soft` blocks are zeroed and trained on before they all go in one round (`core.blocks.soft`, 4.5).

Differs from the thesis
- Blocks are found in any network (`core.graph.blocks`): residual blocks that hold no other. Its ResNets are one case.
- Every removal is proved exact, and BatchNorm statistics are measured afresh after it.
- The target may be of parameters, MACs, filters, size or latency as well; a round takes no more than it needs.
- `equalise`: a group with nothing left is passed over, and the others go on in turn.
- `replace`: neighbours are of one group, and the first of them stays, so that shapes are right; `with: zero` zeroes
  only the layer that makes its residual path 0, so that it can learn (`core.graph.replacing`).
- `saliency: random` with the numbers of another run is the control.

Refuses
- a network without a residual block that may go (`NothingRemoved`, with reasons);
- a target that even the network without any of them misses (`TargetUnreachable`). Both before any training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from core.block_report import BlockHistory
from core.block_settings import BlockRemoval, Fade, Racing, Replace, Saliency, Soft
from core.blocks.alone import alone_epochs, alone_trainings, train_alone
from core.blocks.analysis import analysed
from core.blocks.candidates import Candidate, Candidates, lowest
from core.blocks.expected import own_trainings
from core.blocks.fading import Fading
from core.blocks.foreseen import planned_rounds, require_reachable
from core.blocks.history import note_fine_tuning, note_round
from core.blocks.removal import no_more_than_needed, remove
from core.blocks.scoring_work import Scorings, ScoringWork
from core.blocks.soft import cut_short, train_softly
from core.data.datasets import Dataset
from core.events import Emit
from core.graph.counts import count
from core.graph.network import Network
from core.graph.plans import replay
from core.guard import Guard
from core.outcome import Outcome
from core.pruning_run import PruningRun
from core.report import Cost
from core.saliency.block_scores import SALIENCIES, Scoring
from core.state import State
from core.targets import Goal
from core.training.memory_format import to_channels_last
from core.training.policies import FineTuning, expected_trainings
from core.training.port import TrainerPort, add_costs
from core.training.rewinding import Origins
from core.training.vicinity import units_of
from core.training_settings import FineTune

PROOF_IMAGES = 4
"""Real inputs that each removal is proved on, in float64."""
_ALL_AT_ONCE = 1_000_000
"""More blocks than any network has."""


def block_removal(
    network: Network,
    data: Dataset,
    *,
    saliency: Saliency,
    rescore_every: int | None,
    scores: str,
    batches: int | None,
    racing: Racing | None,
    cache_mib: int,
    blocks_per_round: int,
    equalise: bool,
    fade: Fade | None,
    soft: Soft | None,
    replace: Replace | None,
    target: Goal,
    fine_tune: FineTune,
    trainer: TrainerPort,
    emit: Emit,
    state: State,
    step: int = 0,
    seed: int = 0,
    like: Sequence[Mapping[str, int]] | None = None,
    initial: Callable[[], Network] | None = None,
) -> Outcome:
    """Removes blocks of `network` in rounds until `target` holds. See the top of this file.

    Args:
        data: gives the images that blocks are scored on, and those that removals are proved on.
        state: this step's own scope: empty, or what an earlier attempt saved. A run that goes on from it ends in the
            same bits as an undisturbed one.
        step: index of the step in the recipe, for the names of events.
        seed: of random scores and new weights, and of noise on weights.
        like: for the control `random`: how many candidates of which group (or "blocks") go in each round, in place of
            the target.
        initial: for `rewind`, see `core.training.rewinding.Origins`.
        The others are the recipe's (`core.block_settings.BlockRemoval`).

    Raises `NothingRemoved`, `TargetUnreachable`; `ExactnessFailed` if a removal is not exact; `TrainingDiverged`;
    with `soft` `CutRefused` if a block cannot be zeroed.
    """
    label = f"prune/step/{step}"
    run = _Run.of(state)
    given = network
    network = replay(given, run.plan) if run.plan else given.clone()  # what was given is left as it is
    if "weights" in state:
        network.load_state_dict(state["weights"])
    to_channels_last(network)  # as a training leaves it: another layout, other bits in what is measured of it
    trainer.resumed(run.cost)
    known = Candidates(given, 1 if replace is None else replace.neighbours)
    alone = alone_epochs(replace)

    def group_now(network: Network) -> str | None:
        """The one that this round's blocks are of; None: all."""
        if like is not None:
            return next((name for name in like[run.round] if name in known.groups), None)
        return known.turn(network, next(iter(run.removed[-1]), None) if run.removed else None) if equalise else None

    def is_done(network: Network) -> bool:
        if like is not None:
            return run.round >= len(like) or not known.of(network, group_now(network))
        return target.met(target.present(network, run.latency)) or not known.of(network)

    def score(network: Network, candidates: Sequence[Candidate], round: int) -> dict[str, float]:
        return SALIENCIES[saliency](
            Scoring(
                network=network, candidates=candidates, data=data, trainer=trainer, round=round, seed=seed,
                split="pruning" if scores == "pruning_split" else "validation", batches=batches, emit=emit, step=step,
                cache_mib=cache_mib, racing=racing,
                goes=len(candidates) if soft else blocks_per_round * (rescore_every or len(candidates)),
            )
        )  # fmt: skip

    def choose(network: Network, candidates: Sequence[Candidate], scores: Mapping[str, float]) -> list[Candidate]:
        number = len(candidates) if soft else blocks_per_round
        chosen = lowest(scores, candidates, number if like is None else sum(like[run.round].values()))
        if like is None and target.target.latency is None:
            chosen = no_more_than_needed(network, chosen, target)
        return chosen

    def proof_images() -> Tensor:
        """Real inputs (B, ...)."""
        return next(iter(data.batches("validation", PROOF_IMAGES, device=next(network.parameters()).device)))[0]

    def forget() -> None:
        """A training's own checkpoint has newer weights."""
        state.drop("weights")

    if "front" not in state:  # a fresh start
        present = target.present(network, None if like is not None else target.measured_latency(network))
        if target.met(present) if like is None else not like:
            reason = "the target is met already"
            emit(f"{label}/skipped", reason=reason, targets=[result.model_dump() for result in target.results(present)])
            return Outcome(network, [], [], Cost(), [], skipped=reason, latency=present.latency)
        if like is None:
            require_reachable(network, known, target, step=step)
            trainer.budget.require_room_for(alone, fine_tuned=fine_tune.epochs > 0, step=step)
        run.visit(step, present, trainer.evaluate(network, "validation").accuracy)
        run.history = BlockHistory(
            saliency=saliency, blocks=known.all, params=present.counts.params, accuracy=run.accuracy
        )
        state.put(**run.values())

    if like is None:
        rounds = planned_rounds(
            network, known, target, per_round=_ALL_AT_ONCE if soft else blocks_per_round, equalise=equalise
        )
    else:
        rounds = [count(network).macs] * (len(like) - run.round + 1)
    tuning = FineTuning(
        fine_tune,
        trainer=trainer,
        state=state.scope("fine_tune"),
        step=step,
        seed=seed,
        rounds=run.round + len(rounds) - 1,
        round_epochs=alone or (fade.epochs if fade and not fade.lazy else 0),
        tuning_epochs=fade.epochs if fade and fade.lazy else 0,
        accuracy=run.front[0].validation_accuracy or 0.0,
        origins=Origins(given, initial),
        units=units_of(given),
    )
    work = ScoringWork.of(data, trainer.training, saliency=saliency, scores=scores, batches=batches)
    scorings = Scorings.of(
        work, rescore_every, groups=len(known.groups) if equalise else None, gone=blocks_per_round,
        epochs=None if soft is None else soft.epochs,
    )  # fmt: skip
    guard = Guard(target, state=state.scope("guard"))
    fading = None
    if fade is not None:
        fading = Fading(
            fade, fine_tune, given=given, known=known, trainer=trainer, emit=emit, state=state.scope("fade"),
            step=step, seed=seed,
        )  # fmt: skip

    def expect(rounds: Sequence[int]) -> list[tuple[int, int]]:
        """Trainings of rounds to come, of which each begins with a network of so many MACs; the last ends with one."""
        own = own_trainings(
            fade, soft, fine_tune, rounds, done=run.round, rounds=tuning.rounds,
            restored=count(network).macs if tuning.due or not fading else fading.restored_macs,
        )  # fmt: skip
        return [*own, *alone_trainings(replace, rounds[1:]), *tuning.expect(rounds[1:], done=run.round)]

    to_come = sum(epochs for epochs, _ in expect(rounds))
    emit(f"{label}/plan", rounds_done=run.round, rounds_to_come=len(rounds) - 1, epochs=trainer.budget.within(to_come),
         groups=known.groups, frozen=known.frozen)  # fmt: skip

    while not state.get("stopped"):
        met = is_done(network)
        if met and not state.get("ended"):
            tuning.after(run.round, run.accuracy, last=True)
            state.put(ended=True)
        rounds = rounds if met or len(rounds) > 1 else [count(network).macs, rounds[-1]]  # the estimate was short
        due = [(tuning.due.epochs, count(network).macs)] if tuning.due else []
        if due and fade and fading and fading.waits:
            due.insert(0, (fade.epochs, fading.restored_macs))
        trainer.expect(f"step/{step}", due if met else [*due, *expect(rounds)])
        trainer.expect_scoring(
            f"step/{step}",
            [] if met else scorings.to_come(
                rounds[:-1], candidates=len(known.of(network)), done=run.round, scored_at=run.scored_at
            ),
        )  # fmt: skip
        if tuning.due is not None:
            whole = tuning.due.whole
            if fading and fading.waits:
                network = fading.before_tuning(run, proof_images(), tuning.due.epochs, forget)
                guard.look(network, len(run.plan), run.accuracy)
                state.put(**run.values())
            fit = tuning.run(network, last=met, on_epoch=lambda record: forget(), plan=run.plan)
            run.trained(fit)
            if fading:
                fading.after_tuning(network, run)
            note_fine_tuning(run.history, fit, whole=whole)
            guard.look(network, len(run.plan), run.accuracy)
            stopped = whole and bool(run.plan) and not guard.admits(run.accuracy)
            state.save(**run.values(), weights=network.state_dict(), stopped=stopped)
            if stopped:
                break
        if met:
            break
        rounds = rounds[1:]

        group = group_now(network)
        candidates = known.of(network, group)
        name = f"{label}/round/{run.round + 1}"
        if soft is not None:
            zeroed_by = train_softly(
                network, soft, fine_tune, known=known, score=score, choose=choose, run=run, trainer=trainer, emit=emit,
                state=state.scope("soft"), label=f"{name}/soft", forget=forget,
            )  # fmt: skip
            if zeroed_by is not None:
                run.scored(zeroed_by)
        # scores that later rounds go by, too, are of one network, whichever group's turn it is
        asked = candidates if rescore_every == 1 else known.of(network)
        if run.needs_scores(rescore_every, candidates):
            run.scored(score(network, asked, run.round))
            state.put(**run.values())
        standing = candidates if group is None else known.of(network)
        chosen = choose(network, candidates, run.scores)
        before = run.accuracy
        if fading is not None:
            state.put(**run.values())  # a training that is gone on with is of the same blocks
            fading.before_removal(network, chosen, run, forget)
        removed = remove(network, chosen, proof_images(), name=name, replace=replace, seed=seed)
        network = removed.network
        trainer.recalibrate(network, label=f"{name}/recalibrate")
        if alone:
            run.alone += trainer.budget.within(alone)
            fit = train_alone(
                network, chosen, epochs=alone, fine_tune=fine_tune, trainer=trainer, state=state.scope("new_block"),
                label=f"fine_tune/{step}/round/{run.round + 1}", plan=[*run.plan, *removed.entries],
            )  # fmt: skip
            run.cost = add_costs(run.cost, fit.cost)
            state.drop("new_block")
        run.plan += removed.entries
        run.checks += removed.checks
        accuracy = trainer.evaluate(network, "validation").accuracy
        run.over({"blocks" if group is None else group: len(chosen)})
        present = target.present(network, None if like is not None else target.measured_latency(network))
        run.visit(step, present, accuracy)
        guard.look(network, len(run.plan), accuracy)
        ended = is_done(network)
        tuned = tuning.after(run.round, accuracy, last=ended, wound=removed.wound)
        counts = present.counts
        emit(f"{name}/select", saliency=saliency, rescored=run.scored_at == run.round - 1, scores=run.scores,
             removed=[candidate.name for candidate in chosen], group=group, left=known.left(network),
             blocks=counts.blocks, params=counts.params, macs=counts.macs, filters=counts.filters,
             file_bytes=present.file_bytes, latency=present.latency.model_dump() if present.latency else None,
             accuracy_before=before, validation_accuracy=accuracy,
             exactness=max(check.error for check in removed.checks), **tuned)  # fmt: skip
        ranking = note_round(
            run.history, standing, round=run.round, scores=run.scores, scored_after=run.scored_at, group=group,
            removed=[candidate.name for candidate in chosen], left=known.left(network), params=counts.params,
            accuracy_before=before, accuracy_cut=accuracy,
        )  # fmt: skip
        emit(f"{name}/ranking", **ranking)
        state.save(**run.values(), weights=network.state_dict(), ended=ended)

    warnings = [*tuning.never_reached(run.round), *tuning.cut_short(), *(fading.cut_short() if fading else ())]
    if run.alone < alone * run.round:
        wanted = alone * run.round
        warnings.append(f"new blocks of step {step} had {run.alone} of {wanted} epochs alone: {trainer.budget.told}")
    if like is not None and run.round < len(like) and not state.get("stopped"):
        warnings.append(f"step {step} ended after {run.round} of {len(like)} rounds: no such blocks are left")
    if soft is not None:
        warnings += cut_short(soft, trainer=trainer, state=state.scope("soft"), step=step)
    left_with = run.accuracy
    if not guard.admits(run.accuracy):
        network, left_with, warning = run.back_inside(guard, given, step=step, label=label, emit=emit)
        warnings.append(warning)
    elif like is None and not target.met(target.present(network, run.latency)):
        warnings.append(f"step {step} ended without a block that may go, and its target was not reached")
    analysis = analysed(run.history, step=step, run="random" if like is not None else "pruned",
                        rounds_kept=len(run.ends))  # fmt: skip
    emit(f"{label}/analysis", **analysis.model_dump())
    return Outcome(
        network, run.plan, run.front, run.cost, run.checks, warnings=warnings, accuracy=left_with, removed=run.removed,
        latency=run.kept_latency, blocks=run.history,
    )  # fmt: skip


def planned_trainings(network: Network, step: BlockRemoval, *, target: Goal) -> list[tuple[int, int]]:
    """(epochs, MACs) of each training that `step` is expected to take on `network`."""
    known = Candidates(network, 1 if step.replace is None else step.replace.neighbours)
    rounds = planned_rounds(
        network, known, target, per_round=_ALL_AT_ONCE if step.soft else step.blocks_per_round, equalise=step.equalise
    )
    own = own_trainings(
        step.fade, step.soft, step.fine_tune, rounds, done=0, rounds=len(rounds) - 1, restored=rounds[0]
    )
    own += alone_trainings(step.replace, rounds[1:])
    return [*own, *expected_trainings(step.fine_tune, rounds[1:], done=0, rounds=len(rounds) - 1)]


@dataclass
class _Run(PruningRun):
    """`scores`: of the last scoring, by candidate; `scored_at`: rounds done then. `history`: of all rounds. `alone`:
    epochs that new blocks were given alone."""

    scores: dict[str, float] = field(default_factory=dict)
    scored_at: int | None = None
    history: BlockHistory = field(default_factory=BlockHistory)
    alone: int = 0

    @classmethod
    def read(cls, state: State) -> dict[str, Any]:
        own = {"scores": dict(state["scores"]), "scored_at": state["scored_at"], "alone": state["alone"]}
        return {**super().read(state), **own, "history": BlockHistory(**state["history"])}

    def values(self) -> dict[str, Any]:
        own = {"scores": self.scores, "scored_at": self.scored_at, "alone": self.alone}
        return {**super().values(), **own, "history": self.history.model_dump()}

    def needs_scores(self, every: int | None, candidates: Sequence[Candidate]) -> bool:
        """Whether it is time to score again; so it is where a candidate has no score yet."""
        if self.scored_at is None or any(candidate.name not in self.scores for candidate in candidates):
            return True
        return every is not None and self.round - self.scored_at >= every

    def scored(self, found: Mapping[str, float]) -> None:
        self.scores = {**self.scores, **found} if self.scored_at == self.round else dict(found)
        self.scored_at = self.round
