"""Plans: what was done to a network, step by step, as JSON that can be replayed on the network it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from core.errors import CutRefused, Fault
from core.graph.batch_norm import replay_insert
from core.graph.batch_norm_folding import replay_merge
from core.graph.bypass import replay_bypass
from core.graph.counts import channels_of
from core.graph.cuts import replay_cut
from core.graph.head import replay_head
from core.graph.initialise import replay_reinitialise
from core.graph.network import Network
from core.graph.operators import MAKERS
from core.graph.replacing import replay_replacement
from core.graph.weights import replay_weights

Operation = Callable[[Network, Mapping[str, Any]], Network]
OPERATIONS: Mapping[str, Operation] = {
    "cut": replay_cut,
    "bypass": replay_bypass,
    "insert": replay_insert,
    "merge": replay_merge,
    "replace": replay_replacement,
    "reinitialise": replay_reinitialise,
    "head": replay_head,
}
"""By an entry's `op`: the network after it. Each leaves the network that it is given as it is. `weights` besides."""


def replay(network: Network, plan: Sequence[Mapping[str, Any]], *, weights: Network | None = None) -> Network:
    """`network` after every entry of `plan`, weights cut along. Raises `CutRefused` where an entry does not fit it.

    weights: the model that an entry `weights` names by its sha256; without it the structure is replayed all the same.
    """
    operations: dict[str, Operation] = {**OPERATIONS, "weights": partial(replay_weights, weights=weights)}
    for index, entry in enumerate(plan):
        operation = operations.get(str(entry.get("op")))
        if operation is None:
            fault = Fault(f"/{index}/op", f"unknown operation {entry.get('op')!r}", f"one of {', '.join(operations)}")
            raise CutRefused(f"plan entry {index} cannot be replayed", faults=[fault])
        try:
            network = operation(network, entry)
        except CutRefused as error:
            faults = [replace(fault, pointer=f"/{index}{fault.pointer}") for fault in error.faults]
            raise CutRefused(f"plan entry {index} cannot be replayed: {error.message}", faults=faults) from None
    return network


def channel_map(network: Network, plan: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Per producing layer of the original `network`: the output channels that are left after `plan`, ascending; none of
    a layer that was bypassed."""
    left = {}
    for name, layer in network.layers().items():
        if isinstance(layer, MAKERS):
            left[name] = np.arange(channels_of(layer))
    for entry in plan:
        channels_gone = entry.get("layers", {}) if entry.get("op") in ("cut", "bypass", "replace") else {}
        for name, channels in channels_gone.items():
            left[name] = np.delete(left[name], channels)
        for name in entry.get("removed", ()):
            if name in left:
                left[name] = left[name][:0]
    return {name: channels.tolist() for name, channels in left.items()}
