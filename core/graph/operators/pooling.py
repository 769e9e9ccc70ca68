"""Pooling over windows: MaxPool, AveragePool, LpPool. Global pooling is a reduction (`reduce.py`).

ONNX `MaxPool` <-> `aten.max_poolNd`, `AveragePool` <-> `aten.avg_poolNd`, 1d to 3d. With `ceil_mode` both, and ONNX
Runtime, leave out a last window that starts behind the input, and count what lies inside the padded input only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, source
from core.graph.operators.form import Form
from core.graph.operators.padding import padded
from core.graph.operators.slicing import sliced
from core.graph.operators.windows import same_padding, window_attributes

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten
MAX_POOLS = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}
AVERAGE_POOLS = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}


@dataclass(frozen=True)
class _Pool:
    """A node's windows. `begin` and `end` are the paddings; `ceil` that a last window may end behind them."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    ceil: bool

    @property
    def by_torch(self) -> bool:
        """Whether torch takes the padding: the same at both ends, at most half a window."""
        return self.begin == self.end and all(
            2 * pad <= size for pad, size in zip(self.begin, self.kernel, strict=True)
        )

    def without_padding(self) -> _Pool:
        none = (0,) * len(self.kernel)
        return _Pool(self.kernel, self.strides, self.dilations, none, none, self.ceil)


def _pool(reading: Reading, node: NodeProto, attributes: dict[str, Any]) -> tuple[fx.Node, _Pool]:
    x = reading.activation(node, 0)
    kernel = tuple(attributes["kernel_shape"] or ())
    if len(kernel) not in MAX_POOLS or len(x.meta["shape"]) != len(kernel) + 2:
        raise reading.refused(node, f"kernel_shape {list(kernel)} on an input of rank {len(x.meta['shape'])}")
    window = window_attributes(reading, node, attributes, kernel)
    others = reading.other_shape(x)[2:]
    begin, end = same_padding(reading, node, attributes, x.meta["shape"][2:], kernel, window, others)
    ceil = bool(attributes["ceil_mode"]) and not attributes["auto_pad"].startswith(b"SAME")
    return x, _Pool(kernel, window.strides, window.dilations, begin, end, ceil)


def _in_front(reading: Reading, x: fx.Node, pool: _Pool, value: float) -> tuple[fx.Node, _Pool]:
    """The padding as an operator in front."""
    pairs = dict(enumerate(zip(pool.begin, pool.end, strict=True), start=2))
    return padded(reading, x, pairs, value), pool.without_padding()


def read_max_pool(reading: Reading, node: NodeProto) -> fx.Node:
    """MaxPool-8, 10, 11, 12, 22. Padding that torch does not take becomes a pad with minus infinity in front."""
    attributes = reading.attributes(
        node, kernel_shape=None, strides=None, pads=None, dilations=None, auto_pad=b"NOTSET", ceil_mode=0,
        storage_order=0,
    )  # fmt: skip
    if len([name for name in node.output if name]) > 1 and reading.uses(node.output[1]):
        raise reading.unknown(node, "a MaxPool whose indices are read")
    x, pool = _pool(reading, node, attributes)
    if not pool.by_torch:
        x, pool = _in_front(reading, x, pool, float("-inf"))
    window = (list(pool.kernel), list(pool.strides), list(pool.begin), list(pool.dilations), pool.ceil)
    return reading.call(MAX_POOLS[len(pool.kernel)], x, *window)


def read_average_pool(reading: Reading, node: NodeProto) -> fx.Node:
    """AveragePool-7, 10, 11, 19, 22.

    Where padding that torch does not take is not counted, the average over the padded input is divided by that of ones.
    """
    attributes = reading.attributes(
        node, kernel_shape=None, strides=None, pads=None, dilations=None, auto_pad=b"NOTSET", ceil_mode=0,
        count_include_pad=0,
    )  # fmt: skip
    x, pool = _pool(reading, node, attributes)
    counted = bool(attributes["count_include_pad"])
    if set(pool.dilations) != {1}:
        return _dilated(reading, node, x, pool, counted)
    if pool.by_torch:
        return _average(reading, x, pool, counted)
    filled, bare = _in_front(reading, x, pool, 0.0)
    result = _average(reading, filled, bare, True)
    if counted:
        return result
    if any(reading.is_open(x, dim) for dim in range(2, len(x.meta["shape"]))):
        raise reading.unknown(node, f"pads {[*pool.begin, *pool.end]} that are not counted, of dynamic dimensions")
    share = _share(x.meta["shape"][2:], pool)
    if bool((share == 0).any()):
        raise reading.unknown(node, "a window that lies in the padding")
    return reading.call(aten.mul.Tensor, result, reading.add_constant(f"{node.name or x.name}.share", 1 / share))


def _average(reading: Reading, x: fx.Node, pool: _Pool, counted: bool) -> fx.Node:
    window = (list(pool.kernel), list(pool.strides), list(pool.begin), pool.ceil, counted)
    return reading.call(AVERAGE_POOLS[len(pool.kernel)], x, *window)


