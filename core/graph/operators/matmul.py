"""Products of matrices. ONNX `MatMul` by a constant matrix <-> `nn.Linear`, of anything else <-> `aten.matmul`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from onnx import NodeProto
from torch import Tensor, fx

from core.graph.ids import Propagation, compressed, source
from core.graph.operators.form import Form
from core.graph.operators.linear import ALONE, linear

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten


def read_matmul(reading: Reading, node: NodeProto) -> fx.Node:
    """MatMul-9, 13. A bias is put in by `raise_bias`."""
    reading.attributes(node)
    constants = [reading.is_constant(name) for name in node.input]
    if all(constants):
        raise reading.unknown(node, "constants only, which cannot be folded")
    if any(constants):
        left = constants[0]
        found = _by_constant(reading, node, left)
        return found if found is not None else _by_stack(reading, node, left)
    a, b = reading.activation(node, 0), reading.activation(node, 1)
    return product(reading, node, a, b)


def product(reading: Reading, node: NodeProto, a: fx.Node, b: fx.Node) -> fx.Node:
    """Of two activations: matrices in the last two dimensions, one for each example."""
    ranks = [len(item.meta["shape"]) for item in (a, b)]
    if ranks[0] != ranks[1] or ranks[0] < 3:
        raise reading.unknown(
            node, f"a product of activations of rank {ranks[0]} and {ranks[1]}, which mixes the batch"
        )
    return reading.call(aten.matmul.default, a, b)


def _by_constant(reading: Reading, node: NodeProto, left: bool) -> fx.Node | None:
    """x W as a Linear, W x as a Linear between two transposes; None where the constant is a stack of matrices."""
    x = reading.activation(node, 1 if left else 0)
    index = 0 if left else 1
    weight = reading.weight(node, index)
    rank = len(x.meta["shape"])
    if weight.ndim > 2:
        if weight.ndim > rank or math.prod(weight.shape[:-2]) != 1:
            return None
        weight = weight.reshape(weight.shape[-2:])
    if left and rank < 3:
        raise reading.unknown(node, "a constant on the left of a matrix, a sum over the batch")
    if rank < 2:
        raise reading.unknown(node, f"an input of rank {rank}")
    vector = weight.ndim == 1
    weight = weight[None, :] if vector else weight if left else weight.T
    order = [*range(rank - 2), rank - 1, rank - 2]
    x = reading.call(aten.permute.default, x, order) if left else x
    if weight.shape[1] != x.meta["shape"][-1]:
        raise reading.refused(node, f"a weight for {weight.shape[1]} inputs meets {x.meta['shape'][-1]}")
    shared = (node.input[index], index)
    made = reading.layer(node, node.input[index], lambda: linear(reading, weight), x, shared=shared)
    made.meta[ALONE] = reading.uses(node.input[index]) == 1
    if vector:
        return reading.call(aten.squeeze.dims, made, [rank - 1])
    return reading.call(aten.permute.default, made, order) if left else made


def _by_stack(reading: Reading, node: NodeProto, left: bool) -> fx.Node:
    """One constant matrix for each place of the dimensions behind the batch."""
    index = 0 if left else 1
    x, stack = reading.activation(node, 1 - index), reading.weight(node, index)
    rank = len(x.meta["shape"])
    if rank < 3 or stack.ndim > rank or (stack.ndim == rank and stack.shape[0] != 1):
        raise reading.unknown(node, f"constant matrices of shape {list(stack.shape)}, one for each of the batch")
    constant = reading.constant_node(node, index)
    return reading.call(aten.matmul.default, *((constant, x) if left else (x, constant)))


def matmul_rule(p: Propagation, node: fx.Node) -> Tensor:
    """(…, n, k) @ (…, k, m): it sums over k, so that channels along k stay. Those of one side along n or m pass where
    the other side has none: the values of an attention block, whose queries and keys stay."""
    a, b = (p.ids[source(node, index)] for index in (0, 1))
    shape = node.meta["shape"]
    varying = _varying(a), _varying(b)
    for one, other, mine, contracted in ((a, b, varying[0], -1), (b, a, varying[1], -2)):
        theirs = varying[1] if one is a else varying[0]
        if mine and not theirs and one.dim() + contracted not in mine:
            p.freeze(other, node, "it is multiplied with all channels of another tensor")
            _tie_stack(p, one, source(node, 1 if one is a else 0))
            return one.narrow(contracted, 0, 1).expand(shape)
    return p.frozen_result([a, b], node, "a product of two activations needs all channels that it sums over")


def _tie_stack(p: Propagation, ids: Tensor, other: fx.Node) -> None:
    """Unites channels along the dimensions that tell the matrices of a stack apart (heads), where `other` has as many:
    none of its matrices goes, so that the same channels of each go."""
    shape = other.meta["shape"]
    dims = [dim for dim in range(1, ids.dim() - 2) if shape[dim - ids.dim()] > 1] if len(shape) == ids.dim() else []
    for dim in dims:
        p.unite(ids, ids.narrow(dim, 0, 1).expand_as(ids))


def _varying(ids: Tensor) -> list[int]:
    (small,) = compressed(ids)
    return [dim for dim in range(ids.dim()) if bool((small != small.narrow(dim, 0, 1)).any())]


def write_matmul(writing: Writing, node: fx.Node) -> None:
    """MatMul-1 and its successors."""
    writing.add("MatMul", [writing.value(source(node, index)) for index in (0, 1)], node)


READERS = {"MatMul": read_matmul}
FORMS = {aten.matmul.default: Form(matmul_rule, write_matmul)}
