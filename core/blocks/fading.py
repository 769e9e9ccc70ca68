"""Phased removal: before a block goes, its residual path is multiplied by a factor that falls to zero, so that the rest
of the network gets used to its absence (Velici 2022, section 4.2).

    y = γ_e · H(x) + shortcut(x),    γ_e = 1 − e/S,    e = 1 … S        x, y (B, C, ...), H the residual path

What goes with the block (its weights, and so the statistics of its BatchNorms) is frozen meanwhile; what stays is
trained. With `mask: stochastic`, which the thesis leaves as future work, γ is 1 with probability 1 − e/S and else 0,
for each block its own; validation goes by the expectation.

*Lazy*: blocks go round by round, untrained. In front of the next fine-tuning all that went since the last one are put
back (the network as it was then), fade together, and go by the same entries of the plan.

Differs from the thesis
- S epochs are a training of their own, with the settings and schedule of the fine-tuning; it takes the last weights.
- What a lazy fading decides (a threshold, say) is decided by the network without its blocks, before they fade.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from core.block_settings import Fade
from core.blocks.candidates import Candidate, Candidates
from core.data.augment import seeded
from core.events import Emit
from core.graph.bypass import check_bypass, replay_bypass, without_blocks
from core.graph.counts import count
from core.graph.ids import source
from core.graph.network import Network
from core.graph.plans import replay
from core.pruning_run import PruningRun
from core.report import Check
from core.state import State
from core.training.port import FitResult, Moment, TrainerPort
from core.training_settings import FineTune


class Factors:
    """A network of the same layers and weights, in which the residual path of each block is multiplied by a number.

    Args:
        chosen: whose blocks are multiplied, each by a factor of its own, 1 at first; no checkpoint holds it.

    Attributes:
        network: what is trained in place of the one given; that one has the same parameters.
        names: of the blocks, as in `Candidate.names`.
    """

    def __init__(self, network: Network, chosen: Sequence[Candidate]) -> None:
        module = fx.GraphModule(network.module, copy.deepcopy(network.module.graph))
        pairs = zip(network.module.graph.nodes, module.graph.nodes, strict=True)
        nodes = {node.name: twin for node, twin in pairs}
        self._buffers: dict[str, str] = {}
        device = next(network.parameters()).device
        for candidate in chosen:
            for name, block in zip(candidate.names, candidate.blocks, strict=True):
                assert block.path is not None
                self._buffers[name] = buffer = f"fade_factor_{len(self._buffers)}"
                module.register_buffer(buffer, torch.ones((), device=device), persistent=False)
                end = nodes[block.exit]
                with module.graph.inserting_before(end):
                    factor = module.graph.get_attr(buffer)
                    product = module.graph.call_function(torch.ops.aten.mul.Tensor, (source(end, block.path), factor))
                end.update_arg(block.path, product)
        module.recompile()
        self.network = Network(
            module, network.inputs, network.outputs, network.origin, network.input_shapes, network.grouped
        )

    @property
    def names(self) -> list[str]:
        return list(self._buffers)

    def set(self, factors: Mapping[str, float]) -> None:
        """By the names of the blocks."""
        with torch.no_grad():
            for name, factor in factors.items():
                self.network.module.get_buffer(self._buffers[name]).fill_(factor)


class Mask:
    """The factors of one fading.

    Args:
        seed: of the step.
        label: of the fading: what is drawn is of (seed, label, block, epoch, batch) alone.
    """

    def __init__(self, fade: Fade, *, seed: int, label: str) -> None:
        self._fade = fade
        self._seed = seed
        self._label = label

    def at(self, moment: Moment, block: str) -> float:
        """The factor of `block` (0–1) from this moment on."""
        expected = mask_mean(moment.epoch, moment.epochs)
        if self._fade.mask == "linear" or moment.what == "validation":
            return expected
        purpose = f"{self._label}/{block}"
        if self._fade.sample == "batch":
            purpose += f"/batch/{moment.step}"
        drawn = torch.rand((), generator=seeded(self._seed, moment.epoch, purpose), dtype=torch.float64)
        return float(drawn < expected)


class Fading:
    """The fadings of one step of a recipe.

    Args:
        given: the network that the step was given, `known` what may go from it.
        state: this object's own scope; what is put there is written by whoever saves next.
        step: its index in the recipe. A fading is called `prune/step/<step>/round/<r>/fade`.
        seed: of the step.
    """

    def __init__(
        self,
        fade: Fade,
        fine_tune: FineTune,
        *,
        given: Network,
        known: Candidates,
        trainer: TrainerPort,
        emit: Emit,
        state: State,
        step: int,
        seed: int,
    ) -> None:
        self._fade = fade
        self._fine_tune = fine_tune
        self._given = given
        self._known = known
        self._trainer = trainer
        self._emit = emit
        self._state = state
        self._step = step
        self._seed = seed
        if "names" not in state:
            state.put(names=[], entries=0, macs=count(given).macs, wanted=0, had=0)

    # --- when a round has chosen --------------------------------------------------------------------------------------

    def before_removal(
        self, network: Network, chosen: Sequence[Candidate], run: PruningRun, forget: Callable[[], None]
    ) -> None:
        """Fades what a round has chosen, or notes it where fading is lazy. `network` is trained in place.

        `forget` takes from the method's state what the training's own checkpoint has newer.
        """
        if self._fade.lazy:
            self._state.put(names=[*self._state["names"], *(name for each in chosen for name in each.names)])
            return
        room = int(self._fine_tune.epochs > 0)
        run.spent(self._faded(network, chosen, run.round + 1, run.plan, room, forget).cost)

    # --- when a fine-tuning is due ------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether blocks have gone that have not faded yet."""
        return bool(self._state["names"])

    @property
    def restored_macs(self) -> int:
        """MACs of the network that a lazy fading puts back."""
        macs: int = self._state["macs"]
        return macs

    def before_tuning(self, run: PruningRun, images: Tensor, epochs: int, forget: Callable[[], None]) -> Network:
        """Fades all that waits. Returns the network that `run` has visited last, anew, and brings `run` up to date.

        images: real inputs (B, ...) that the removals are proved on again. epochs: of the fine-tuning that is due.
        """
        since: int = self._state["entries"]
        network = replay(self._given, run.plan[:since]) if since else self._given.clone()
        if "weights" in self._state:
            network.load_state_dict(self._state["weights"])
        chosen = [each for each in self._known.of(network) if each.name in self._state["names"]]
        fit = self._faded(network, chosen, run.round, run.plan[:since], epochs, forget)
        network, checks = removed_again(network, run.plan[since:], run.checks[since:], images)
        self._trainer.recalibrate(network, label=f"prune/step/{self._step}/round/{run.round}/recalibrate")
        accuracy = self._trainer.evaluate(network, "validation").accuracy
        run.checks[since:] = checks
        run.front[-1] = run.front[-1].model_copy(update={"validation_accuracy": accuracy})
        run.spent(fit.cost)
        self._emit(f"prune/step/{self._step}/round/{run.round}/faded", removed=[each.name for each in chosen],
                   validation_accuracy=accuracy, exactness=max(check.error for check in checks))  # fmt: skip
        self._state.put(names=[])
        return network

    def after_tuning(self, network: Network, run: PruningRun) -> None:
        """Notes what a later lazy fading puts back."""
        if self._fade.lazy:
            macs = count(network).macs
            self._state.put(names=[], entries=len(run.plan), macs=macs, weights=network.state_dict())

    def cut_short(self) -> list[str]:
        """A warning where a budget of epochs has left the fadings less than they would have taken."""
        wanted, had = self._state["wanted"], self._state["had"]
        if had == wanted:
            return []
        return [f"the fading of step {self._step} had {had} of {wanted} epochs: {self._trainer.budget.told}"]

    # --- one fading ---------------------------------------------------------------------------------------------------

    def _faded(
        self,
        network: Network,
        chosen: Sequence[Candidate],
        round: int,
        plan: Sequence[Mapping[str, Any]],
        room: int,
        forget: Callable[[], None],
    ) -> FitResult:
        """Trains `network` in place while the chosen blocks fade; goes on where an earlier attempt left it. `room`:
        epochs of a budget that are left for the fine-tuning behind it."""
        label = f"prune/step/{self._step}/round/{round}/fade"
        epochs = self._trainer.budget.leaving(room, self._fade.epochs)
        smaller = without_blocks(network, [block.name for each in chosen for block in each.blocks])
        stays = [name for name, _ in smaller.named_parameters()]
        factors, mask = Factors(network, chosen), Mask(self._fade, seed=self._seed, label=label)
        self._emit(label, blocks=factors.names, epochs=epochs, mask=self._fade.mask,
                   factors=[mask_mean(epoch, epochs) for epoch in range(1, epochs + 1)])  # fmt: skip
        training = self._fine_tune.resolved(self._trainer.training).model_copy(update={"early_stop": 0})
        fit = self._trainer.fit(
            factors.network,
            training=training,
            epochs=epochs,
            label=label,
            state=self._state.scope("fit"),
            before=lambda moment: factors.set({name: mask.at(moment, name) for name in factors.names}),
            on_epoch=lambda record: forget(),
            restore_best=False,
            moving=lambda epoch, epochs: stays,
            plan=plan,
        )
        network.to(next(network.parameters()).device).eval()
        self._state.drop("fit")
        self._state.put(wanted=self._state["wanted"] + self._fade.epochs, had=self._state["had"] + epochs)
        return fit


def mask_mean(epoch: int, epochs: int) -> float:
    """1 − e/S: the factor of epoch `epoch`, from 1, of `epochs`, or its expectation."""
    return (epochs - epoch) / epochs


def removed_again(
    network: Network, entries: Sequence[Mapping[str, Any]], checks: Sequence[Check], images: Tensor
) -> tuple[Network, list[Check]]:
    """`network` after entries of a plan, each proved on `images` (B, ...), with the proofs in place of the earlier
    `checks`. Raises `ExactnessFailed`."""
    found = []
    for entry, check in zip(entries, checks, strict=True):
        smaller = replay_bypass(network, entry)
        found.append(check_bypass(network, entry, smaller, images).model_copy(update={"name": check.name}))
        network = smaller
    return network, found