def _dilated(reading: Reading, node: NodeProto, x: fx.Node, pool: _Pool, counted: bool | None) -> fx.Node:
    """The average over dilated windows, for which ATen has nothing: parts of the input with a step, one dimension at a
    time, are added up and divided by their number. The sum alone where `counted` is None."""
    shape = x.meta["shape"][2:]
    if any(reading.is_open(x, dim) for dim in range(2, len(shape) + 2)):
        raise reading.unknown(node, f"dilations {list(pool.dilations)} on dynamic dimensions")
    numbers = np.ones([1] * (len(shape) + 2), dtype=np.float32)
    pairs = {}
    for index, size in enumerate(shape):
        padded_size = size + pool.begin[index] + pool.end[index]
        out = _windows(pool, index, size)
        starts = np.arange(out) * pool.strides[index]
        places = starts[:, None] + np.arange(pool.kernel[index]) * pool.dilations[index]  # (windows, taps)
        first, last = (0, padded_size) if counted else (pool.begin[index], pool.begin[index] + size)
        inside = ((places >= first) & (places < last)).sum(1).astype(np.float32)
        numbers = numbers * inside.reshape([-1 if dim == index + 2 else 1 for dim in range(len(shape) + 2)])
        pairs[index + 2] = (pool.begin[index], max(pool.end[index], int(places.max()) + 1 - size - pool.begin[index]))
    x = padded(reading, x, pairs)
    for index in range(len(shape)):
        span = (_windows(pool, index, shape[index]) - 1) * pool.strides[index] + 1
        offsets = [tap * pool.dilations[index] for tap in range(pool.kernel[index])]
        parts = [sliced(reading, x, index + 2, start, start + span, pool.strides[index]) for start in offsets]
        x = parts[0]
        for part in parts[1:]:
            x = reading.call(aten.add.Tensor, x, part)
    if counted is None:
        return x
    if not numbers.all():
        raise reading.unknown(node, "a window that lies in the padding")
    share = torch.from_numpy(1 / numbers)
    return reading.call(aten.mul.Tensor, x, reading.add_constant(f"{node.name or x.name}.share", share))


def _windows(pool: _Pool, index: int, size: int) -> int:
    """How many windows there are along a dimension; with `ceil` the last one starts inside."""
    span = (pool.kernel[index] - 1) * pool.dilations[index] + 1
    left = size + pool.begin[index] + pool.end[index] - span
    count = left // pool.strides[index] + 1
    started = pool.ceil and left % pool.strides[index] and count * pool.strides[index] < size + pool.begin[index]
    return count + 1 if started else count


def _share(size: Sequence[int], pool: _Pool) -> Tensor:
    """Of each window, how much of it is no padding, (1, 1, ...)."""
    amounts = [amount for pair in zip(reversed(pool.begin), reversed(pool.end), strict=True) for amount in pair]
    ones = F.pad(torch.ones(1, 1, *size), amounts)
    average = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(pool.kernel)]
    made: Tensor = average(ones, pool.kernel, pool.strides, 0, pool.ceil)
    return made


def read_lp_pool(reading: Reading, node: NodeProto) -> fx.Node:
    """LpPool-2, 11, 18, 22: (sum of |x|^p)^(1/p), by way of the average of the powers. Padding adds nothing."""
    attributes = reading.attributes(
        node, kernel_shape=None, strides=None, pads=None, dilations=None, auto_pad=b"NOTSET", ceil_mode=0, p=2
    )
    order = int(attributes["p"])
    if order < 1:
        raise reading.refused(node, f"p is {order}; it is 1 or more")
    x, pool = _pool(reading, node, attributes)
    x = reading.call(aten.abs.default, x)
    x = x if order == 1 else reading.call(aten.pow.Tensor_Scalar, x, float(order))
    if set(pool.dilations) != {1} or pool.ceil:
        x = _dilated(reading, node, x, pool, None)
    else:
        if not pool.by_torch:
            x, pool = _in_front(reading, x, pool, 0.0)
        x = reading.call(aten.mul.Tensor, _average(reading, x, pool, True), float(math.prod(pool.kernel)))
    return x if order == 1 else reading.call(aten.pow.Tensor_Scalar, x, 1 / order)


def space_rule(p: Propagation, node: fx.Node) -> Tensor:
    """A window sees one channel only: the channel's ids pass. Channels that lie along space are mixed: frozen."""
    ids = p.ids[source(node)]
    first = ids
    for dim in range(2, ids.dim()):
        first = first.narrow(dim, 0, 1)
    if not bool((ids == first).all()):
        return p.frozen_result([ids], node, "it mixes places along which channels lie")
    return first.expand(node.meta["shape"])


def _window(node: fx.Node) -> tuple[list[int], list[int], list[int]]:
    """Kernel, strides and padding, one per dimension; torch lets the strides be left out, and one number be all."""
    rank = len(node.meta["shape"]) - 2

    def each(value: Any, default: list[int]) -> list[int]:
        numbers = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
        return [int(size) for size in (numbers * rank if len(numbers) == 1 else numbers)] or default

    kernel = each(argument(node, 1), [])
    return kernel, each(argument(node, 2), kernel), each(argument(node, 3), [0] * rank)


