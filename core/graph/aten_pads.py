"""From ATen calls that pad, pick and rearrange by a rule to canonical forms, and those that change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from core.graph.aten_parts import joined, part
from core.graph.aten_shape import reshaped, text
from core.graph.operators.fitting import pad_like
from core.graph.pt2_lowering import Lowering
from core.graph.pt2_sizes import Size, product, quotient
from core.graph.pt2_turned import seen, settled
from core.graph.pt2_values import Call, Constant, Filled
from core.graph.turned import Turned

aten = torch.ops.aten
REFLECTIONS = {1: aten.reflection_pad1d.default, 2: aten.reflection_pad2d.default, 3: aten.reflection_pad3d.default}
REPLICATIONS = {
    1: aten.replication_pad1d.default, 2: aten.replication_pad2d.default, 3: aten.replication_pad3d.default,
}  # fmt: skip


def pad(low: Lowering, call: Call) -> Any:
    """F.pad in all its modes: (before, after) for each dimension from the last on. Negative amounts cut off."""
    x = low.activation(call, "self")
    key = "pad" if "pad" in call.args else "padding"
    rank = len(x.meta["shape"])
    given = list(call[key])
    name = call.operator.partition(".")[0]
    mode = call.args.get("mode") or (
        "reflect" if name.startswith("reflection") else "replicate" if name.startswith("replication") else "constant"
    )
    if len(given) % 2 or len(given) // 2 > rank or any(item != 0 for item in given[2 * (rank - 1) :]):
        raise low.unknown(call, f"{len(given)} amounts on an input of rank {rank}, or padding of the batch")
    if any(isinstance(item, Size) for item in given):
        x, given = _fitted(low, call, x, given, mode)
    amounts = [low.fixed(call, item, key) for item in given]
    for index in range(len(amounts) // 2):
        before, after = amounts[2 * index : 2 * index + 2]
        if min(before, after) < 0:
            bounds = (max(0, -before), None if after >= 0 else after)
            x = part(low, call, x, rank - 1 - index, bounds)
    amounts = [max(0, amount) for amount in amounts]
    if not any(amounts):
        return x
    if mode == "constant":
        number = call.args.get("value")
        return low.call(aten.constant_pad_nd.default, x, amounts, 0.0 if number is None else float(number))
    if mode == "circular":
        for index in range(len(amounts) // 2):
            before, after = amounts[2 * index : 2 * index + 2]
            dim = rank - 1 - index
            pieces = [part(low, call, x, dim, (-before, None))] if before else []
            pieces += [x, part(low, call, x, dim, (0, after))] if after else [x]
            x = joined(low, call, pieces, dim)
        return x
    table = {"reflect": REFLECTIONS, "replicate": REPLICATIONS}.get(str(mode), {})
    if len(amounts) // 2 not in table:
        raise low.unknown(call, f"padding mode {mode!r} of {len(amounts) // 2} dimensions")
    return low.call(table[len(amounts) // 2], x, amounts)


def _fitted(low: Lowering, call: Call, x: fx.Node, amounts: list[Any], mode: str) -> tuple[fx.Node, list[Any]]:
    """Open amounts that make `x` as large as another value. Returns it, and the amounts that are left to do."""
    rest, dims, wanted, front = list(amounts), [], [], []
    shape = low.shape(x)
    for place in range(len(amounts) // 2):
        before, after = amounts[2 * place : 2 * place + 2]
        if isinstance(before, Size) or isinstance(after, Size):
            missing = before + after
            ways = {"none": 0, "all": missing, "floor": missing // 2, "ceil": missing - missing // 2}
            way = next((key for key, amount in ways.items() if amount == before), None)
            dim = len(shape) - 1 - place
            if way is None or mode != "constant":
                raise low.unknown(call, f"mode {mode!r} with amounts {text((before, after))} that follow the input")
            dims.append(dim)
            wanted.append(shape[dim] + missing)
            front.append(way)
            rest[2 * place : 2 * place + 2] = [0, 0]
    held = low.holder(wanted) if all(isinstance(size, Size) for size in wanted) else None
    if held is None:
        raise low.unknown(call, f"padding to the sizes {text(wanted)}, which no one value has")
    number = call.args.get("value")
    return low.call(pad_like, x, held[0], dims, held[1], front, 0.0 if number is None else float(number)), rest


def pixel(target: Any, key: str) -> Callable[[Lowering, Call], Any]:
    return lambda low, call: low.call(target, low.activation(call, "self"), low.integer(call, key))


def unfold(low: Lowering, call: Call) -> Any:
    """F.unfold of patches that lie side by side: (N, C, H, W) -> (N, C k k, patches)."""
    x = low.activation(call, "self")
    kernel, stride = low.integers(call, "kernel_size"), low.integers(call, "stride")
    size = kernel[0]
    if (
        len(x.meta["shape"]) != 4
        or set(kernel) != {size}
        or stride != kernel
        or any(low.integers(call, "padding"))
        or set(low.integers(call, "dilation")) != {1}
        or any(quotient(space, size) is None for space in low.shape(x)[2:])
    ):
        raise low.unknown(
            call, f"windows of {kernel} at strides of {stride} on {text(low.shape(x)[2:])}; known are square ones that "
            "lie side by side and fill the input, without padding"
        )  # fmt: skip
    return low.call(aten.flatten.using_ints, low.call(aten.pixel_unshuffle.default, x, size), 2, -1)


def channel_shuffle(low: Lowering, call: Call) -> Any:
    """(C) as (groups, C / groups), turned round."""
    x = low.activation(call, "self")
    groups, shape = low.integer(call, "groups"), low.shape(x)
    if groups < 1 or shape[1] % groups:
        raise low.refused(call, f"{groups} groups of {shape[1]} channels")
    parted = reshaped(low, call, x, [shape[0], groups, shape[1] // groups, *shape[2:]])
    turned = low.call(aten.permute.default, parted, [0, 2, 1, *range(3, len(shape) + 1)])
    return reshaped(low, call, turned, shape)


def _picked(low: Lowering, call: Call, value: Any, dim: int, index: Constant) -> Any:
    is_vector = index.value.dim() == 1 and index.value.dtype == torch.int64
    if not isinstance(value, fx.Node | Turned) or not is_vector or seen(value).dim(dim) == 0:
        raise low.unknown(call, "an index along the batch, or one that is not a vector of whole numbers")
    lying = seen(value)
    size = low.fixed(call, low.shape(value)[dim], "size")
    if not index.value.numel() or int(index.value.min()) < -size or int(index.value.max()) >= size:
        raise low.refused(call, f"an index past the {size} elements of dimension {dim}")
    places = (index.value % size).tolist()
    if places == list(range(places[0], places[0] + len(places))):
        return part(low, call, value, dim, (places[0], places[-1] + 1))
    node = low.add_constant(f"constants.{call.name}", torch.tensor(places, dtype=torch.int64))
    made = low.call(aten.index_select.default, lying.node, lying.dim(dim), node)
    return settled(low, Turned(made, lying.order))


def index_select(low: Lowering, call: Call) -> Any:
    index = call["index"]
    if not isinstance(index, Constant):
        raise low.unknown(call, "an index that is not constant")
    shape = low.shape(call["self"])
    return _picked(low, call, call["self"], low.dim(call, low.integer(call, "dim"), len(shape)), index)


def index(low: Lowering, call: Call) -> Any:
    """`x[:, index]`: constant vectors of whole numbers, one dimension each, the others whole."""
    value = call["self"]
    given = [(dim, item) for dim, item in enumerate(call["indices"]) if item is not None]
    if len(given) != 1 or not isinstance(given[0][1], Constant):
        raise low.unknown(call, "several indices at once, or one that is not constant")
    return _picked(low, call, value, *given[0])


def flip(low: Lowering, call: Call) -> fx.Node:
    x = low.activation(call, "self")
    dims = [low.dim(call, dim, len(x.meta["shape"])) for dim in low.integers(call, "dims")]
    if 0 in dims:
        raise low.unknown(call, "a flip of the batch")
    return low.call(aten.flip.default, x, sorted(dims))


def same(low: Lowering, call: Call) -> Any:
    """clone, contiguous, detach, alias, to: the value as it is. Types other than float32 are not taken."""
    value = call["self" if "self" in call.args else next(iter(call.args))]
    dtype = call.args.get("dtype")
    if call.operator in ("to.other", "type_as.default") and isinstance(call["other"], Constant):
        dtype = call["other"].value.dtype
    names = {"float": torch.float32, "double": torch.float64, "half": torch.float16}
    dtype = names.get(call.operator.partition(".")[0], dtype)
    if isinstance(value, fx.Node | Turned):
        node = value if isinstance(value, fx.Node) else value.node
        is_bool = low.is_bool(node)
        if dtype == torch.float32 and is_bool:
            return low.pointwise(call, aten.where.self, value, *low.numbers(1.0, 0.0))
        if dtype not in (None, torch.bool if is_bool else torch.float32):
            kind = str(dtype).removeprefix("torch.")
            raise low.unknown(call, f"a conversion to {kind}; only float32 is taken")
    return value


def filled(low: Lowering, call: Call) -> Any:
    """zeros, ones and full, whose sizes may follow the batch, and those that take the sizes of another tensor. What
    `empty` holds may be anything."""
    name = call.operator.partition(".")[0]
    kind = name.removeprefix("new_").removesuffix("_like")
    number = {"zeros": 0.0, "ones": 1.0, "empty": 0.0}.get(kind, call.args.get("fill_value"))
    if not isinstance(number, int | float):
        raise low.unknown(call, f"{low.described(number)} to fill with")
    if call.args.get("dtype") == torch.bool and all(isinstance(size, int) for size in call.args.get("size") or [None]):
        sizes = tuple(call["size"])  # a mask, which further calls work out
        low.charge(product(sizes), call)
        return Constant(torch.full(sizes, bool(number)), low.key("full", bool(number), sizes))
    if call.args.get("dtype") not in (None, torch.float32):
        raise low.unknown(call, f"numbers of type {str(call['dtype']).removeprefix('torch.')}; only float32 is taken")
    if not name.endswith("_like"):
        return Filled(float(number), tuple(call["size"]))
    source = call["self"]
    return Filled(float(number), tuple(low.shape(source)), source if isinstance(source, fx.Node) else None)


_SAME = (
    "clone.default", "contiguous.default", "detach.default", "detach_copy.default", "alias.default",
    "alias_copy.default", "lift_fresh_copy.default", "lift_fresh.default", "to.dtype", "to.device", "to.dtype_layout",
    "to.other", "_to_copy.default", "type_as.default", "float.default", "double.default", "half.default",
    "positive.default", "view_of.default", "resolve_conj.default", "resolve_neg.default",
)  # fmt: skip
LOWERINGS: Mapping[str, Callable[[Lowering, Call], Any]] = {
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys(("constant_pad_nd.default", "pad.default"), pad),
    **{f"reflection_pad{rank}d.default": pad for rank in REFLECTIONS},
    **{f"replication_pad{rank}d.default": pad for rank in REPLICATIONS},
    "pixel_shuffle.default": pixel(aten.pixel_shuffle.default, "upscale_factor"),
    "pixel_unshuffle.default": pixel(aten.pixel_unshuffle.default, "downscale_factor"),
    "im2col.default": unfold,
    "channel_shuffle.default": channel_shuffle,
    "native_channel_shuffle.default": channel_shuffle,
    "index_select.default": index_select,
    "index.Tensor": index,
    "flip.default": flip,
    **dict.fromkeys(
        ("zeros.default", "ones.default", "full.default", "new_zeros.default", "new_ones.default", "new_full.default",
         "zeros_like.default", "ones_like.default", "full_like.default", "empty.memory_format",
         "new_empty.default", "empty_like.default"), filled,
    ),
}  # fmt: skip
