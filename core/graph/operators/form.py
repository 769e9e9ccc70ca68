"""What an operator of the canonical graph brings: its channel rule, its writer, its MACs, what a cut changes in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, fx, nn

from core.graph.ids import Booleans, LayerIds, Propagation, compressed

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
    _shapes: dict[Any, tuple[int, ...]] = field(default_factory=dict, repr=False)

    def keeps(self, node: fx.Node, dim: int) -> Booleans:
        """Of the value of `node` before the cut: which indices along `dim` stay."""
        moved = self.ids[node].movedim(dim, 0)
        (small,) = compressed(moved)
        gone = self.removed[small.reshape(small.shape[0], -1).numpy()].all(axis=1)
        return np.broadcast_to(~gone, (moved.shape[0],))

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape that the value of `node` has after the cut."""
        ids = self.ids[node]
        key = (ids.data_ptr(), ids.shape, ids.stride())  # the same ids, wherever else they go
        if key not in self._shapes:
            varying = [dim for dim, stride in enumerate(ids.stride()) if stride and ids.shape[dim] > 1]
            sizes = list(ids.shape)
            if len(varying) == 1:  # by far the most: one dimension holds the channels
                (dim,) = varying
                vector = ids[tuple(slice(None) if other == dim else 0 for other in range(ids.dim()))]
                sizes[dim] = int(np.count_nonzero(~self.removed[vector.numpy()]))
            else:
                sizes = [int(self.keeps(node, dim).sum()) for dim in range(ids.dim())]
            self._shapes[key] = tuple(sizes)
        return self._shapes[key]


@dataclass(frozen=True)
class LayerCut:
    """What a cut leaves of one layer."""

    own: LayerIds
    removed: Booleans

    @property
    def outputs(self) -> Booleans:
        """Which of the channels that it makes or carries stay."""
        kept: Booleans = ~self.removed[self.own.output.numpy()]
        return kept

    @property
    def inputs(self) -> Booleans:
        """Which of the channels that it reads stay."""
        assert self.own.input is not None, "the layer reads no channels of its own"
        kept: Booleans = ~self.removed[self.own.input.numpy()]
        return kept

    def slices(self) -> dict[str, list[Booleans | None]]:
        """Per tensor of the layer: which indices stay along each dimension, None for all."""
        return {
            name: [None if ids is None else ~self.removed[ids.numpy()] for ids in dims]
            for name, dims in self.own.tensors.items()
        }


@dataclass(frozen=True)
class Form:
    """One canonical form: a layer class or an ATen call.

    Of an ATen call, `resize(survivors, old node, new node)` updates the arguments of the new node where a cut changes
    sizes in them. Of a layer, `resize_layer(layer, cut)` updates the attributes that say sizes, its tensors sliced
    already; `reference(layer, cut)` is what the uncut layer must compute for the proof of exactness, where zeroing what
    is removed behind it is not what cutting means (a norm over channels: over those that stay); `macs(layer, output
    shape at batch 1)` counts multiply-accumulates, None where they are not counted.
    """

    rule: Rule
    write: Write
    resize: Callable[[Survivors, fx.Node, fx.Node], None] | None = None
    resize_layer: Callable[[Any, LayerCut], None] | None = None
    reference: Callable[[Any, LayerCut], nn.Module] | None = None
    macs: Callable[[Any, tuple[int, ...]], int] | None = None
