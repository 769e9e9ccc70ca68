"""From ATen calls that pool, reduce and resize to canonical forms. None of them may reach over the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from core.graph.aten_shape import text
from core.graph.operators.pooling import AVERAGE_POOLS, MAX_POOLS
from core.graph.operators.resize import resize_like
from core.graph.pt2_lowering import Lowering
from core.graph.pt2_sizes import Size, quotient
from core.graph.pt2_turned import seen, settled
from core.graph.pt2_values import Call
from core.graph.turned import Turned

aten = torch.ops.aten
Lower = Callable[[Lowering, Call], Any]


# --- windows ---------------------------------------------------------------------------------------------------------


def _space(low: Lowering, call: Call, key: str, rank: int) -> list[int]:
    """One number per dimension of space; ATen takes one for all, and none for the stride."""
    values = low.integers(call, key) if isinstance(call[key], list) else [low.integer(call, key)]
    if not values and key == "stride":
        return _space(low, call, "kernel_size", rank)
    values = values * rank if len(values) == 1 else values
    if len(values) != rank:
        raise low.refused(call, f"{key!r} has {len(values)} numbers on {rank} dimensions")
    return values


def _rank(low: Lowering, call: Call, x: fx.Node) -> int:
    rank = next(int(letter) for letter in call.operator.partition(".")[0] if letter.isdigit())
    if len(x.meta["shape"]) != rank + 2:
        raise low.unknown(call, f"an input of rank {len(x.meta['shape'])} (the batch and the channels are in front)")
    return rank


def _ceil(low: Lowering, call: Call, x: fx.Node, window: tuple[list[int], ...]) -> bool:
    """Whether rounding up can make another size than rounding down."""
    spans = zip(low.shape(x)[2:], *window, strict=True)
    return bool(call["ceil_mode"]) and any(
        isinstance(size, Size) or (size + 2 * pad - (kernel - 1) * dilation - 1) % stride
        for size, kernel, stride, pad, dilation in spans
    )


def max_pool(low: Lowering, call: Call) -> fx.Node:
    """With or without indices; they may not be read."""
    x = low.activation(call, "self")
    rank = _rank(low, call, x)
    kernel, stride, padding, dilation = window = tuple(
        _space(low, call, key, rank) for key in ("kernel_size", "stride", "padding", "dilation")
    )
    return low.call(MAX_POOLS[rank], x, kernel, stride, padding, dilation, _ceil(low, call, x, window))


def average_pool(low: Lowering, call: Call) -> fx.Node:
    x = low.activation(call, "self")
    rank = _rank(low, call, x)
    kernel, stride, padding = (_space(low, call, key, rank) for key in ("kernel_size", "stride", "padding"))
    divisor = call.args.get("divisor_override")
    counted = bool(call["count_include_pad"])
    ceil = _ceil(low, call, x, (kernel, stride, padding, [1] * rank))
    if divisor is not None and (ceil or (any(padding) and not counted)):
        raise low.unknown(call, f"a divisor of {divisor} with windows that reach past the input")
    made = low.call(AVERAGE_POOLS[rank], x, kernel, stride, padding, ceil, counted)
    return (
        made
        if divisor is None
        else low.call(aten.mul.Tensor, made, math.prod(kernel) / low.fixed(call, divisor, "divisor"))
    )


def adaptive(reduce: Any, pools: Mapping[int, Any]) -> Lower:
    """To one number per channel: a reduction. To as many as there are: nothing. Evenly: a pooling."""

    def lower(low: Lowering, call: Call) -> Any:
        x = low.activation(call, "self")
        rank = _rank(low, call, x)
        sizes = low.shape(x)[2:]
        given = call["output_size"] if isinstance(call["output_size"], list) else [call["output_size"]]
        given = given * rank if len(given) == 1 else given
        if len(given) != rank:
            raise low.refused(call, f"'output_size' has {len(given)} numbers on {rank} dimensions")
        wanted = [size if out is None else out for out, size in zip(given, sizes, strict=True)]
        if wanted == sizes:
            return x
        ones = [dim for dim, out in enumerate(wanted, start=2) if out == 1]
        if len(ones) == rank:
            return low.call(reduce, x, ones, True)
        rest = [(dim, out, sizes[dim - 2]) for dim, out in enumerate(wanted, start=2) if out not in (1, sizes[dim - 2])]
        if ones:  # one dimension after the other
            x = low.call(reduce, x, ones, True)
        if not rest:
            return x
        if any(isinstance(size, Size) or isinstance(out, Size) for _, out, size in rest):
            raise low.unknown(call, "an input with dynamic sizes that is pooled to fixed ones")
        if any(out < 1 for _, out, _ in rest):
            raise low.refused(call, f"an output of {wanted}")
        if all(size % out == 0 for _, out, size in rest):
            kernel = [1] * rank
            for dim, out, size in rest:
                kernel[dim - 2] = size // out
            return _even(low, pools[rank], x, kernel)
        return _uneven(low, call, x, rest, average=reduce is aten.mean.dim)

    return lower


def _even(low: Lowering, pool: Any, x: fx.Node, kernel: list[int]) -> fx.Node:
    nothing = [0] * len(kernel)
    if pool in MAX_POOLS.values():
        return low.call(pool, x, kernel, kernel, nothing, [1] * len(kernel), False)
    return low.call(pool, x, kernel, kernel, nothing, False, True)


def _uneven(low: Lowering, call: Call, x: fx.Node, rest: list[tuple[int, int, int]], *, average: bool) -> fx.Node:
    """Windows of several sizes, one dimension after the other: each a slice, reduced, and all of them joined."""
    for dim, out, size in rest:
        if out > 64:
            raise low.unknown(call, f"{out} windows of several sizes")
        pieces = []
        for index in range(out):
            start, end = index * size // out, -(-(index + 1) * size // out)
            piece = low.call(aten.slice.Tensor, x, dim, start, end, 1)
            pieces.append(low.call(aten.mean.dim if average else aten.amax.default, piece, [dim], True))
        x = low.call(aten.cat.default, pieces, dim)
    return x


# --- reductions ------------------------------------------------------------------------------------------------------


def _dims(low: Lowering, call: Call, value: Any) -> tuple[fx.Node, list[int], Callable[[fx.Node, bool], Any]]:
    """The node, its dimensions to reduce, and how to wrap the result by whether they are kept."""
    rank = len(low.shape(value))
    given = call.args.get("dim")
    listed = list(range(rank)) if given is None or given == [] else given if isinstance(given, list) else [given]
    dims = sorted({low.dim(call, low.fixed(call, dim, "dim"), rank) for dim in listed})
    lying = seen(value if isinstance(value, Turned) else low.activation(call, "self"))
    inner = sorted(lying.dim(dim) for dim in dims)
    if 0 in inner:
        raise low.unknown(call, "a reduction over the batch")

    def wrap(node: fx.Node, keep: bool) -> Any:
        return settled(low, Turned(node, lying.order if keep else lying.without(set(dims))))

    return lying.node, inner, wrap


def reduction(target: Any) -> Lower:
    """mean, sum, amax, amin over several dimensions."""

    def lower(low: Lowering, call: Call) -> Any:
        if call.args.get("dtype") not in (None, torch.float32):
            raise low.unknown(call, f"numbers of type {str(call['dtype']).removeprefix('torch.')}")
        node, dims, wrap = _dims(low, call, call["self"])
        keep = bool(call["keepdim"])
        return wrap(low.call(target, node, dims, keep), keep)

    return lower


def product(low: Lowering, call: Call) -> Any:
    node, dims, wrap = _dims(low, call, call["self"])
    keep = bool(call["keepdim"])
    return wrap(low.call(aten.prod.dim_int, node, dims[0], keep), keep)


def spread(low: Lowering, call: Call) -> Any:
    """var and std, alone or with the mean: from means, n / (n - correction) times as large."""
    node, dims, wrap = _dims(low, call, call["self"])
    keep = bool(call["keepdim"])
    correction = call.args.get("correction")
    if correction is None:
        correction = 1 if call.args.get("unbiased", True) else 0
    count = math.prod(node.meta["shape"][dim] for dim in dims)
    if correction and any(isinstance(low.shape(node)[dim], Size) for dim in dims):
        raise low.unknown(call, "a correction over a dynamic dimension of an input")
    if count <= correction:
        raise low.refused(call, f"a correction of {correction} on {count} numbers")
    mean = low.call(aten.mean.dim, node, dims, True)
    off = low.call(aten.sub.Tensor, node, mean)
    result = low.call(aten.mean.dim, low.call(aten.mul.Tensor, off, off), dims, keep)
    if correction:
        result = low.call(aten.mul.Tensor, result, count / (count - correction))
    name = call.operator.partition(".")[0]
    if name.startswith("std"):
        result = low.call(aten.sqrt.default, result)
    if not name.endswith("_mean"):
        return wrap(result, keep)
    return [wrap(result, keep), wrap(mean if keep else low.call(aten.mean.dim, node, dims, False), keep)]


def norm(low: Lowering, call: Call) -> Any:
    """linalg_vector_norm and norm, of orders 1 and 2."""
    given = call["ord" if "ord" in call.args else "p"]
    order = 2.0 if given is None else float(given)
    if order not in (1.0, 2.0):
        raise low.unknown(call, f"a norm of order {order}")
    node, dims, wrap = _dims(low, call, call["self"])
    keep = bool(call.args.get("keepdim", False))
    return wrap(low.call(aten.linalg_vector_norm.default, node, order, dims, keep), keep)


# --- resizing --------------------------------------------------------------------------------------------------------

RESIZES = {
    "upsample_nearest1d": aten.upsample_nearest1d.vec, "upsample_nearest2d": aten.upsample_nearest2d.vec,
    "upsample_nearest3d": aten.upsample_nearest3d.vec, "upsample_linear1d": aten.upsample_linear1d.vec,
    "upsample_bilinear2d": aten.upsample_bilinear2d.vec, "upsample_bicubic2d": aten.upsample_bicubic2d.vec,
    "upsample_trilinear3d": aten.upsample_trilinear3d.vec,
    "_upsample_nearest_exact1d": aten._upsample_nearest_exact1d.vec,
    "_upsample_nearest_exact2d": aten._upsample_nearest_exact2d.vec,
    "_upsample_nearest_exact3d": aten._upsample_nearest_exact3d.vec,
}  # fmt: skip


def resize(low: Lowering, call: Call) -> fx.Node:
    """interpolate by sizes or by factors. Sizes that are a multiple of the input's become factors, so that they follow
    an input of another size."""
    x = low.activation(call, "input" if "input" in call.args else "self")
    rank = _rank(low, call, x)
    shape = low.shape(x)[2:]
    factors = call.args.get("scale_factors")
    sizes = call["output_size"]
    if "scale_factors" not in call.args:
        keys = ("scales",) if rank == 1 else ("scales_d", "scales_h", "scales_w")[3 - rank :]
        given = [call.args.get(key) for key in keys]
        factors = None if None in given else given
        sizes = sizes if isinstance(sizes, list) else [sizes]
    if sizes is not None and any(isinstance(size, Size) for size in (*shape, *sizes)):
        return _to_open(low, call, x, list(sizes), bool(call.args.get("align_corners")))
    target = RESIZES[call.operator.partition(".")[0]]
    align = [bool(call["align_corners"])] if "align_corners" in call.args else []
    if sizes is not None and (factors is None or "scale_factors" not in call.args):
        wanted = [low.fixed(call, size, "output_size") for size in sizes]
        if (
            factors is not None
            and [math.floor(old * factor) for old, factor in zip(shape, factors, strict=True)] == wanted
        ):
            return low.call(target, x, None, *align, [float(factor) for factor in factors])
        return low.call(target, x, wanted, *align, None)
    if factors is None:
        raise low.refused(call, "neither sizes nor factors")
    return low.call(target, x, None, *align, [float(factor) for factor in factors])


def _to_open(low: Lowering, call: Call, x: fx.Node, sizes: list[Any], align: bool) -> fx.Node:
    """To sizes of which some are open: by whole factors where they are that for every image, else those of a value."""
    shape = low.shape(x)[2:]
    if sizes == shape:
        return x
    name = call.operator.partition(".")[0]
    ratios = [quotient(size, old) for size, old in zip(sizes, shape, strict=True)]
    if all(isinstance(ratio, int) for ratio in ratios):
        options = [align] if "align_corners" in call.args else []
        return low.call(RESIZES[name], x, None, *options, [float(ratio) for ratio in ratios])
    found = low.multiples(sizes)
    if found is None:
        raise low.unknown(call, f"the sizes {text(sizes)}, which are no other value's")
    mode = MODES[name.removeprefix("_upsample_").removeprefix("upsample_").rstrip("123d")]
    return low.call(resize_like, x, *found, mode, align)


MODES = {
    "nearest": "nearest", "nearest_exact": "nearest-exact", "linear": "linear", "bilinear": "bilinear",
    "trilinear": "trilinear", "bicubic": "bicubic",
}  # fmt: skip
_RANKS = (1, 2, 3)
RESIZED = tuple(f"{name}.{kind}" for name in RESIZES for kind in ("vec", "default"))
LOWERINGS: Mapping[str, Lower] = {
    **{f"max_pool{rank}d.default": max_pool for rank in _RANKS},
    **{f"max_pool{rank}d_with_indices.default": max_pool for rank in _RANKS},
    **{f"avg_pool{rank}d.default": average_pool for rank in _RANKS},
    **{f"{lead}adaptive_avg_pool{rank}d.default": adaptive(aten.mean.dim, AVERAGE_POOLS)
       for lead in ("", "_") for rank in _RANKS},
    **{f"adaptive_max_pool{rank}d.default": adaptive(aten.amax.default, MAX_POOLS) for rank in _RANKS},
    "mean.dim": reduction(aten.mean.dim),
    "mean.default": reduction(aten.mean.dim),
    "sum.dim_IntList": reduction(aten.sum.dim_IntList),
    "sum.default": reduction(aten.sum.dim_IntList),
    "amax.default": reduction(aten.amax.default),
    "amin.default": reduction(aten.amin.default),
    "max.dim": reduction(aten.amax.default),
    "min.dim": reduction(aten.amin.default),
    "prod.dim_int": product,
    **dict.fromkeys(("std.correction", "var.correction", "std.dim", "var.dim", "std_mean.correction",
                     "var_mean.correction"), spread),
    **dict.fromkeys(("linalg_vector_norm.default", "norm.ScalarOpt_dim"), norm),
    "logsumexp.default": reduction(aten.logsumexp.default),
    **dict.fromkeys(RESIZED, resize),
}  # fmt: skip
