"""Channel ids: every activation gets a tensor of integers, and what must be removed together gets united.

An id stands for "one channel of something". Activations carry ids in their own shape (batch 1), mostly as expanded
views that take no memory. The rules of `core/graph/operators` make, pass, unite and freeze ids; `Propagation.resolve`
then finds the classes of united ids at once (vectorised, so near-linear in the number of ids).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Grouped = Literal["whole", "inside"]
"""How a grouped convolution is cut: its groups one by one, or the same channels inside each of its groups."""


@dataclass(frozen=True)
class Freeze:
    """`ids` may not be removed, because of `operator` at `node`."""

    ids: Integers
    operator: str
    node: str
    reason: str


@dataclass(frozen=True)
class LayerIds:
    """Ids of a layer's own channels.

    `output` (channels,) are those that it makes, or carries (a normalisation's are its input's); `input` those that it
    reads as a sum over its weights, None for a layer that only carries. `tensors` has, per parameter or buffer, the ids
    along each dimension, None for a dimension that holds no channels. `reads` names the tensor and the dimension along
    which the input is read: zero there is zero in. It is None where no dimension holds the input's channels alone (a
    grouped convolution whose groups go as a whole).
    """

    output: Tensor
    input: Tensor | None
    tensors: Mapping[str, tuple[Tensor | None, ...]]
    reads: tuple[str, int] | None = None


class Propagation:
    """The state that rules work on. `ids[node]` has the node's shape; `layers[name]` its parameters' channels."""

    def __init__(self, module: fx.GraphModule, grouped: Mapping[str, Grouped] | None = None) -> None:
        self.module = module
        self.modules = dict(module.named_modules())
        self.grouped = grouped or {}
        self.ids: dict[fx.Node, Tensor] = {}
        self.layers: dict[str, LayerIds] = {}
        self.constants: dict[str, Tensor] = {}
        self.freezes: list[Freeze] = []
        self.count = 0
        self._left: list[Integers] = []
        self._right: list[Integers] = []

    # --- for the rules ------------------------------------------------------------------------------------------

    def fresh(self, *shape: int) -> Tensor:
        """New ids, all different."""
        size = int(np.prod(shape))
        self.count += size
        return torch.arange(self.count - size, self.count).reshape(shape)

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Ids at equal places of `a` and `b` (broadcast against each other) go together."""
        a, b = compressed(*torch.broadcast_tensors(a, b))  # type: ignore[no-untyped-call]
        left, right = a.reshape(-1).numpy(), b.reshape(-1).numpy()
        different = left != right
        if different.any():
            self._left.append(left[different])
            self._right.append(right[different])

    def freeze(self, ids: Tensor, node: fx.Node, reason: str, operator: str | None = None) -> None:
        (small,) = compressed(ids)
        name = operator or operator_name(self.module, node)
        self.freezes.append(Freeze(np.unique(small.numpy()), name, str(node.name), reason))

    def along(self, ids: Tensor, dim: int) -> Tensor:
        """The ids along `dim`, as a vector; ids that differ along another dimension are united first."""
        moved = ids.movedim(dim, 0)
        (small,) = compressed(moved)
        rows = small.reshape(small.shape[0], -1) if small.shape[0] == moved.shape[0] else small.reshape(1, -1)
        if rows.shape[1] > 1:
            self.unite(rows, rows[:, :1].expand_as(rows))
        return rows[:, 0].expand(moved.shape[0])

    def merged(self, ids: Tensor, dims: Iterable[int]) -> Tensor | None:
        """The ids with one place left along each of `dims`, for an operator that takes those places together.

        Channels along one of them that lie in rows (a stack of branches, the parts of split attention) are united row
        by row: without a whole row the other rows are what they were. None where nothing but `dims` tells them apart.
        """
        (small,) = compressed(ids)
        along = {dim % ids.dim() for dim in dims}
        first = _first(ids, along)
        if bool((small == _first(small, along)).all()):
            return first
        if bool((small == _first(small, set(range(ids.dim())) - along)).all()):
            return None
        self.unite(ids, first.expand_as(ids))
        return first

    def layer(self, name: str, make: Any) -> LayerIds:
        """The ids of layer `name`, made by `make()` at its first use: a layer used twice has one set of channels."""
        if name not in self.layers:
            self.layers[name] = make()
        return self.layers[name]

    def submodule(self, node: fx.Node) -> Any:
        return self.modules[str(node.target)]

    def spread(self, vector: Tensor, node: fx.Node, dim: int = 1) -> Tensor:
        """`vector` along `dim` of the node's shape, the same everywhere else."""
        shape = node.meta["shape"]
        view = [1] * len(shape)
        view[dim] = shape[dim]
        return vector.reshape(view).expand(shape)

    def frozen_result(self, ids: Sequence[Tensor], node: fx.Node, reason: str) -> Tensor:
        """Freezes all that reaches `node`; returns a frozen id for all that leaves it."""
        for item in ids:
            self.freeze(item, node, reason)
        result = self.fresh(1)
        self.freeze(result, node, reason)
        return result.reshape([1] * len(node.meta["shape"])).expand(node.meta["shape"])

    # --- after the rules ----------------------------------------------------------------------------------------

    @cached_property
    def views(self) -> list[tuple[list[str], Tensor]]:
        """The ids of every activation and constant, compressed, each once, with the names of the nodes that hold them:
        many share one view of the same ids."""
        found: dict[tuple[Any, ...], tuple[list[str], Tensor]] = {}
        for node, ids in self.ids.items():
            (small,) = compressed(ids)
            key = small.data_ptr(), small.shape, small.stride()
            found.setdefault(key, ([], small))[0].append(str(node.name))
        return list(found.values())

    def resolve(self) -> tuple[Integers, Booleans]:
        """(class of every id, which classes are frozen). A class is named by its smallest id.

        A removal must leave a box behind in every tensor, so classes may differ along one dimension only: where they
        differ along several (a channel dimension split in two by a reshape), they are tied along all but the longest.
        """
        while True:
            classes = components(self.count, self._left, self._right)
            frozen = np.zeros(self.count, dtype=np.bool_)
            for item in self.freezes:
                frozen[classes[item.ids]] = True
            before = len(self._left)
            for _, small in self.views:
                self._keep_one_dimension(small, classes, frozen)
            if len(self._left) == before:
                return classes, frozen

    def _keep_one_dimension(self, small: Tensor, classes: Integers, frozen: Booleans) -> None:
        if sum(size > 1 for size in small.shape) < 2:
            return
        found = torch.from_numpy(classes)[small]
        if frozen[found.numpy()].all():
            return
        varying = [dim for dim in range(found.dim()) if bool((found != found.narrow(dim, 0, 1)).any())]
        if len(varying) > 1:
            longest = max(varying, key=lambda dim: found.shape[dim])
            self.along(found, longest)


