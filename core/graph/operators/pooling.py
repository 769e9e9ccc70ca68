"""Pooling over space: MaxPool, AveragePool, their global forms, ReduceMean, ReduceMax."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, source
from core.graph.operators.form import Form
from core.graph.operators.windows import Window, same_padding, window_attributes

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten
MAX_POOLS = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}
AVERAGE_POOLS = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}


def _ceil_matters(reading: Reading, node: NodeProto, x: fx.Node, window: Any) -> bool:
    """Whether rounding up makes another size than rounding down. Where ONNX and torch differ on it, it is refused."""
    kernel, strides, dilations, begin, end = window
    matters = False
    for index, size in enumerate(x.meta["shape"][2:]):
        span = size + begin[index] + end[index] - ((kernel[index] - 1) * dilations[index] + 1)
        if span % strides[index] and not reading.dynamic_space:
            last = (span // strides[index] + 1) * strides[index]
            if last >= size + begin[index]:
                raise reading.unknown(node, "ceil_mode = 1 with a last window that lies in the padding")
            matters = True
        matters = matters or reading.dynamic_space
    return matters


def read_max_pool(reading: Reading, node: NodeProto) -> fx.Node:
    """MaxPool-8, 10, 11, 12, 22. Padding that differs at the two ends becomes a pad with minus infinity in front."""
    attributes = reading.attributes(
        node,
        kernel_shape=None,
        strides=None,
        pads=None,
        dilations=None,
        auto_pad=b"NOTSET",
        ceil_mode=0,
        storage_order=0,
    )
    if len([name for name in node.output if name]) > 1 and reading.uses(node.output[1]):
        raise reading.unknown(node, "a MaxPool whose indices are read")
    x, kernel, window, begin, end = _pool_inputs(reading, node, attributes)
    ceil = bool(attributes["ceil_mode"]) and _ceil_matters(
        reading, node, x, (kernel, window.strides, window.dilations, begin, end)
    )
    if begin != end or any(2 * pad > width for pad, width in zip(begin, kernel, strict=True)):
        amounts = [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]
        x = reading.call(aten.constant_pad_nd.default, x, amounts, float("-inf"))
        begin = (0,) * len(kernel)
    target = MAX_POOLS[len(kernel)]
    return reading.call(target, x, list(kernel), list(window.strides), list(begin), list(window.dilations), ceil)


def read_average_pool(reading: Reading, node: NodeProto) -> fx.Node:
    """AveragePool-7, 10, 11, 19, 22, with equal padding at both ends and no dilation."""
    attributes = reading.attributes(
        node, kernel_shape=None, strides=None, pads=None, dilations=None, auto_pad=b"NOTSET", ceil_mode=0,
        count_include_pad=0,
    )  # fmt: skip
    x, kernel, window, begin, end = _pool_inputs(reading, node, attributes)
    if attributes["ceil_mode"] and _ceil_matters(
        reading, node, x, (kernel, window.strides, window.dilations, begin, end)
    ):
        raise reading.unknown(node, "an average over windows that end outside (ceil_mode = 1)")
    if set(window.dilations) != {1}:
        raise reading.unknown(node, f"dilations {list(window.dilations)}")
    include = bool(attributes["count_include_pad"])
    if begin != end or any(2 * pad > width for pad, width in zip(begin, kernel, strict=True)):
        if not include:
            raise reading.unknown(node, f"an average with pads {[*begin, *end]} that are not counted")
        amounts = [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]
        x = reading.call(aten.constant_pad_nd.default, x, amounts, 0.0)
        begin = (0,) * len(kernel)
    target = AVERAGE_POOLS[len(kernel)]
    return reading.call(target, x, list(kernel), list(window.strides), list(begin), False, include)


def _pool_inputs(
    reading: Reading, node: NodeProto, attributes: dict[str, Any]
) -> tuple[fx.Node, tuple[int, ...], Window, tuple[int, ...], tuple[int, ...]]:
    x = reading.activation(node, 0)
    kernel = tuple(attributes["kernel_shape"] or ())
    if len(kernel) not in MAX_POOLS or len(x.meta["shape"]) != len(kernel) + 2:
        raise reading.refused(node, f"kernel_shape {list(kernel)} on an input of rank {len(x.meta['shape'])}")
    window = window_attributes(reading, node, attributes, kernel)
    return x, kernel, window, *same_padding(reading, node, attributes, x.meta["shape"][2:], kernel, window)


def space_rule(p: Propagation, node: fx.Node) -> Tensor:
    """A window sees one channel only: the channel's ids pass."""
    return p.spread(p.along(p.ids[source(node)], 1), node)


