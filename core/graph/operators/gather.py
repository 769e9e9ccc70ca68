"""Gather by constant indices. ONNX `Gather` <-> `aten.index_select`; one index, or indices in a row, are a slice.

The indices are a buffer of whole numbers. Along the channels they are cut with them: an index goes with the channel
that it names, and those that stay are counted anew among the channels that stay.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, compressed, source
from core.graph.operators.form import Form, Survivors
from core.graph.operators.reshape import reshaped
from core.graph.operators.slicing import END, sliced
from core.graph.turned import Turned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from core.graph.building import Building
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten


def read_gather(reading: Reading, node: NodeProto) -> fx.Node | Turned:
    """Gather-1, 11, 13 by constant indices of any shape, not of the batch."""
    value = reading.moved(node, 0)
    place = reading.axis(node, reading.attributes(node, axis=0)["axis"], len(value.order))
    dim = value.dim(place)
    if dim == 0:
        raise reading.unknown(node, "a choice among the batch", "an axis behind the batch, 1 and up")
    indices = reading.constants.get(node.input[1])
    if indices is None or indices.dtype.kind not in "iu":
        raise reading.unknown(node, "indices that are not constant whole numbers")
    x = value.node
    size = x.meta["shape"][dim]
    if reading.is_open(x, dim) and (indices.ndim or not -1 <= int(indices) < size):
        raise reading.unknown(node, "several indices into a dynamic dimension")
    if indices.size == 0 or indices.min() < -size or indices.max() >= size:
        raise reading.refused(node, f"indices outside a dimension of {size}")
    if indices.ndim == 0:
        index = int(indices)
        part = sliced(reading, x, dim, index, index + 1 if index != -1 else END)
        return reading.settled(Turned(reading.call(aten.squeeze.dims, part, [dim]), value.without({place})))
    if value.order[0] != 0 and indices.ndim > 1:
        raise reading.unknown(node, "a table of indices into a value whose batch was moved")
    x = selected(
        reading, x, dim, [int(index) % size for index in indices.reshape(-1)], f"{node.name or x.name}.indices"
    )
    if indices.ndim > 1:
        pairs = list(zip(x.meta["shape"], reading.other_shape(x), strict=True))
        pairs[dim : dim + 1] = [(size, size) for size in indices.shape]
        parted = reshaped(reading, x, pairs[1:])
        assert parted is not None, "one fixed dimension is parted into fixed ones"
        return parted
    return reading.settled(Turned(x, value.order))


def selected(building: Building, x: fx.Node, dim: int, indices: Sequence[int], name: str) -> fx.Node:
    """The places `indices` (0 and up) of `x` along `dim`: a slice where they are in a row."""
    steps = {b - a for a, b in pairwise(indices)} or {1}
    if steps == {1}:
        return sliced(building, x, dim, indices[0], indices[-1] + 1)
    constant = building.add_constant(name, torch.tensor(indices, dtype=torch.int64))
    return building.call(aten.index_select.default, x, dim, constant)


def buffer_of(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The value of a `get_attr` node."""
    path, _, name = str(node.target).rpartition(".")
    found = getattr(module.get_submodule(path), name)
    assert isinstance(found, Tensor)
    return found


def index_select_rule(p: Propagation, node: fx.Node) -> Tensor:
    """The chosen ids. Along the channels the indices go with them, which one buffer of each choice makes possible."""
    ids = p.ids[source(node)]
    chooser = source(node, 2)
    dim = int(argument(node, 1)) % ids.dim()
    if chooser.op != "get_attr":
        return p.frozen_result([ids], node, "it chooses by indices that are computed")
    indices = buffer_of(p.module, chooser).cpu()
    (small,) = compressed(ids)
    if small.shape[dim] == 1:
        return small.expand(node.meta["shape"])
    chosen = small.index_select(dim, indices)
    if bool((small == small.narrow(dim, 0, 1)).all()):
        return chosen.expand(node.meta["shape"])
    users = [user for other in p.module.graph.find_nodes(op="get_attr", target=chooser.target) for user in other.users]
    if len(users) > 1:
        return p.frozen_result([ids], node, "its indices are read by another operator too")
    p.unite(p.ids[chooser], p.along(chosen, dim))
    return chosen.expand(node.meta["shape"])


def resize_index_select(survivors: Survivors, old: fx.Node, new: fx.Node) -> None:
    """The indices that stay were cut with the constants; they are counted anew among the places that stay."""
    keeps = survivors.keeps(source(old), int(argument(old, 1)))
    module = new.graph.owning_module
    if keeps.all() or module is None:
        return
    chooser = source(new, 2)
    path, _, name = str(chooser.target).rpartition(".")
    left = buffer_of(module, chooser)
    places = torch.from_numpy(np.cumsum(keeps) - 1)
    setattr(module.get_submodule(path), name, places[left.cpu()].to(left.device))


def write_gather(writing: Writing, node: fx.Node) -> None:
    """Gather-1 and its successors."""
    axis = int(argument(node, 1)) % len(node.meta["shape"])
    writing.add("Gather", [writing.value(source(node)), writing.value(source(node, 2))], node, axis=axis)


READERS = {"Gather": read_gather}
FORMS = {aten.index_select.default: Form(index_select_rule, write_gather, resize=resize_index_select)}
