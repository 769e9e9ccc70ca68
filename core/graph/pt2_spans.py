"""How the open sizes of a canonical node follow from those of what it reads, as `Size`s: exact for every image.

`spans_of` knows the forms that a `.pt2` is lowered to. What it does not know (windows that round up, odd slices) is a
number of its own, equal to no other; it can be read from the node, but not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import fx, nn

from core.graph.operators.fitting import pad_like
from core.graph.operators.padding import REFLECTED, REPLICATED
from core.graph.operators.pooling import AVERAGE_POOLS, MAX_POOLS
from core.graph.operators.reshape import unflatten_like
from core.graph.operators.resize import CUBIC, LINEAR, NEAREST, NEAREST_EXACT, resize_like
from core.graph.operators.shape import expand_like
from core.graph.pt2_sizes import MAX_DENOMINATOR, Size, floor, product, quotient

aten = torch.ops.aten
Spans = list[Any]
"""Of one node, per dimension: int, `Size`, or None for what is not known."""


def of_layer(layer: nn.Module, spans: Spans, rank: int) -> Spans:
    """Of a layer applied to a value of `spans`."""
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        settings = zip(
            layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding, strict=True
        )
        behind = [
            (size - 1) * stride - 2 * _whole(pad) + dilation * (kernel - 1) + extra + 1
            for size, (kernel, stride, pad, dilation, extra) in zip(spans[2:], settings, strict=True)
        ]
        return [spans[0], None, *behind]
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        window = zip(layer.kernel_size, layer.stride, map(_whole, layer.padding), layer.dilation, strict=True)
        return [spans[0], None, *(_window(size, *how) for size, how in zip(spans[2:], window, strict=True))]
    if isinstance(layer, nn.Linear):
        return [*spans[:-1], None]
    return list(spans) if len(spans) == rank else [spans[0], *[None] * (rank - 1)]


def of_call(target: Any, args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    """Of a call; `spans` are those of the nodes among its arguments."""
    rule = RULES.get(target, _broadcast)
    return rule(args, spans, rank)


def _whole(value: Any) -> int:
    return int(value)  # a padding by name is none of ours


def _window(size: Any, kernel: int, stride: int, pad: int, dilation: int) -> Any:
    return floor(_over(size + 2 * pad - dilation * (kernel - 1) - 1, stride)) + 1


def _over(size: Any, divisor: int) -> Any:
    return size * Fraction(1, divisor)


def _broadcast(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    """Element by element: of whatever is not 1."""
    found: Spans = [1] * rank
    for item in args:
        if isinstance(item, fx.Node):
            own = spans(item)
            if len(own) > rank:
                return [None] * rank
            for dim, size in enumerate([1] * (rank - len(own)) + own):
                if found[dim] == 1:
                    found[dim] = size
                elif size not in (1, found[dim]):
                    found[dim] = None
    return found


def _pool(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own = spans(args[0])
    if isinstance(args[4], bool):
        kernel, stride, pad, up = args[1:5]
        dilation = [1] * len(kernel)
    else:  # of a maximum
        kernel, stride, pad, dilation, up = args[1:6]
    if up:
        return [*own[:2], *[None] * (rank - 2)]
    return [*own[:2], *(_window(*how) for how in zip(own[2:], kernel, stride, pad, dilation, strict=True))]


def _resized(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own, sizes, factors = spans(args[0]), args[1], args[-1]
    if sizes is not None:
        return [*own[:2], *sizes]
    exact = [Fraction(factor) for factor in factors]
    return [
        *own[:2],
        *(
            floor(size * factor) if factor.denominator <= MAX_DENOMINATOR else None
            for size, factor in zip(own[2:], exact, strict=True)
        ),
    ]


def _resized_like(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    other = spans(args[1])
    return [*spans(args[0])[:2], *(other[dim] * times for dim, times in zip(args[2], args[3], strict=True))]


def _sliced(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own = spans(args[0])
    dim, start, end, step = (*args[1:5], 1)[:4]
    start, size = start or 0, own[dim]
    if isinstance(size, Size):
        whole = end is None or end >= 2**31 - 1
        if start >= 0 and (whole or end < 0):
            length = size - start + (0 if whole else end)
            own[dim] = -floor(_over(-length, step))
        elif start < 0 and whole:
            own[dim] = None if step != 1 else -start
        else:
            own[dim] = None
    else:
        own[dim] = None
    return own


def _padded(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own, amounts = spans(args[0]), args[1]
    for place in range(len(amounts) // 2):
        own[rank - 1 - place] += amounts[2 * place] + amounts[2 * place + 1]
    return own


def _padded_like(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own, other = spans(args[0]), spans(args[1])
    for dim, place in zip(args[2], args[3], strict=True):
        own[dim] = other[place]
    return own


def _joined(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    parts = [spans(item) for item in args[0]]
    dim = args[1] % rank if len(args) > 1 else 0
    total: Any = 0
    for part in parts:
        total = total + part[dim]
    return [*parts[0][:dim], total, *parts[0][dim + 1 :]]


def _permuted(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own = spans(args[0])
    return [own[dim] for dim in args[1]]


def _squeezed(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own = spans(args[0])
    gone = {dim % len(own) for dim in args[1]}
    return [size for dim, size in enumerate(own) if dim not in gone]


def _unsqueezed(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own, dim = spans(args[0]), args[1] % rank
    return [*own[:dim], 1, *own[dim:]]


def _reduced(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own = spans(args[0])
    gone = {dim % len(own) for dim in (args[1] if isinstance(args[1], list | tuple) else [args[1]])}
    if rank == len(own):
        return [1 if dim in gone else size for dim, size in enumerate(own)]
    return [size for dim, size in enumerate(own) if dim not in gone]


def _normed(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    return _reduced([args[0], args[2]], spans, rank)


def _flattened(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own = spans(args[0])
    start, end = args[1] % len(own), args[2] % len(own)
    return [*own[:start], product(own[start : end + 1]), *own[end + 1 :]]


def _unflattened(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own, sizes = spans(args[0]), list(args[2])
    dim = args[1] % len(own)
    return [*own[:dim], *_filled(own[dim], sizes), *own[dim + 1 :]]


def _unflattened_like(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own, other, dim = spans(args[0]), spans(args[1]), args[2]
    sizes = [size if place == -1 else other[place] for size, place in zip(args[3], args[4], strict=True)]
    return [*own[:dim], *_filled(own[dim], sizes), *own[dim + 1 :]]


def _filled(whole: Any, sizes: Spans) -> Spans:
    """With what -1 stands for."""
    if -1 in sizes:
        sizes[sizes.index(-1)] = quotient(whole, product(size for size in sizes if size != -1))
    return sizes


def _reshaped(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    return [spans(args[0])[0], *args[1][1:]]


def _expanded(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own = spans(args[0])
    own = [1] * (rank - len(own)) + own
    return [size if wanted == -1 else wanted for size, wanted in zip(own, args[1], strict=True)]


def _expanded_like(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own, other = spans(args[0]), spans(args[1])
    return [other[dim] if dim in args[2] else size for dim, size in enumerate(own)]


def _multiplied(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    a, b = spans(args[0]), spans(args[1])
    if min(len(a), len(b)) < 2:
        return [None] * rank
    front = _broadcast_of(a[:-2], b[:-2], rank - 2)
    return [*front, a[-2], b[-1]]


def _broadcast_of(a: Spans, b: Spans, rank: int) -> Spans:
    a, b = ([1] * (rank - len(own)) + own for own in (a, b))
    return [y if x == 1 else x for x, y in zip(a, b, strict=True)]


def _shuffled(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own = spans(args[0])
    return [own[0], None, *(size * args[1] for size in own[2:])]


def _unshuffled(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own = spans(args[0])
    return [own[0], None, *(floor(_over(size, args[1])) for size in own[2:])]


def _repeated(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own = spans(args[0])
    return [size * times for size, times in zip([1] * (rank - len(own)) + own, args[1], strict=True)]


def _picked(args: Sequence[Any], spans: Callable[[fx.Node], Spans], rank: int) -> Spans:
    own = spans(args[0])
    own[args[1] % rank] = None
    return own


RULES: Mapping[Any, Callable[[Sequence[Any], Callable[[fx.Node], Spans], int], Spans]] = {
    **dict.fromkeys((*MAX_POOLS.values(), *AVERAGE_POOLS.values()), _pool),
    **dict.fromkeys(
        (*NEAREST.values(), *NEAREST_EXACT.values(), *LINEAR.values(), *CUBIC.values()), _resized
    ),
    resize_like: _resized_like,
    aten.slice.Tensor: _sliced,
    **dict.fromkeys((aten.constant_pad_nd.default, *REFLECTED.values(), *REPLICATED.values()), _padded),
    pad_like: _padded_like,
    aten.cat.default: _joined,
    aten.permute.default: _permuted,
    aten.squeeze.dims: _squeezed,
    aten.unsqueeze.default: _unsqueezed,
    **dict.fromkeys(
        (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.prod.dim_int,
         aten.logsumexp.default), _reduced,
    ),
    aten.linalg_vector_norm.default: _normed,
    aten.flatten.using_ints: _flattened,
    aten.unflatten.int: _unflattened,
    unflatten_like: _unflattened_like,
    aten.reshape.default: _reshaped,
    aten.expand.default: _expanded,
    expand_like: _expanded_like,
    aten.repeat.default: _repeated,
    aten.matmul.default: _multiplied,
    aten.pixel_shuffle.default: _shuffled,
    aten.pixel_unshuffle.default: _unshuffled,
    aten.index_select.default: _picked,
}  # fmt: skip
