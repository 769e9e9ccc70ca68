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
from core.graph.aten_shape import permuted
from core.graph.operators.einsum import Operand, einsum
from core.graph.pt2_lowering import Lowering
from core.graph.pt2_values import Activation, Call, Constant, Filled, Spread

aten = torch.ops.aten


# --- products of matrices --------------------------------------------------------------------------------------------


def matmul(low: Lowering, call: Call) -> Activation:
    """By a constant matrix on the right a linear layer; of two activations a product, row by row of the batch."""
    key = "mat2" if "mat2" in call.args else "other"
    other = call[key]
    if isinstance(other, Spread):
        other = other.constant
    if isinstance(other, Constant) and other.value.dim() == 2:
        args = {**call.args, key: other}
        weight = low.weight(replace(call, args=args), key)
        return by_matrix(low, call, low.rows(call, "self"), weight, None, turned=True)
    (a, folded), (b, other_folded) = low.rows(call, "self"), low.rows(call, key)
    if call.operator != "matmul.default" and (folded != other_folded or isinstance(other, Constant)):
        raise low.unknown(call, "a product along the batch")
    if call.operator == "matmul.default" and folded == other_folded == 1:
        ranks = len(a.meta["shape"]), len(b.meta["shape"])
        if ranks[0] != ranks[1] and not isinstance(other, Constant) and not isinstance(call["self"], Constant):
            raise low.unknown(call, f"a product of ranks {ranks[0]} and {ranks[1]}")
    return low.folded_rows(low.call(aten.matmul.default, a, b), folded)


def baddbmm(low: Lowering, call: Call) -> Activation:
    """beta c + alpha a b, row by row of the batch."""
    (a, folded), (b, other_folded) = low.rows(call, "batch1"), low.rows(call, "batch2")
    if folded != other_folded:
        raise low.unknown(call, "a product along the batch")
    result: Any = low.folded_rows(low.call(aten.matmul.default, a, b), folded)
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
        result = by_matrix(low, call, (x, 1), weight, None, turned=False)
        assert isinstance(result, fx.Node), "nothing was folded"
        return result

    return einsum(low, call, str(call["equation"]), operands, layer)


# --- attention -------------------------------------------------------------------------------------------------------

UNSEEN = torch.finfo(torch.float32).min
"""A score that softmax makes 0 of, beside any other; -inf has no place in a graph of finite constants."""


def attention(low: Lowering, call: Call) -> Any:
    """softmax(scale q k' + mask) v, over (..., tokens, features)."""
    query, key, value = (low.rows(call, name) for name in ("query", "key", "value"))
    if call["dropout_p"] or call.args.get("enable_gqa"):
        raise low.unknown(call, "dropout or grouped queries")
    if len({query[1], key[1], value[1]}) != 1:
        raise low.unknown(call, "operands whose batch lies in different places")
    rank = len(query[0].meta["shape"])
    scale = call["scale"] if call["scale"] is not None else 1 / math.sqrt(query[0].meta["shape"][-1])
    order = [*range(rank - 2), rank - 1, rank - 2]
    scores: Any = low.call(aten.matmul.default, query[0], permuted(low, key[0], order))
    if scale != 1:
        scores = low.pointwise(call, aten.mul.Tensor, scores, float(scale))
    scores = _masked(low, call, scores, query[1])
    shares = low.call(aten.softmax.int, scores, rank - 1)
    return low.folded_rows(low.call(aten.matmul.default, shares, value[0]), query[1])


def _masked(low: Lowering, call: Call, scores: fx.Node, folded: int) -> Any:
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
    if isinstance(mask, Filled):
        raise low.unknown(call, "a mask of one number throughout")
    if folded > 1 and len(low.shape(mask)) > 2:
        raise low.unknown(call, "a mask of its own for examples whose batch is folded into other dimensions")
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