def _needs_ends(writing: Writing, node: fx.Node, dilations: list[int]) -> bool:
    """Whether ceil_mode must be said by padding: before opset 10, and where it makes a window that starts in the
    padding, which not every opset's definition leaves out."""
    if writing.opset < 10:
        return True
    kernel, strides, padding = _window(node)
    made = [
        -(-(size + 2 * pad - (width - 1) * dilation - 1) // stride) + 1
        for size, pad, width, dilation, stride in zip(
            source(node).meta["shape"][2:], padding, kernel, dilations, strides, strict=True
        )
    ]
    is_open = any(writing.is_open(source(node), dim) for dim in range(2, len(node.meta["shape"])))
    return made != list(node.meta["shape"][2:]) and not is_open


def _ends(writing: Writing, node: fx.Node, dilations: list[int], counted: bool, op_type: str) -> list[int]:
    """Instead of ceil_mode, which came with opset 10: the padding at the ends in which the last windows end."""
    kernel, strides, padding = _window(node)
    x, shape = source(node), node.meta["shape"]
    if any(writing.is_open(x, dim) for dim in range(2, len(shape))):
        raise writing.too_old(op_type, node, "with ceil_mode", 10)
    spans = [(width - 1) * dilation + 1 for width, dilation in zip(kernel, dilations, strict=True)]
    needed = [(out - 1) * stride + span for out, stride, span in zip(shape[2:], strides, spans, strict=True)]
    given = [size + pad for size, pad in zip(x.meta["shape"][2:], padding, strict=True)]
    ends = [max(0, wanted - have) for wanted, have in zip(needed, given, strict=True)]
    if counted and any(end > pad for end, pad in zip(ends, padding, strict=True)):
        raise writing.too_old(op_type, node, "with ceil_mode", 10)
    return ends


def _written_as_slice(writing: Writing, node: fx.Node) -> bool:
    """Writes a window of one place behind a Pad as a Slice with steps: ONNX Runtime 1.31 makes one node of a Pad and a
    pooling, and then refuses its own, since padding must be smaller than the window."""
    kernel, strides, _ = _window(node)
    if writing.opset < 10 or set(kernel) != {1} or source(node).target != aten.constant_pad_nd.default:
        return False
    rank = len(node.meta["shape"])
    columns = {"starts": [0] * len(strides), "ends": [2**63 - 1] * len(strides), "axes": [*range(2, rank)]}
    names = [
        writing.tensor(f"{node.name}.{key}", np.array(column, dtype=np.int64))
        for key, column in {**columns, "steps": strides}.items()
    ]
    writing.add("Slice", [writing.value(source(node)), *names], node)
    return True


def _write_max_pool(writing: Writing, node: fx.Node) -> None:
    """MaxPool-8; dilations and ceil_mode came with opset 10."""
    if _written_as_slice(writing, node):
        return
    kernel, strides, padding = _window(node)
    dilations, ceil = list(argument(node, 4) or [1]), bool(argument(node, 5))
    dilations = dilations * len(kernel) if len(dilations) == 1 else dilations
    if writing.opset < 10 and set(dilations) != {1}:
        raise writing.too_old("MaxPool", node, "with dilations", 10)
    ends = padding
    if ceil and _needs_ends(writing, node, dilations):
        ends, ceil = _ends(writing, node, dilations, False, "MaxPool"), False
    extra: dict[str, Any] = {"dilations": dilations, "ceil_mode": int(ceil)} if writing.opset >= 10 else {}
    writing.add(
        "MaxPool", [writing.value(source(node))], node,
        kernel_shape=kernel, strides=strides, pads=[*padding, *ends], **extra,
    )  # fmt: skip


def _write_average_pool(writing: Writing, node: fx.Node) -> None:
    """AveragePool-7; ceil_mode came with opset 10."""
    if _written_as_slice(writing, node):
        return
    kernel, strides, padding = _window(node)
    ceil, counted = bool(argument(node, 4)), bool(argument(node, 5, True))
    if argument(node, 6) is not None:
        raise writing.too_old("AveragePool", node, "with a divisor of its own", None)
    ends, ones = padding, [1] * len(kernel)
    if ceil and _needs_ends(writing, node, ones):
        ends, ceil = _ends(writing, node, ones, counted, "AveragePool"), False
    extra: dict[str, Any] = {"ceil_mode": int(ceil)} if writing.opset >= 10 else {}
    writing.add(
        "AveragePool", [writing.value(source(node))], node, kernel_shape=kernel, strides=strides,
        pads=[*padding, *ends], count_include_pad=int(counted), **extra,
    )  # fmt: skip


READERS = {"MaxPool": read_max_pool, "AveragePool": read_average_pool, "LpPool": read_lp_pool}
FORMS = {
    **dict.fromkeys(MAX_POOLS.values(), Form(space_rule, _write_max_pool)),
    **dict.fromkeys(AVERAGE_POOLS.values(), Form(space_rule, _write_average_pool)),
}