def _write_max_pool(writing: Writing, node: fx.Node) -> None:
    """MaxPool-8; dilations and ceil_mode came with opset 10."""
    kernel: list[int] = argument(node, 1)
    strides, padding = argument(node, 2) or kernel, argument(node, 3) or [0] * len(kernel)
    dilations, ceil = argument(node, 4) or [1] * len(kernel), bool(argument(node, 5))
    extra: dict[str, Any] = {}
    if writing.opset < 10:
        if set(dilations) != {1} or ceil:
            raise writing.too_old("MaxPool", node, "with dilations or ceil_mode", 10)
    else:
        extra = {"dilations": list(dilations), "ceil_mode": int(ceil)}
    writing.add(
        "MaxPool", [writing.value(source(node))], node,
        kernel_shape=list(kernel), strides=list(strides), pads=[*padding, *padding], **extra,
    )  # fmt: skip


def _write_average_pool(writing: Writing, node: fx.Node) -> None:
    """AveragePool-7."""
    kernel: list[int] = argument(node, 1)
    strides, padding = argument(node, 2) or kernel, argument(node, 3) or [0] * len(kernel)
    ceil, include = bool(argument(node, 4)), bool(argument(node, 5, True))
    if ceil:
        raise writing.too_old("AveragePool", node, "with ceil_mode", None)
    writing.add(
        "AveragePool", [writing.value(source(node))], node, kernel_shape=list(kernel), strides=list(strides),
        pads=[*padding, *padding], count_include_pad=int(include),
    )  # fmt: skip


def _reduce_reader(target: Any) -> Callable[[Reading, NodeProto], fx.Node]:
    def read(reading: Reading, node: NodeProto) -> fx.Node:
        """Axes are an attribute up to opset 17 (ReduceMean, ReduceMax), then a constant input."""
        x = reading.activation(node, 0)
        rank = len(x.meta["shape"])
        given = reading.attributes(node, axes=None, keepdims=1, noop_with_empty_axes=0)
        axes = given["axes"]
        if reading.given(node, 1):
            axes = reading.integers(node, 1)
        if not axes and given["noop_with_empty_axes"]:
            return x
        dims = sorted({reading.axis(node, axis, rank) for axis in (axes or range(rank))})
        if 0 in dims:
            raise reading.unknown(node, "a reduction over the batch")
        return reading.call(target, x, dims, bool(given["keepdims"]))

    return read


def _global_reader(target: Any) -> Callable[[Reading, NodeProto], fx.Node]:
    def read(reading: Reading, node: NodeProto) -> fx.Node:
        reading.attributes(node)
        x = reading.activation(node, 0)
        if len(x.meta["shape"]) < 3:
            raise reading.refused(node, "a global pooling needs at least one spatial dimension")
        return reading.call(target, x, list(range(2, len(x.meta["shape"]))), True)

    return read


def reduce_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Over space the channels' ids pass. Over the channels: frozen (a mean divides by their number)."""
    ids = p.ids[source(node)]
    dims: list[int] = list(argument(node, 1))
    keep = bool(argument(node, 2, False))
    first = ids
    for dim in dims:
        first = first.narrow(dim, 0, 1)
    if not bool((ids == first).all()):
        return p.frozen_result([ids], node, "a reduction over the channels needs all of them")
    if keep:
        return first
    return first.reshape(
        [size for dim, size in enumerate(first.shape) if dim % ids.dim() not in {d % ids.dim() for d in dims}]
    )


def _reduce_writer(op_type: str, global_type: str, axes_input: int) -> Callable[[Writing, fx.Node], None]:
    def write(writing: Writing, node: fx.Node) -> None:
        """The global form where it says the same: every opset has it."""
        shape = source(node).meta["shape"]
        dims = [int(dim) % len(shape) for dim in argument(node, 1)]
        keep = bool(argument(node, 2, False))
        x = writing.value(source(node))
        if keep and len(shape) > 2 and sorted(dims) == list(range(2, len(shape))):
            writing.add(global_type, [x], node)
        elif writing.opset < axes_input:
            writing.add(op_type, [x], node, axes=dims, keepdims=int(keep))
        else:
            axes = writing.tensor(f"{node.name}.axes", np.array(dims, dtype=np.int64))
            writing.add(op_type, [x, axes], node, keepdims=int(keep))

    return write


READERS = {
    "MaxPool": read_max_pool,
    "AveragePool": read_average_pool,
    "GlobalAveragePool": _global_reader(aten.mean.dim),
    "GlobalMaxPool": _global_reader(aten.amax.default),
    "ReduceMean": _reduce_reader(aten.mean.dim),
    "ReduceMax": _reduce_reader(aten.amax.default),
}
FORMS = {
    **{target: Form(space_rule, _write_max_pool) for target in MAX_POOLS.values()},
    **{target: Form(space_rule, _write_average_pool) for target in AVERAGE_POOLS.values()},
    aten.mean.dim: Form(reduce_rule, _reduce_writer("ReduceMean", "GlobalAveragePool", 18)),
    aten.amax.default: Form(reduce_rule, _reduce_writer("ReduceMax", "GlobalMaxPool", 18)),
}
