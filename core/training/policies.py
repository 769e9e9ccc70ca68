"""When a method that goes in rounds fine-tunes, and for how long (`core.training_settings.Policy`).

Velici 2022, section 3.5: loops spread evenly, at every k-th step, at steps that are named, or past a threshold on the
accuracy lost since the last one; few epochs at every step with many at those moments. There is always one at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.graph.network import Network
from core.state import State
from core.targets import ROUNDING
from core.training.freezing import left_alone, unfrozen
from core.training.port import FitResult, TrainerPort
from core.training.rewinding import Origins
from core.training.seeds import derived_seed
from core.training.vicinity import Units, Vicinity, changed_layers
from core.training.weight_noise import add_weight_noise
from core.training_settings import FineTune, Moments


def loop_rounds(loops: int, rounds: int) -> list[int]:
    """After which of `rounds` rounds `loops` fine-tunings are: the k-th after k · rounds / loops, halves rounded up.

    Of 27 rounds and four loops 7, 14, 20 and 27, as in the thesis. Those that fall before the first round, or together
    with the next one, are left out.
    """
    return sorted({(2 * k * rounds + loops) // (2 * loops) for k in range(1, loops + 1)} - {0})


def is_moment(moments: Moments, *, round: int, rounds: int, lost: float | None) -> bool:
    """Whether there is a whole fine-tuning after round `round` (from 1) of `rounds` that are planned.

    `lost`: validation accuracy lost since the last whole fine-tuning, or since the beginning; None: not known.
    """
    if moments.loops is not None:
        return round < rounds and round in loop_rounds(moments.loops, rounds)  # the last one is that at the end
    if moments.at is not None:
        return round in moments.at
    if moments.every is not None:
        return round % moments.every == 0
    return lost is not None and moments.threshold is not None and lost > moments.threshold + ROUNDING


def epochs_due(settings: FineTune, *, round: int, rounds: int, lost: float | None, last: bool) -> int:
    """Epochs of fine-tuning after round `round`; the last round always gets the whole number."""
    moments = settings.policy.moments
    if last or (moments is not None and is_moment(moments, round=round, rounds=rounds, lost=lost)):
        return settings.epochs
    return settings.policy.low or 0


def expected_trainings(settings: FineTune, macs: Sequence[int], *, done: int, rounds: int) -> list[tuple[int, int]]:
    """(epochs, MACs) of the fine-tunings still to come, of which thresholds are not known beforehand.

    macs: of the network after each round that is still to come. done: rounds done. rounds: planned in all.
    """
    found = []
    for number, size in enumerate(macs, start=done + 1):
        last = number == done + len(macs)
        found.append((epochs_due(settings, round=number, rounds=rounds, lost=None, last=last), size))
    return [(epochs, size) for epochs, size in found if epochs]


@dataclass(frozen=True)
class Due:
    """A fine-tuning that is to be done now: after which round, how many epochs, and whether it is a whole one."""

    round: int
    epochs: int
    whole: bool


class FineTuning:
    """The fine-tunings of one step of a recipe.

    Args:
        state: this object's own scope. What is put there is written by whoever saves next: `after` belongs into the
            moment in which the round is over.
        step: index of the step in the recipe, for the labels: `fine_tune/<step>/round/<r>`, at the end
            `fine_tune/<step>`.
        seed: of the noise on the weights.
        rounds: planned; what an earlier attempt planned is kept.
        units: of the network that the step begins with, for `local`; None: it takes no layer out, and whatever is
            fine-tuned has the same.
        origins: what `rewind` goes back to; needed where it does.
        round_epochs: that a round itself trains, before its cut.
        tuning_epochs: that the method trains in front of each fine-tuning; not with `low`.
        accuracy: on validation, of the network that the step begins with.
    """

    def __init__(
        self,
        settings: FineTune,
        *,
        trainer: TrainerPort,
        state: State,
        step: int,
        seed: int,
        rounds: int,
        accuracy: float,
        round_epochs: int = 0,
        tuning_epochs: int = 0,
        units: Units | None = None,
        origins: Origins | None = None,
    ) -> None:
        self._settings = settings
        self._trainer = trainer
        self._state = state
        self._step = step
        self._seed = seed
        self._round_epochs = round_epochs
        self._tuning_epochs = tuning_epochs
        self._units = units
        self._origins = origins
        if "rounds" not in state:
            state.put(rounds=rounds, reference=accuracy, due=None, whole=0, wanted=0, given=0, wound=[])

    @property
    def rounds(self) -> int:
        """How many were planned when the step began."""
        rounds: int = self._state["rounds"]
        return rounds

    @property
    def due(self) -> Due | None:
        """What is to be done before the next round."""
        due: dict[str, Any] | None = self._state["due"]
        return None if due is None else Due(**due)

    def after(self, round: int, accuracy: float | None, *, last: bool, wound: Sequence[str] = ()) -> dict[str, Any]:
        """Notes what follows round `round`, which has left `accuracy` on validation. Returns it for the event.

        `wound`: the layers that it has changed or taken out. `last`: there is no round after it. Where a budget of
        epochs is short, the fine-tuning gets its share of it.
        """
        lost = None if accuracy is None else self._state["reference"] - accuracy
        epochs = epochs_due(self._settings, round=round, rounds=self.rounds, lost=lost, last=last)
        moments = self._settings.policy.moments
        whole = last or (moments is not None and is_moment(moments, round=round, rounds=self.rounds, lost=lost))
        given = self._share(epochs, round=round, last=last)
        due = {"round": round, "epochs": given, "whole": whole} if given else None
        self._state.put(due=due, wanted=self._state["wanted"] + epochs, given=self._state["given"] + given)
        self._state.put(wound=[*self._state["wound"], *(name for name in wound if name not in self._state["wound"])])
        return {"accuracy_lost": lost, "fine_tune_epochs": given}

    def _share(self, epochs: int, *, round: int, last: bool) -> int:
        rounds = 0 if last else max(1, self.rounds - round)  # there is one more at least, whatever was planned
        to_come = self.expect([0] * rounds, done=round)
        tunings = len(to_come) + bool(epochs)
        return self._trainer.budget.share(
            epochs,
            rounds=rounds * self._round_epochs + tunings * self._tuning_epochs,
            to_come=sum(number for number, _ in to_come),
            least=int(last),
        )

    def expect(self, macs: Sequence[int], *, done: int) -> list[tuple[int, int]]:
        """(epochs, MACs) of what is still to come: of what is due, and of the rounds after each of which the network
        has `macs`."""
        return expected_trainings(self._settings, macs, done=done, rounds=self.rounds)

    def run(
        self,
        network: Network,
        *,
        last: bool,
        on_epoch: Callable[[dict[str, Any]], None],
        plan: Sequence[Mapping[str, Any]] = (),
    ) -> FitResult:
        """Does what is due; the caller saves afterwards. Goes on where an earlier attempt left it.

        on_epoch, plan: see `TrainerPort.fit`. Where `rewind` says so a whole fine-tuning begins with other weights.
        """
        due = self.due
        assert due is not None, "nothing is due"
        label = f"fine_tune/{self._step}" + ("" if last else f"/round/{due.round}")
        state, training = self._state.scope("fit"), self._settings.resolved(self._trainer.training)
        if self._rewinds(due) and "weights" not in state:
            assert self._origins is not None, "nothing to go back to"
            self._origins.set_back(network, self._settings.rewind, plan)
            self._trainer.recalibrate(network, label=f"{label}/rewind")
        near = self._vicinity(network, due)
        if self._settings.noise is not None and "weights" not in state:  # else an earlier attempt has trained on
            trained = set(unfrozen(network, training))
            spared = left_alone(network, trained if near is None else trained.intersection(near.at(1, due.epochs)))
            add_weight_noise(network, self._settings.noise, seed=derived_seed(self._seed, label), spared=spared)
        fit = self._trainer.fit(
            network,
            training=training,
            epochs=due.epochs,
            label=label,
            state=state,
            on_epoch=on_epoch,
            moving=None if near is None else near.at,
            plan=plan,
        )
        self._state.drop("fit")
        self._state.put(due=None, wound=[], whole=self._state["whole"] + due.whole)
        if due.whole and fit.score is not None:
            self._state.put(reference=fit.score.accuracy)
        return fit

    def _vicinity(self, network: Network, due: Due) -> Vicinity | None:
        """What is trained where that is not everything."""
        local = self._settings.local
        if local is None or (due.whole and local.fine_tunings == "low"):
            return None
        wound = self._state["wound"]
        if self._rewinds(due) and self._origins is not None:  # what was healed since is open again
            wound = changed_layers(self._origins.trained, network)
        return Vicinity(network, wound, local, self._units)

    def _rewinds(self, due: Due) -> bool:
        return due.whole and self._settings.rewind != "last"

    def cut_short(self) -> list[str]:
        """A warning where a budget of epochs has left the fine-tunings less than they would have taken."""
        wanted, given = self._state["wanted"], self._state["given"]
        if given == wanted:
            return []
        return [f"the fine-tuning of step {self._step} had {given} of {wanted} epochs: {self._trainer.budget.told}"]

    def never_reached(self, rounds: int) -> list[str]:
        """A warning where moments were named that the step did not get to, or more loops than there could be."""
        moments = self._settings.policy.moments
        if moments is not None and moments.loops is not None and self._state["whole"] < moments.loops:
            done = self._state["whole"]
            return [f"step {self._step} had {rounds} round(s): {done} fine-tuning(s) instead of {moments.loops} loops"]
        late = [number for number in (moments.at or ()) if number > rounds] if moments is not None else []
        if not late:
            return []
        named = ", ".join(map(str, late))
        return [f"step {self._step} had {rounds} round(s): the fine-tuning after round {named} was never reached"]
