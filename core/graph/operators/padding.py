"""Pad: with a constant, with the reflected image, with its edge; negative amounts crop.

ONNX `Pad` <-> `aten.constant_pad_nd`, `reflection_padNd`, `replication_padNd`. torch counts from the last dimension,
(before, after) for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, compressed, source
from core.graph.operators.form import Form, Survivors
from core.graph.operators.slicing import END, sliced

if TYPE_CHECKING:
    from core.graph.building import Building
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten
REFLECTED = {1: aten.reflection_pad1d.default, 2: aten.reflection_pad2d.default, 3: aten.reflection_pad3d.default}
REPLICATED = {1: aten.replication_pad1d.default, 2: aten.replication_pad2d.default, 3: aten.replication_pad3d.default}
MAX_PAD = 65_535
Pairs = dict[int, tuple[int, int]]
"""Dimension -> (before, after)."""


def read_pad(reading: Reading, node: NodeProto) -> fx.Node:
    """Pad-2 (attributes), 11, 13, 18 and up (constant inputs, the last with axes)."""
    given = reading.attributes(node, mode=b"constant", pads=None, value=0.0)
    x = reading.activation(node, 0)
    rank = len(x.meta["shape"])
    pads, value, axes = given["pads"], given["value"], list(range(rank))
    if reading.opset >= 11:
        pads = reading.integers(node, 1)
        value = reading.scalar(node, 2) if reading.given(node, 2) else 0.0
        axes = (
            [reading.axis(node, axis, rank) for axis in reading.integers(node, 3)] if reading.given(node, 3) else axes
        )
    if pads is None or len(pads) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise reading.refused(node, f"pads needs {2 * len(axes)} numbers, a pair for each of {len(axes)} axes")
    pairs = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    if any(abs(amount) > MAX_PAD for pair in pairs.values() for amount in pair):
        raise reading.unknown(node, f"pads {list(pads)}: only -{MAX_PAD} to {MAX_PAD} are taken")
    if any(pairs.get(0, (0, 0))):
        raise reading.unknown(node, "padding of the batch", "pads of 0 for dimension 0")
    for dim, (before, after) in pairs.items():
        if before < 0 or after < 0:
            x = sliced(reading, x, dim, max(0, -before), after if after < 0 else END)
    pairs = {dim: (max(0, before), max(0, after)) for dim, (before, after) in pairs.items()}
    pairs = {dim: pair for dim, pair in pairs.items() if any(pair)}
    mode = given["mode"].decode()
    if mode == "constant":
        return padded(reading, x, pairs, float(value))
    table = {"reflect": REFLECTED, "edge": REPLICATED}.get(mode)
    if table is None:
        raise reading.unknown(node, f"padding mode {mode!r}")
    count = rank - min(pairs, default=rank)
    if not pairs:
        return x
    if min(pairs) < 2 or rank - 2 not in table or count > rank - 2:
        raise reading.unknown(node, f"padding mode {mode!r} of the dimensions {sorted(pairs)} of {rank}")
    return reading.call(table[rank - 2], x, _amounts(pairs, rank, rank - 2))


def padded(building: Building, x: fx.Node, pairs: Pairs, value: float = 0.0) -> fx.Node:
    """`x` with `value` in front of and behind the dimensions in `pairs`; `x` itself where that is nothing."""
    pairs = {dim: pair for dim, pair in pairs.items() if any(pair)}
    if not pairs:
        return x
    rank = len(x.meta["shape"])
    return building.call(aten.constant_pad_nd.default, x, _amounts(pairs, rank, rank - min(pairs)), value)


def _amounts(pairs: Pairs, rank: int, count: int) -> list[int]:
    """For the last `count` dimensions, the last of them first."""
    return [amount for dim in reversed(range(rank - count, rank)) for amount in pairs.get(dim, (0, 0))]


def pad_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Along space a padded place belongs to its channel. Along the channels it is a new channel, of constants."""
    ids = p.ids[source(node)]
    for dim, (before, after) in _pairs(node).items():
        first = ids.narrow(dim, 0, 1)
        sizes = list(ids.shape)
        if min(before, after) < 0:  # a crop
            sizes[dim] = ids.shape[dim] + min(before, 0) + min(after, 0)
            ids = ids.narrow(dim, max(0, -before), sizes[dim])
            before, after = max(0, before), max(0, after)
        if bool((ids == first).all()):
            sizes[dim] += before + after
            ids = first.expand(sizes)
            continue
        (small,) = compressed(ids)
        parts = []
        for amount in (before, after):
            view, wide = [1] * ids.dim(), list(small.shape)
            view[dim] = wide[dim] = amount
            parts.append(p.fresh(amount).reshape(view).expand(wide))
        sizes[dim] += before + after
        ids = torch.cat([parts[0], small, parts[1]], dim).expand(sizes)
    return ids


def _pairs(node: fx.Node) -> Pairs:
    """Where one of them is not 0."""
    amounts: list[int] = list(argument(node, 1))
    rank = len(node.meta["shape"])
    pairs = {rank - 1 - i: (amounts[2 * i], amounts[2 * i + 1]) for i in range(len(amounts) // 2)}
    return {dim: pair for dim, pair in pairs.items() if any(pair)}


def resize_pad(survivors: Survivors, old: fx.Node, new: fx.Node) -> None:
    """Of the padded channels those that are removed go from the amounts; of a crop those that are cropped."""
    amounts: list[int] = list(argument(old, 1))
    rank = len(old.meta["shape"])
    for dim, (before, after) in _pairs(old).items():
        keeps, given = survivors.keeps(old, dim), survivors.keeps(source(old), dim)
        place = 2 * (rank - 1 - dim)
        amounts[place] = int(keeps[:before].sum()) if before > 0 else -int(given[:-before].sum())
        amounts[place + 1] = (
            int(keeps[len(keeps) - after :].sum()) if after > 0 else -int(given[len(given) + after :].sum())
        )
    new.args = (new.args[0], amounts, *new.args[2:])


def mirror_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Places along space are repeated. Along the channels they would be channels of other channels: frozen."""
    ids = p.ids[source(node)]
    first = ids
    for dim in _pairs(node):
        first = first.narrow(dim, 0, 1)
    if not bool((ids == first).all()):
        return p.frozen_result([ids], node, "it repeats channels by their place")
    return first.expand(node.meta["shape"])


def _writer(mode: str) -> Callable[[Writing, fx.Node], None]:
    def write(writing: Writing, node: fx.Node) -> None:
        """Opset 11 made the amounts inputs."""
        pairs = _pairs(node)
        rank = len(node.meta["shape"])
        pads = [pairs.get(dim, (0, 0))[side] for side in (0, 1) for dim in range(rank)]
        x = writing.value(source(node))
        value: dict[str, Any] = {"value": float(argument(node, 2, 0.0) or 0.0)} if mode == "constant" else {}
        if writing.opset < 11:
            writing.add("Pad", [x], node, mode=mode, pads=pads, **value)
            return
        inputs = [writing.tensor(f"{node.name}.pads", np.array(pads, dtype=np.int64))]
        if value:
            inputs.append(writing.number(node, value["value"]))
        writing.add("Pad", [x, *inputs], node, mode=mode)

    return write


READERS = {"Pad": read_pad}
FORMS = {
    aten.constant_pad_nd.default: Form(pad_rule, _writer("constant"), resize=resize_pad),
    **{target: Form(mirror_rule, _writer("reflect")) for target in REFLECTED.values()},
    **{target: Form(mirror_rule, _writer("edge")) for target in REPLICATED.values()},
}
