"""Parts of a tensor: Slice, and Split, which becomes one slice per part. ONNX `Slice` <-> `aten.slice.Tensor`, with a
negative step `aten.flip` behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, compressed, source
from core.graph.operators.form import Form, Survivors
from core.graph.operators.reshape import running_rule
from core.graph.turned import Turned

if TYPE_CHECKING:
    from core.graph.building import Building
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten
TO_THE_END = 2**31 - 1
"""What exporters write for "to the end", or more."""
END = 2**63 - 1


def read_slice(reading: Reading, node: NodeProto) -> fx.Node | Turned:
    """Slice-1 (attributes), 10, 11, 13 (constant inputs), not of the batch."""
    value = reading.moved(node, 0)
    x = value.node
    given = reading.attributes(node, starts=None, ends=None, axes=None)
    if reading.opset < 10:
        starts, ends, axes, steps = given["starts"], given["ends"], given["axes"], None
    else:
        starts, ends = reading.integers(node, 1), reading.integers(node, 2)
        axes = reading.integers(node, 3) if reading.given(node, 3) else None
        steps = reading.integers(node, 4) if reading.given(node, 4) else None
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise reading.refused(node, "starts, ends, axes and steps must be of one length")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        dim = value.dim(reading.axis(node, axis, len(value.order)))
        if step == 0:
            raise reading.refused(node, "a step of 0")
        if dim == 0 and (start, step) == (0, 1) and end >= TO_THE_END:
            continue  # the whole batch, as indexing in torch is exported
        if dim == 0:
            raise reading.unknown(node, "a slice of the batch", "axes behind the batch, 1 and up")
        x = (
            sliced(reading, x, dim, start, end, step)
            if step > 0
            else _backwards(reading, node, x, dim, start, end, step)
        )
        if x.meta["shape"][dim] == 0:
            raise reading.refused(node, f"nothing is left of dimension {dim}")
    return reading.settled(Turned(x, value.order))


def _backwards(reading: Reading, node: NodeProto, x: fx.Node, dim: int, start: int, end: int, step: int) -> fx.Node:
    """The places of the slice in ascending order, turned round."""
    size = x.meta["shape"][dim]
    if reading.is_open(x, dim):
        if step != -1 or start not in (-1, TO_THE_END, END) or end > -TO_THE_END:
            raise reading.unknown(node, f"a step of {step} through part of a dynamic dimension")
    else:
        places = range(*slice(start, None if end < -size else end, step).indices(size))
        if not places:
            raise reading.refused(node, f"nothing is left of dimension {dim}")
        x = sliced(reading, x, dim, places[-1], places[0] + 1, -step)
    return reading.call(aten.flip.default, x, [dim])


def read_split(reading: Reading, node: NodeProto) -> fx.Node | Turned:
    """Split-2, 11 (sizes as an attribute), 13, 18 (as a constant input, or a number of parts)."""
    value = reading.moved(node, 0)
    given = reading.attributes(node, axis=0, split=None, num_outputs=0)
    dim = value.dim(reading.axis(node, given["axis"], len(value.order)))
    sizes = reading.integers(node, 1) if reading.given(node, 1) else given["split"]
    if dim == 0:
        raise reading.unknown(node, "a split of the batch", "an axis behind the batch, 1 and up")
    if reading.is_open(value.node, dim):
        raise reading.unknown(node, "a split of a dynamic dimension")
    total, parts = value.node.meta["shape"][dim], len(node.output)
    if given["num_outputs"] not in (0, parts):
        raise reading.refused(node, f"num_outputs is {given['num_outputs']}, and it has {parts} outputs")
    if sizes is None:
        size = -(-total // parts)
        sizes = [min(size, total - size * index) for index in range(parts)]
    if len(sizes) != parts or sum(sizes) != total or min(sizes) < 1:
        raise reading.refused(node, f"sizes {list(sizes)} do not split {total} into {parts}")
    made: list[fx.Node | Turned] = []
    start = 0
    for name, size in zip(node.output, sizes, strict=True):
        if name and (not made or reading.uses(name)):
            made.append(reading.settled(Turned(sliced(reading, value.node, dim, start, start + size, 1), value.order)))
            reading.bind(name, made[-1])
        elif not made:
            made.append(value.node)  # the first part has no name: nothing reads it
        start += size
    return made[0]


def sliced(building: Building, x: fx.Node, dim: int, start: int, end: int, step: int = 1) -> fx.Node:
    """A slice with a positive step, its bounds counted from the front where the size is known; `x` where it is all."""
    size = x.meta["shape"][dim]
    if not building.is_open(x, dim):
        start, end, step = slice(start, end, step).indices(size)
    if (start, step) == (0, 1) and (end >= TO_THE_END or (end == size and not building.is_open(x, dim))):
        return x
    return building.call(aten.slice.Tensor, x, dim, start, end, step)


def slice_rule(p: Propagation, node: fx.Node) -> Tensor:
    """ATen itself, on the ids. A step through the channels would choose others after a cut: it freezes them."""
    ids = p.ids[source(node)]
    (small,) = compressed(ids)
    dim = int(argument(node, 1, 0))
    if int(argument(node, 4, 1)) != 1 and bool((small != small.narrow(dim, 0, 1)).any()):
        return p.frozen_result([ids], node, "a slice with a step chooses channels by their place")
    return running_rule(p, node)


def resize_slice(survivors: Survivors, old: fx.Node, new: fx.Node) -> None:
    """Start and end count the channels that are left in front of them."""
    dim = int(argument(old, 1, 0)) % len(old.meta["shape"])
    keeps = survivors.keeps(source(old), dim)
    if not keeps.all():
        start, end, step = _bounds(old)
        places = slice(start, end).indices(len(keeps))
        new.args = (new.args[0], dim, int(keeps[: places[0]].sum()), int(keeps[: places[1]].sum()), step)


def _bounds(node: fx.Node) -> tuple[int, int, int]:
    """Start, end, step; torch may leave them out or say None."""
    start, end = argument(node, 2), argument(node, 3)
    return 0 if start is None else int(start), END if end is None else int(end), int(argument(node, 4, 1))


def write_slice(writing: Writing, node: fx.Node) -> None:
    """Opset 10 made the bounds inputs, and brought steps."""
    start, end, step = _bounds(node)
    bounds = {"starts": start, "ends": end, "axes": int(argument(node, 1, 0)) % len(node.meta["shape"])}
    x = writing.value(source(node))
    if writing.opset >= 10:
        inputs = {**bounds, "steps": step}
        names = [writing.tensor(f"{node.name}.{key}", np.array([value])) for key, value in inputs.items()]
        writing.add("Slice", [x, *names], node)
    elif step == 1:
        attributes: dict[str, Any] = {key: [value] for key, value in bounds.items()}
        writing.add("Slice", [x], node, **attributes)
    else:
        raise writing.too_old("Slice", node, "with a step", 10)


def write_flip(writing: Writing, node: fx.Node) -> None:
    """A Slice backwards: from the last to before the first."""
    rank = len(node.meta["shape"])
    dims = [int(dim) % rank for dim in argument(node, 1)]
    if writing.opset < 10:
        raise writing.too_old("Slice", node, "with a step", 10)
    columns = {"starts": -1, "ends": -(2**63) + 1, "steps": -1}
    vectors = {key: np.full(len(dims), value, dtype=np.int64) for key, value in columns.items()}
    vectors["axes"] = np.array(dims, dtype=np.int64)
    names = [writing.tensor(f"{node.name}.{key}", vectors[key]) for key in ("starts", "ends", "axes", "steps")]
    writing.add("Slice", [writing.value(source(node)), *names], node)


READERS = {"Slice": read_slice, "Split": read_split}
FORMS = {
    aten.slice.Tensor: Form(slice_rule, write_slice, resize=resize_slice),
    aten.flip.default: Form(running_rule, write_flip),
}