def components(count: int, left: list[Integers], right: list[Integers]) -> Integers:
    """The smallest id reachable from each of `count` ids over the edges (left[i][j], right[i][j]).

    Each round hooks the larger of two neighbouring roots to the smaller and then flattens all trees, so that the number
    of rounds grows with the logarithm of the longest chain.
    """
    labels = np.arange(count)
    a = np.concatenate(left) if left else np.empty(0, dtype=np.int64)
    b = np.concatenate(right) if right else np.empty(0, dtype=np.int64)
    while a.size:
        a, b = labels[a], labels[b]
        apart = a != b
        a, b = a[apart], b[apart]
        np.minimum.at(labels, np.maximum(a, b), np.minimum(a, b))
        while True:
            further = labels[labels]
            if np.array_equal(further, labels):
                break
            labels = further
    return labels


def _first(ids: Tensor, dims: Iterable[int]) -> Tensor:
    """One place along each of `dims`."""
    for dim in dims:
        ids = ids.narrow(dim, 0, 1)
    return ids


def compressed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors (of one shape) without the dimensions along which all of them are expanded views."""
    shape = tensors[0].shape
    strides = [tensor.stride() for tensor in tensors]
    varies = strides[0] if len(strides) == 1 else tuple(map(any, zip(*strides, strict=True)))
    if all(varies):
        return tensors
    sizes = [size if along or not size else 1 for size, along in zip(shape, varies, strict=True)]
    return tuple(tensor.as_strided(sizes, stride) for tensor, stride in zip(tensors, strides, strict=True))


def source(node: fx.Node, index: int = 0) -> fx.Node:
    """An argument that is a node."""
    value = node.args[index]
    assert isinstance(value, fx.Node)
    return value


def argument(node: fx.Node, index: int, default: Any = None) -> Any:
    """An argument that is a number or a list, `default` where it is left out."""
    return node.args[index] if len(node.args) > index else default


def operator_name(module: fx.GraphModule, node: fx.Node) -> str:
    """As a person would call it: the class of a layer, the bare name of an ATen call."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__
    if node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload):
        return str(getattr(node.target, "__name__", node.target))
    if node.op == "call_function":
        return str(node.target).removeprefix("aten.").split(".")[0]
    return str(node.op)
