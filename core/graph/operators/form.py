"""What an operator of the canonical graph brings: its channel rule, its writer, its MACs, what a cut changes in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, fx

from core.graph.ids import Booleans, Propagation, compressed

if TYPE_CHECKING:
    from core.graph.onnx_writing import Writing

Rule = Callable[[Propagation, fx.Node], Tensor]
"""The ids of a node's result. It reads `propagation.ids` of the arguments and may make, unite and freeze ids."""

Write = Callable[["Writing", fx.Node], None]
"""Adds the node to an ONNX graph of `writing.opset`. Raises `OpsetTooOld` where that opset cannot hold it."""


@dataclass(frozen=True)
class Survivors:
    """What a cut leaves. `keeps` says of a tensor of ids, per dimension, which indices stay."""

    removed: Booleans
    ids: dict[fx.Node, Tensor]

    def keeps(self, node: fx.Node, dim: int) -> Booleans:
        """Of the value of `node` before the cut: which indices along `dim` stay."""
        moved = self.ids[node].movedim(dim, 0)
        (small,) = compressed(moved)
        gone = self.removed[small.reshape(small.shape[0], -1).numpy()].all(axis=1)
        return np.broadcast_to(~gone, (moved.shape[0],))


@dataclass(frozen=True)
class Form:
    """One canonical form: a layer class or an ATen call.

    `resize(survivors, old node, new node)` updates the arguments of the new node where a cut changes sizes in them;
    `macs(layer, output shape at batch 1)` counts multiply-accumulates, None where they are not counted.
    """

    rule: Rule
    write: Write
    resize: Callable[[Survivors, fx.Node, fx.Node], None] | None = None
    macs: Callable[[Any, tuple[int, ...]], int] | None = None
