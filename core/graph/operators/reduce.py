"""Reductions: ReduceMean, ReduceSum, ReduceMax, ReduceMin, ReduceProd, the norms and logarithms of sums, and global
pooling. Over space each channel is reduced by itself; over channels all of them are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, argument, source
from core.graph.operators.form import Form

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten
Make = Callable[["Reading", fx.Node, list[int], bool], fx.Node]
"""(reading, x, dimensions, whether they stay as ones) -> the reduced value."""


def _called(target: Any) -> Make:
    return lambda reading, x, dims, keep: reading.call(target, x, dims, keep)


def _norm(order: float) -> Make:
    return lambda reading, x, dims, keep: reading.call(aten.linalg_vector_norm.default, x, order, dims, keep)


def _prod(reading: Reading, x: fx.Node, dims: list[int], keep: bool) -> fx.Node:
    """ATen multiplies along one dimension at a time; the last first, so that the others keep their numbers."""
    for dim in sorted(dims, reverse=True):
        x = reading.call(aten.prod.dim_int, x, dim, keep)
    return x


def _sum_of_squares(reading: Reading, x: fx.Node, dims: list[int], keep: bool) -> fx.Node:
    return reading.call(aten.sum.dim_IntList, reading.call(aten.mul.Tensor, x, x), dims, keep)


def _log_of_sum(reading: Reading, x: fx.Node, dims: list[int], keep: bool) -> fx.Node:
    return reading.call(aten.log.default, reading.call(aten.sum.dim_IntList, x, dims, keep))


def _reader(make: Make, *, noop: bool = False) -> Callable[[Reading, NodeProto], fx.Node]:
    def read(reading: Reading, node: NodeProto) -> fx.Node:
        """Axes are an attribute up to opset 17 (ReduceSum: 12), then a constant input. Without any, each number may
        be left by itself; `noop` says that nothing happens to it then."""
        x = reading.activation(node, 0)
        rank = len(x.meta["shape"])
        given = reading.attributes(node, axes=None, keepdims=1, noop_with_empty_axes=0)
        axes = reading.integers(node, 1) if reading.given(node, 1) else given["axes"]
        if not axes and given["noop_with_empty_axes"]:
            if not noop:
                raise reading.unknown(node, "no axes, which leaves each number by itself")
            return x
        dims = sorted({reading.axis(node, axis, rank) for axis in (axes or range(rank))})
        if 0 in dims:
            raise reading.unknown(node, "a reduction over the batch")
        return make(reading, x, dims, bool(given["keepdims"]))

    return read


def _spatial(reading: Reading, node: NodeProto) -> tuple[fx.Node, list[int]]:
    x = reading.activation(node, 0)
    if len(x.meta["shape"]) < 3:
        raise reading.refused(node, "a global pooling needs at least one spatial dimension")
    return x, list(range(2, len(x.meta["shape"])))


def _global_reader(target: Any) -> Callable[[Reading, NodeProto], fx.Node]:
    def read(reading: Reading, node: NodeProto) -> fx.Node:
        reading.attributes(node)
        x, dims = _spatial(reading, node)
        return reading.call(target, x, dims, True)

    return read


def read_global_lp_pool(reading: Reading, node: NodeProto) -> fx.Node:
    """GlobalLpPool-2: the p-norm of all places."""
    order = int(reading.attributes(node, p=2)["p"])
    if order < 1:
        raise reading.refused(node, f"p is {order}; it is 1 or more")
    x, dims = _spatial(reading, node)
    if order in (1, 2):
        return reading.call(aten.linalg_vector_norm.default, x, float(order), dims, True)
    powers = reading.call(aten.pow.Tensor_Scalar, reading.call(aten.abs.default, x), float(order))
    return reading.call(aten.pow.Tensor_Scalar, reading.call(aten.sum.dim_IntList, powers, dims, True), 1 / order)


def _ids_reduced(p: Propagation, node: fx.Node, dims: list[int], keep: bool) -> Tensor:
    """Over space the channels' ids pass, over a stack of branches they are united. Over the channels: frozen (a mean
    divides by their number)."""
    ids = p.ids[source(node)]
    gone = {dim % ids.dim() for dim in dims}
    first = p.merged(ids, gone)
    if first is None:
        return p.frozen_result([ids], node, "a reduction over the channels needs all of them")
    return first if keep else first.squeeze(tuple(gone))


def reduced_dims(node: fx.Node, place: int) -> list[int]:
    """The dimensions, counted from the front; all but the batch where they are left out."""
    rank = len(source(node).meta["shape"])
    given = argument(node, place)
    if given is None or given == []:
        return list(range(rank))
    return sorted(int(dim) % rank for dim in (given if isinstance(given, list | tuple) else [given]))


def _rule(place: int) -> Callable[[Propagation, fx.Node], Tensor]:
    def rule(p: Propagation, node: fx.Node) -> Tensor:
        return _ids_reduced(p, node, reduced_dims(node, place), bool(argument(node, place + 1, False)))

    return rule


reduce_rule = _rule(1)


def _write(
    writing: Writing, node: fx.Node, op_type: str, place: int, axes_input: int, global_type: str | None = None
) -> None:
    """The global form where it says the same: every opset has it."""
    shape = source(node).meta["shape"]
    dims = reduced_dims(node, place)
    keep = bool(argument(node, place + 1, False))
    x = writing.value(source(node))
    if global_type and keep and len(shape) > 2 and dims == list(range(2, len(shape))):
        writing.add(global_type, [x], node)
    elif writing.opset < axes_input:
        writing.add(op_type, [x], node, axes=dims, keepdims=int(keep))
    else:
        axes = writing.tensor(f"{node.name}.axes", np.array(dims, dtype=np.int64))
        writing.add(op_type, [x, axes], node, keepdims=int(keep))


def _writer(
    op_type: str, place: int = 1, axes_input: int = 18, global_type: str | None = None
) -> Callable[[Writing, fx.Node], None]:
    return lambda writing, node: _write(writing, node, op_type, place, axes_input, global_type)


def write_vector_norm(writing: Writing, node: fx.Node) -> None:
    """ReduceL1, ReduceL2."""
    order = float(argument(node, 1, 2))
    if order not in (1, 2):
        raise writing.too_old("ReduceL2", node, f"of the order {order}", None)
    _write(writing, node, f"ReduceL{int(order)}", 2, 18)


READERS = {
    "GlobalAveragePool": _global_reader(aten.mean.dim),
    "GlobalMaxPool": _global_reader(aten.amax.default),
    "GlobalLpPool": read_global_lp_pool,
    "ReduceMean": _reader(_called(aten.mean.dim), noop=True),
    "ReduceMax": _reader(_called(aten.amax.default), noop=True),
    "ReduceMin": _reader(_called(aten.amin.default), noop=True),
    "ReduceSum": _reader(_called(aten.sum.dim_IntList), noop=True),
    "ReduceProd": _reader(_prod, noop=True),
    "ReduceL1": _reader(_norm(1.0)),
    "ReduceL2": _reader(_norm(2.0)),
    "ReduceLogSumExp": _reader(_called(aten.logsumexp.default)),
    "ReduceLogSum": _reader(_log_of_sum),
    "ReduceSumSquare": _reader(_sum_of_squares),
}
FORMS = {
    aten.mean.dim: Form(reduce_rule, _writer("ReduceMean", global_type="GlobalAveragePool")),
    aten.amax.default: Form(reduce_rule, _writer("ReduceMax", global_type="GlobalMaxPool")),
    aten.amin.default: Form(reduce_rule, _writer("ReduceMin")),
    aten.sum.dim_IntList: Form(reduce_rule, _writer("ReduceSum", axes_input=13)),
    aten.prod.dim_int: Form(reduce_rule, _writer("ReduceProd")),
    aten.logsumexp.default: Form(reduce_rule, _writer("ReduceLogSumExp")),
    aten.linalg_vector_norm.default: Form(_rule(2), write_vector_norm),
}
