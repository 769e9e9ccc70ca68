"""Parameters that a training leaves as they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from core.errors import Fault, RecipeInvalid
from core.graph.network import Network
from core.training.classifier import classifier_layers
from core.training_settings import Training


def unfrozen(network: Network, training: Training) -> list[str]:
    """Names of the parameters that `training` does not leave alone, in the network's order."""
    if training.freeze == "none":
        return [name for name, _ in network.named_parameters()]
    layers = network.layers()
    classifier = {id(item) for name in classifier_layers(network) for item in layers[name].parameters()}
    trains = training.freeze == "body"
    return [name for name, parameter in network.named_parameters() if (id(parameter) in classifier) == trains]


def trained_parameters(
    network: Network, training: Training, moving: Callable[[int, int], Collection[str]] | None, epochs: int
) -> list[list[str]]:
    """Names of the parameters that each of `epochs` epochs trains, in the network's order; of the first where there is
    none. See `TrainerPort.fit` for `moving`.

    Raises `RecipeInvalid` where that is nothing at all.
    """
    free = unfrozen(network, training)
    if moving is None or not epochs:
        found = [free] * max(1, epochs)
    else:
        wanted = [set(moving(epoch, epochs)) for epoch in range(1, epochs + 1)]
        found = [[name for name in free if name in names] for names in wanted]
    if not found[0]:
        near = "" if moving is None else " that lies near the wound"
        expected = "none" if moving is None else "none, or more blocks left and right of it in local"
        there = "no classifier is" if training.freeze == "body" else "the classifier is all"
        fault = Fault("/training/freeze", f"{there} that the network has{near}", expected)
        if training.freeze == "none":
            fault = Fault("/steps", "no layer is left near what was taken out", "more blocks left and right in local")
        raise RecipeInvalid("nothing is left to be trained", faults=[fault])
    return found


def left_alone(network: Network, names: Collection[str]) -> list[str]:
    """The layers of which no parameter is among those called `names`."""
    trained = {id(parameter) for name, parameter in network.named_parameters() if name in names}
    layers = network.layers()
    return [name for name, layer in layers.items() if trained.isdisjoint(map(id, layer.parameters()))]


@contextmanager
def trained_only(network: Network, names: Collection[str]) -> Iterator[None]:
    """Training mode, in which only the parameters called `names` get gradients.

    The others have no part in what `clip_norm` measures either; nothing is computed backwards in front of the first
    that is trained; and the statistics of a BatchNorm none of whose parameters is trained stay as they are, and are
    what it goes by.
    """
    names = set(names)
    network.train()
    others = [parameter for name, parameter in network.named_parameters() if name not in names]
    for parameter in others:
        parameter.requires_grad_(False)
    layers = network.layers()
    still = [layers[name] for name in left_alone(network, names)]
    kept = [layer for layer in still if getattr(layer, "running_mean", None) is not None]
    for layer in kept:
        layer.eval()
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
