"""Parameters that a training leaves as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from core.graph.network import Network
from core.training.classifier import classifier_layers
from core.training_settings import Training


def unfrozen(network: Network, training: Training) -> list[str]:
    """Names of the parameters that `training` does not leave alone, in the network's order."""
    frozen: set[int] = set()
    if training.freeze == "classifier":
        layers = network.layers()
        frozen = {id(item) for name in classifier_layers(network) for item in layers[name].parameters()}
    return [name for name, parameter in network.named_parameters() if id(parameter) not in frozen]


@contextmanager
def trained_only(network: Network, names: Collection[str]) -> Iterator[None]:
    """Meanwhile only the parameters called `names` get gradients: the others have no part in what `clip_norm` measures
    either, and nothing is computed backwards for them."""
    others = [parameter for name, parameter in network.named_parameters() if name not in names]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
