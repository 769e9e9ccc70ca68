"""From ATen calls that multiply two tensors to canonical forms: products of matrices, einsum, attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch
from torch import fx

from core.graph.aten_layers import by_matrix
from core.graph.operators.einsum import Operand, einsum
from core.graph.pt2_lowering import Lowering
from core.graph.pt2_turned import aligned, permuted, seen
from core.graph.pt2_values import Activation, Call, Constant, Filled, Spread
from core.graph.turned import Layout, Turned, laid_out

aten = torch.ops.aten


# --- products of matrices --------------------------------------------------------------------------------------------


def matmul(low: Lowering, call: Call) -> Activation:
    """By a constant matrix on the right a linear layer; of two activations a product, row by row of the batch."""
    key = "mat2" if "mat2" in call.args else "other"
    other = call[key]
    if isinstance(other, Constant | Spread):
        other = _one_matrix(low, call, other)
    if isinstance(other, Constant) and other.value.dim() == 2:
        args = {**call.args, key: other}
        weight = low.weight(replace(call, args=args), key)
        return by_matrix(low, call, low.lifted(call, "self"), weight, None, turned=True)
    (a, b), layout = _matrices(low, call, "self", key)
    return low.placed(low.call(aten.matmul.default, a, b), layout)


def _one_matrix(low: Lowering, call: Call, item: Constant | Spread) -> Constant:
    """The matrix that a stack repeats (a linear layer decomposes to a product with one); else the stack as it is.

    Raises `OperatorUnknown` for one that is repeated more often than what it meets: the product would be larger.
    """
    constant = item.constant if isinstance(item, Spread) else item
    tensor, sizes = constant.value, low.shape(item)
    stack = tensor.dim() - 2
    same = all(tensor.shape[dim] == 1 or tensor.stride(dim) == 0 for dim in range(stack))
    if isinstance(item, Constant) and (stack < 1 or not same):
        return constant
    if not same or list(tensor.shape[-2:]) != sizes[-2:]:
        raise low.unknown(call, "a constant that is repeated otherwise than as matrices of a stack")
    met = low.shape(call["self"])[:-2][::-1]
    if len(sizes) - 2 > len(met) or any(size not in (1, met[axis]) for axis, size in enumerate(sizes[:-2][::-1])):
        raise low.unknown(call, "a stack of matrices that is larger than what it meets")
    return Constant(tensor[(0,) * max(stack, 0)], low.key("one of", constant.key), constant.parameter, constant.trained)


def _matrices(low: Lowering, call: Call, *keys: str) -> tuple[list[fx.Node], Layout]:
    """The arguments as nodes with the batch in front, and where it lies. Their last two dimensions are those of
    matrices, in front of them they are of the same dimensions; a constant is the same for all examples.

    Raises `OperatorUnknown` for a product along the batch.
    """
    given = {key: call[key] for key in keys}
    kept = {key: value for key, value in given.items() if not isinstance(value, Constant)}
    values = [value if isinstance(value, Turned) else seen(low.activation(call, key)) for key, value in kept.items()]
    matrices = 1 if isinstance(given[keys[-1]], Constant) else 2  # by a constant on the right, rows are multiplied
    if any(value.batch >= len(value.order) - matrices for value in values):
        raise low.unknown(call, "a product along the batch, which mixes the examples")
    if len({len(value.order) for value in values}) > 1:
        raise low.unknown(call, "a product of unlike ranks")
    lying = dict(zip(kept, aligned(low, call, values, in_order=True), strict=True))
    layout = laid_out(next(iter(lying.values())))[1]
    if layout != Layout() and any(value.value.dim() > 2 for value in given.values() if isinstance(value, Constant)):
        raise low.unknown(call, "a stack of constant matrices, one for each of the batch")
    return [lying[key].node if key in lying else low.activation(call, key) for key in keys], layout


def baddbmm(low: Lowering, call: Call) -> Activation:
    """beta c + alpha a b, row by row of the batch."""
    (a, b), layout = _matrices(low, call, "batch1", "batch2")
    result: Any = low.placed(low.call(aten.matmul.default, a, b), layout)
    if call["alpha"] != 1:
        result = low.pointwise(call, aten.mul.Tensor, result, float(call["alpha"]))
    if call["beta"] == 0:
        return result  # type: ignore[no-any-return]
    added = call["self"] if call["beta"] == 1 else low.pointwise(call, aten.mul.Tensor, call["self"], call["beta"])
    return low.pointwise(call, aten.add.Tensor, added, result)


# --- einsum ----------------------------------------------------------------------------------------------------------


def einsum_(low: Lowering, call: Call) -> Activation:
    """See `core/graph/operators/einsum.py`. A constant becomes the weight of a linear layer."""
    constants: dict[int, Constant] = {}
    operands: list[Operand] = []
    for index, value in enumerate(call["tensors"]):
        alone = replace(call, args={"tensors": value})
        if isinstance(value, Constant):
            constants[index] = low.weight(alone, "tensors")
            operands.append(constants[index].value.detach().numpy())
        else:
            operands.append(low.activation(alone, "tensors"))

    def layer(matrix: npt.NDArray[Any], x: fx.Node, index: int, shared: tuple[Any, ...]) -> fx.Node:
        made, of = torch.from_numpy(matrix.copy()), constants[index]
        weight = Constant(made, low.key("einsum", of.key, index, *shared), of.parameter, of.trained)
        result = by_matrix(low, call, (x, Layout()), weight, None, turned=False)
        assert isinstance(result, fx.Node), "nothing was folded"
        return result

    return einsum(low, call, str(call["equation"]), operands, layer)


# --- attention -------------------------------------------------------------------------------------------------------

UNSEEN = torch.finfo(torch.float32).min
"""A score that softmax makes 0 of, beside any other; -inf has no place in a graph of finite constants."""


def attention(low: Lowering, call: Call) -> Any:
    """softmax(scale q k' + mask) v, over (..., tokens, features)."""
    (query, key, value), layout = _matrices(low, call, "query", "key", "value")
    if call["dropout_p"] or call.args.get("enable_gqa"):
        raise low.unknown(call, "dropout or grouped queries")
    rank = len(query.meta["shape"])
    scale = call["scale"] if call["scale"] is not None else 1 / math.sqrt(query.meta["shape"][-1])
    order = [*range(rank - 2), rank - 1, rank - 2]
    scores: Any = low.call(aten.matmul.default, query, permuted(low, key, order))
    if scale != 1:
        scores = low.pointwise(call, aten.mul.Tensor, scores, float(scale))
    scores = _masked(low, call, scores, layout)
    shares = low.call(aten.softmax.int, scores, rank - 1)
    return low.placed(low.call(aten.matmul.default, shares, value), layout)


def _masked(low: Lowering, call: Call, scores: fx.Node, layout: Layout) -> Any:
    """`scores` with the mask added; of a mask of truth values, what is false is not seen. A causal one is that: query i
    sees the keys up to i."""
    mask = call.args.get("attn_mask")
    if call["is_causal"]:
        if mask is not None or low.is_open(scores, -1) or low.is_open(scores, -2):
            raise low.unknown(call, "a causal mask beside another one, or over a dynamic dimension of an input")
        sizes = scores.meta["shape"][-2:]
        low.charge(math.prod(sizes), call)
        mask = Constant(torch.ones(sizes, dtype=torch.bool).tril(), low.key("causal", *sizes))
    if mask is None:
        return scores
    if isinstance(mask, Spread):
        mask = mask.constant
    if isinstance(mask, Filled):
        raise low.unknown(call, "a mask of one number throughout")
    if layout != Layout() and len(low.shape(mask)) > 2:
        raise low.unknown(call, "a mask of its own for examples whose batch is not in front")
    if isinstance(mask, Constant) and mask.value.dtype == torch.bool:
        if not bool(mask.value.any(-1).all()):
            raise low.unknown(call, "a mask that hides every key from a query")
        return low.pointwise(call, aten.where.self, mask, scores, *low.numbers(UNSEEN))
    if isinstance(mask, fx.Node) and low.is_bool(mask):
        raise low.unknown(call, "a mask of truth values that depends on the input")
    return low.pointwise(call, aten.add.Tensor, scores, mask)


LOWERINGS: Mapping[str, Callable[[Lowering, Call], Any]] = {
    "matmul.default": matmul,
    "mm.default": matmul,
    "bmm.default": matmul,
    "baddbmm.default": baddbmm,
    "einsum.default": einsum_,
    "scaled_dot_product_attention.default": attention,
    "_scaled_dot_product_flash_attention_for_cpu.default": attention,
}
