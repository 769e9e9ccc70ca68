"""Saliencies of residual blocks (Velici 2022, section 3.3): the block with the lowest score goes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from core.block_settings import Racing, Saliency
from core.blocks.candidates import Candidate
from core.data.augment import seeded
from core.data.datasets import Dataset
from core.data.source import SplitName
from core.events import Emit
from core.graph.counts import count
from core.graph.network import Network
from core.graph.operators.convolution import CONVOLUTIONS
from core.saliency.block_activations import activation_change, activation_change_plus_one, activation_mean
from core.saliency.block_gradient import block_gradient, block_gradient_max
from core.saliency.block_oracle import oracle
from core.saliency.block_probe import linear_probe
from core.training.port import TrainerPort


@dataclass(frozen=True)
class Scoring:
    """What candidates are scored on.

    Attributes:
        network: the present one; it is left as it is.
        candidates: in execution order.
        split: the images, not augmented.
        round: rounds done.
        seed: of the step.
        emit, step: where what happens is told; index of the step in the recipe.
        batches: how many minibatches of the images a gradient is of; None: all.
        cache_mib, racing: of the oracle, see `core.block_settings.BlockRemoval`.
        goes: candidates that go before the next scoring, at most.
    """

    network: Network
    candidates: Sequence[Candidate]
    data: Dataset
    split: SplitName
    trainer: TrainerPort
    round: int
    seed: int
    emit: Emit
    step: int = 0
    batches: int | None = None
    cache_mib: int = 256
    racing: Racing | None = None
    goes: int = 1

    @cached_property
    def macs(self) -> int:
        """Of the network."""
        return count(self.network).macs

    def looked(self, images: float) -> None:
        """Tells the progress that so many images more, in passes through the whole network without gradients, are done
        of what `core.blocks.scoring_work` expects."""
        self.trainer.scored(f"step/{self.step}", images, self.macs)


def weights_mean(scoring: Scoring) -> dict[str, float]:
    """The mean absolute weight of all the block's convolutions, of all their weights together."""
    layers = scoring.network.layers()
    found = {}
    for candidate in scoring.candidates:
        own = [layers[name] for block in candidate.blocks for name in block.own]
        weights = [layer.get_parameter("weight").detach() for layer in own if isinstance(layer, CONVOLUTIONS)]
        total = sum(float(weight.double().abs().sum()) for weight in weights)
        found[candidate.name] = total / max(1, sum(weight.numel() for weight in weights))
    return found


def random(scoring: Scoring) -> dict[str, float]:
    """Uniform in [0, 1), of the seed, the round and the name alone."""
    found = {}
    for candidate in scoring.candidates:
        generator = seeded(scoring.seed, scoring.round, f"random score of {candidate.name}")
        found[candidate.name] = float(torch.rand((), generator=generator, dtype=torch.float64))
    return found


SALIENCIES: Mapping[Saliency, Callable[[Scoring], dict[str, float]]] = {
    "oracle": oracle,
    "activation_change": activation_change,
    "activation_change_plus_one": activation_change_plus_one,
    "activation_mean": activation_mean,
    "block_gradient": block_gradient,
    "block_gradient_max": block_gradient_max,
    "linear_probe": linear_probe,
    "weights_mean": weights_mean,
    "random": random,
}
"""By the recipe's `saliency`: the score of each candidate, by its name. Of equal scores the first one goes first."""
