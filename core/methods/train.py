"""Training without removing anything: before pruning, between steps, or after them all."""

from __future__ import annotations

from typing import Any

from core.data.datasets import Dataset
from core.events import Emit
from core.graph.counts import count
from core.graph.network import Network
from core.kept import Keep
from core.outcome import Outcome
from core.report import Cost, FrontPoint, KeptCheckpoint
from core.state import State
from core.training.port import TrainerPort
from core.training_settings import Overrides


def train(
    network: Network,
    data: Dataset,
    *,
    epochs: int,
    settings: Overrides,
    trainer: TrainerPort,
    emit: Emit,
    state: State,
    step: int = 0,
    checkpoint_every: int | None = None,
    keep: Keep | None = None,
) -> Outcome:
    """Trains `network` for `epochs` epochs; what was given is left as it is. The plan is empty.

    Args:
        settings: what differs from the recipe's `training`.
        state: this step's own scope, see `core.methods.filter_norm`.
        step: index of the step in the recipe; events are `prune/step/<step>/epoch/<n>`.
        checkpoint_every: after every so many epochs, and after the last, `keep` is given the network as it is then.

    Raises `TrainingDiverged`, and what `keep` raises.
    """
    label = f"prune/step/{step}"
    network = network.clone()
    given = trainer.budget.within(epochs)
    if given == 0:
        reason = f"no epoch is left: {trainer.budget.told}" if epochs else "it has no epochs"
        emit(f"{label}/skipped", reason=reason)
        return Outcome(network, [], [], Cost(), [], skipped=reason)
    counts = count(network)
    trainer.expect(f"step/{step}", [(given, counts.macs)])
    checkpoints = [KeptCheckpoint(**kept) for kept in state.get("checkpoints", ())]

    def look(record: dict[str, Any]) -> None:
        epoch = record["epoch"]
        if keep is not None and checkpoint_every and (epoch % checkpoint_every == 0 or record.get("last")):
            checkpoints.append(keep(network, step=step, epoch=epoch, accuracy=record["validation_accuracy"]))
            state.put(checkpoints=[kept.model_dump() for kept in checkpoints])

    fit = trainer.fit(
        network,
        training=settings.resolved(trainer.training),
        epochs=given,
        label=label,
        state=state.scope("fit"),
        on_epoch=look,
    )
    accuracy = fit.score.accuracy if fit.score else None
    point = FrontPoint(step=step, round=0, params=counts.params, macs=counts.macs, filters=counts.filters,
                       blocks=counts.blocks, validation_accuracy=accuracy)  # fmt: skip
    warnings = [f"step {step} had {given} of {epochs} epochs: {trainer.budget.told}"] if given < epochs else []
    return Outcome(network, [], [point], fit.cost, [], warnings=warnings, accuracy=accuracy, checkpoints=checkpoints)
