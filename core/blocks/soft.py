"""Soft block pruning: blocks are zeroed again and again and go on learning, before any of them is removed.

Velici 2022, end of section 4.5, leaves it as future work; He et al. 2018 do it with filters. Before each of S epochs
the blocks with the lowest scores, as many as the target needs, are zeroed: their residual paths give exactly zero, and
can still learn (`core.graph.silencing`: one layer of each is set to zero; were all of its weights zero, none of them
would have a gradient ever again). Then everything is trained for an epoch. A block that has become worth keeping has a
higher score by the next one, and another is zeroed in its place. Those zeroed last are removed.

Differs from He et al.
- Blocks, by any of the saliencies, where there it is filters, by their norm; as many as the target needs, where there
  it is a rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from core.block_settings import Soft
from core.blocks.candidates import Candidate, Candidates
from core.events import Emit
from core.graph.network import Network
from core.graph.silencing import silence, silencing_layer
from core.pruning_run import PruningRun
from core.state import State
from core.training.port import Moment, TrainerPort
from core.training_settings import FineTune

Score = Callable[[Network, Sequence[Candidate], int], dict[str, float]]
"""Of a network's candidates, by their names; the last is how many epochs are done."""
Choose = Callable[[Network, Sequence[Candidate], Mapping[str, float]], list[Candidate]]
"""As many of the candidates with the lowest scores as the target needs."""


def train_softly(
    network: Network,
    soft: Soft,
    fine_tune: FineTune,
    *,
    known: Candidates,
    score: Score,
    choose: Choose,
    run: PruningRun,
    trainer: TrainerPort,
    emit: Emit,
    state: State,
    label: str,
    forget: Callable[[], None],
) -> dict[str, float] | None:
    """Trains `network` in place, books that in `run`, and returns the scores by which blocks were zeroed last; None
    where there was no epoch.

    Args:
        fine_tune: whose settings and schedule are those of this training; an epoch of a budget is left for it.
        state: its own scope; an earlier attempt's training is gone on with.
        label: of the training, `prune/step/<i>/round/1/soft`. Emits `<label>/zeroed/<epoch>`.
        forget: takes from the method's state what the training's own checkpoint has newer.

    Raises `CutRefused` where a block cannot be zeroed, before it trains.
    """
    layers = {each.name: silencing_layer(network, each.blocks[0]) for each in known.of(network)}
    epochs = trainer.budget.leaving(int(fine_tune.epochs > 0), soft.epochs)
    fit = trainer.fit(
        network,
        training=fine_tune.resolved(trainer.training).model_copy(update={"early_stop": 0}),
        epochs=epochs,
        label=label,
        state=state.scope("fit"),
        before=partial(_zero, network, layers, known, score, choose, emit, state, label),
        on_epoch=lambda record: forget(),
        restore_best=False,
        plan=run.plan,
    )
    run.spent(fit.cost)
    scores: dict[str, float] | None = state.get("scores")
    if scores is None and epochs:  # a dry run, in which there was no epoch to score in front of
        scores = score(network, known.of(network), epochs - 1)
    state.drop("fit", "scores")
    state.put(had=epochs)
    return scores


def cut_short(soft: Soft, *, trainer: TrainerPort, state: State, step: int) -> list[str]:
    """A warning where a budget of epochs has left step `step` fewer than S; `state` as in `train_softly`."""
    had = state.get("had", soft.epochs)
    if had == soft.epochs:
        return []
    return [f"the soft pruning of step {step} had {had} of {soft.epochs} epochs: {trainer.budget.told}"]


def _zero(
    network: Network,
    layers: Mapping[str, str],
    known: Candidates,
    score: Score,
    choose: Choose,
    emit: Emit,
    state: State,
    label: str,
    moment: Moment,
) -> None:
    """In front of an epoch: scores the network as it is, and zeroes the blocks with the lowest scores."""
    if moment.what != "epoch":
        return
    candidates = known.of(network)
    scores = score(network, candidates, moment.epoch - 1)
    chosen = choose(network, candidates, scores)
    silence(network, [layers[each.name] for each in chosen])
    state.put(scores=scores)
    emit(f"{label}/zeroed/{moment.epoch}", scores=scores, zeroed=[each.name for each in chosen])
