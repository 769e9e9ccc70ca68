"""Feature matching: the blocks of a pruned network are to give what the same blocks of the original give.

    L = 1/n · Σ_b mean((S_b - T_b[:, kept_b])²)      over the n blocks b that both networks have

S_b, T_b (B, C, ...): what block b gives in the network that is trained, and in the original. After FitNets (Romero et
al. 2015), whose hints are compared through a regressor that is trained; here the channels that are left are known from
the plan and compared as they are. Blocks are residual and multi-branch ones (`core.graph.blocks`), or where the
original has none, its plain layers. Differs, too: all blocks at once, along with the loss, not one hint before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from core.errors import Fault, RecipeInvalid
from core.graph.blocks import find_blocks
from core.graph.groups import propagate
from core.graph.network import Network
from core.graph.plans import channel_map
from core.training.forward import Forward

Matches = Mapping[str, Sequence[int] | None]
"""Of each pair of nodes, which have the same name: the original's channels that are left; None: all."""


def matches(original: Network, network: Network, plan: Sequence[Mapping[str, Any]] = ()) -> Matches:
    """Where the two networks can be compared: the ends of the original's blocks that are still there, with as many
    places (height, width) as they had, and with all channels or those that `plan` (replayable on `original`) has left.

    Raises `RecipeInvalid` where there is no such place.
    """
    blocks = find_blocks(original)
    whole = [block for block in blocks if block.kind != "layer"] or blocks
    nodes = {node.name: node for node in original.module.graph.nodes}
    ours = {node.name: node for node in network.module.graph.nodes}
    left = _channels_left(original, plan)
    found: dict[str, Sequence[int] | None] = {}
    for block in whole:
        if block.exit not in ours:
            continue
        theirs, own = nodes[block.exit].meta["shape"], ours[block.exit].meta["shape"]
        if own == theirs:
            found[block.exit] = None
        elif own[2:] == theirs[2:] and len(kept := left(block.exit)) == own[1]:
            found[block.exit] = kept
    if not found:
        fault = Fault(
            "/training/distill/features", "no block of the original is left that could be compared", "0, or no features"
        )
        raise RecipeInvalid("feature matching has nothing to match", faults=[fault])
    return found


class FeatureMatching:
    """The loss above, of what `ours` and `theirs` kept of one batch.

    ask: runs the original on a batch; it is called where nothing else has run it on that batch.
    """

    def __init__(self, found: Matches, ours: Forward, theirs: Forward, ask: Callable[[Tensor], Any]) -> None:
        self._kept = [None if kept is None else torch.tensor(kept) for kept in found.values()]
        self._ours, self._theirs, self._ask = ours, theirs, ask

    def loss(self, images: Tensor) -> Tensor:
        """Of the batch `images` (B, ...), through which the network was run last."""
        if self._theirs.features is None:
            with torch.no_grad():
                self._ask(images)
        features, wanted = self._ours.features, self._theirs.features
        assert features is not None
        assert wanted is not None
        self._ours.features = self._theirs.features = None
        total = torch.zeros((), device=images.device)
        for own, given, kept in zip(features, wanted, self._kept, strict=True):
            chosen = given if kept is None else given.index_select(1, kept.to(given.device))
            total = total + functional.mse_loss(own, chosen)
        return total / len(features)


def _channels_left(original: Network, plan: Sequence[Mapping[str, Any]]) -> Callable[[str], list[int]]:
    """Of a node of `original`, by name: the channels that are left after `plan`, by the layers that they go with."""
    if not plan:
        return lambda name: []
    propagation = propagate(original)
    classes, _ = propagation.resolve()
    there = np.zeros(len(classes), dtype=np.bool_)
    for name, channels in channel_map(original, plan).items():
        if channels:
            there[classes[propagation.layers[name].output.numpy()[channels]]] = True
    ids = {node.name: found for node, found in propagation.ids.items()}

    def left(name: str) -> list[int]:
        first = ids[name].select(0, 0)  # (C, ...): along the places of a channel all are of one class
        while first.dim() > 1:
            first = first.select(1, 0)
        return [int(channel) for channel in np.flatnonzero(there[classes[first.numpy()]])]

    return left
