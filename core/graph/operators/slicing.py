"""Parts of a tensor: Slice, and Split, which becomes one slice per part. ONNX `Slice` <-> `aten.slice.Tensor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, compressed, source
from core.graph.operators.form import Form, Survivors
from core.graph.operators.shape import running_rule

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten
TO_THE_END = 2**31 - 1
"""What exporters write for "to the end", or more."""


def read_slice(reading: Reading, node: NodeProto) -> fx.Node:
    """Slice-1 (attributes), 10, 11, 13 (constant inputs), with positive steps, not of the batch."""
    x = reading.activation(node, 0)
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
        dim = reading.axis(node, axis, len(x.meta["shape"]))
        if step < 1:
            raise reading.unknown(node, f"a step of {step}")
        if dim == 0 and (start, step) == (0, 1) and end >= TO_THE_END:
            continue  # the whole batch, as indexing in torch is exported
        if dim == 0:
            raise reading.unknown(node, "a slice of the batch")
        x = _sliced(reading, x, dim, start, end, step)
    return x


def read_split(reading: Reading, node: NodeProto) -> fx.Node:
    """Split-2, 11 (sizes as an attribute), 13, 18 (as a constant input, or a number of parts)."""
    x = reading.activation(node, 0)
    given = reading.attributes(node, axis=0, split=None, num_outputs=0)
    dim = reading.axis(node, given["axis"], len(x.meta["shape"]))
    sizes = reading.integers(node, 1) if reading.given(node, 1) else given["split"]
    if dim == 0 or reading.dynamic_space:
        raise reading.unknown(node, "a split of the batch or of a dynamic dimension")
    total, parts = x.meta["shape"][dim], len(node.output)
    if sizes is None:
        size = -(-total // parts)
        sizes = [min(size, total - size * index) for index in range(parts)]
    if len(sizes) != parts or sum(sizes) != total or min(sizes) < 1:
        raise reading.refused(node, f"sizes {list(sizes)} do not split {total} into {parts}")
    made = []
    start = 0
    for size in sizes:
        made.append(_sliced(reading, x, dim, start, start + size, 1))
        start += size
    for name, part in zip(node.output[1:], made[1:], strict=True):
        reading.activations[name] = part
    return made[0]


def _sliced(reading: Reading, x: fx.Node, dim: int, start: int, end: int, step: int) -> fx.Node:
    if not reading.dynamic_space:
        start, end, step = slice(start, end, step).indices(x.meta["shape"][dim])
        if (start, end, step) == (0, x.meta["shape"][dim], 1):
            return x
    return reading.call(aten.slice.Tensor, x, dim, start, end, step)


def slice_rule(p: Propagation, node: fx.Node) -> Tensor:
    """ATen itself, on the ids. A step through the channels would choose others after a cut: it freezes them."""
    ids = p.ids[source(node)]
    (small,) = compressed(ids)
    dim = int(argument(node, 1))
    if int(argument(node, 4, 1)) != 1 and bool((small != small.narrow(dim, 0, 1)).any()):
        return p.frozen_result([ids], node, "a slice with a step chooses channels by their place")
    return running_rule(p, node)


def resize_slice(survivors: Survivors, old: fx.Node, new: fx.Node) -> None:
    """Start and end count the channels that are left in front of them."""
    dim, start, end = (int(argument(old, index)) for index in (1, 2, 3))
    keeps = survivors.keeps(source(old), dim)
    if not keeps.all():
        new.args = (new.args[0], dim, int(keeps[:start].sum()), int(keeps[:end].sum()), *new.args[4:])


def write_slice(writing: Writing, node: fx.Node) -> None:
    """Opset 10 made the bounds inputs, and brought steps."""
    dim, start, end, step = (int(argument(node, index)) for index in (1, 2, 3, 4))
    bounds = {"starts": start, "ends": end, "axes": dim}
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


READERS = {"Slice": read_slice, "Split": read_split}
FORMS = {aten.slice.Tensor: Form(slice_rule, write_slice, resize=resize_slice)}
