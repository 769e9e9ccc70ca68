"""What `core/graph/lowering.py` knows: modules, functions and methods of torch, each with its canonical form.

What only training knows is dropped where the graph has no form for it: `Dropout2d` and its like are identities here,
and a network is fine-tuned without them. `Dropout` stays.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from core.graph.building import Building

aten = torch.ops.aten


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W), the parameters being those of a plain one."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


KEPT_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.PReLU, nn.Dropout,
)  # fmt: skip


class _Batch:
    """Stands for the size of dimension 0, which no network may depend on."""

    def __repr__(self) -> str:
        return "the batch size"


BATCH = _Batch()


class CallRefused(Exception):
    """What a call asks for that is not taken; `trace` says where."""


class Lowering(Building):
    """A canonical graph in the making out of `module`; each of its layers is attached once, under its own name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._names: dict[str, str] = {}
        self._constants: dict[str, fx.Node] = {}

    def layer(self, path: str, layer: nn.Module, x: fx.Node) -> fx.Node:
        if path not in self._names:
            self._names[path] = self.add_layer(path, layer)
        return self.apply(self._names[path], x)

    def constant(self, path: str) -> fx.Node:
        """A bare parameter or buffer of the module."""
        if path not in self._constants:
            owner, _, name = path.rpartition(".")
            self._constants[path] = self.add_constant(path, getattr(self.module.get_submodule(owner), name))
        return self._constants[path]


# --- modules that are no layers of the canonical graph ---------------------------------------------------------------


def _pool(target: Any, rank: int) -> Callable[[Lowering, Any, fx.Node], fx.Node]:
    def lower(lowering: Lowering, layer: Any, x: fx.Node) -> fx.Node:
        if getattr(layer, "return_indices", False) or getattr(layer, "divisor_override", None) is not None:
            raise CallRefused("return_indices or divisor_override")
        names = ("kernel_size", "stride", "padding", "dilation")
        window = [_sizes(getattr(layer, name), rank) for name in names if hasattr(layer, name)]
        counts = [layer.count_include_pad] if hasattr(layer, "count_include_pad") else []
        return lowering.call(target, x, *window, layer.ceil_mode, *counts)

    return lower


def _adaptive_average(lowering: Lowering, x: fx.Node, size: Any) -> fx.Node:
    """To 1 a mean, over equal windows a pooling; else dimension by dimension, each output its own slice's mean."""
    given = x.meta["shape"][2:]
    rank = len(given)
    wanted = [old if new is None else new for old, new in zip(given, _sizes(size, rank), strict=True)]
    if wanted == [1] * rank:
        return lowering.call(aten.mean.dim, x, list(range(2, 2 + rank)), True)
    if wanted == list(given):
        return x
    if all(old % new == 0 for old, new in zip(given, wanted, strict=True)):
        window = [old // new for old, new in zip(given, wanted, strict=True)]
        return lowering.call(AVERAGE_POOLS[rank], x, window, window)
    for dim, (old, new) in enumerate(zip(given, wanted, strict=True), start=2):
        if old != new:
            parts = []
            for index in range(new):
                start, end = index * old // new, -(-(index + 1) * old // new)
                part = lowering.call(aten.slice.Tensor, x, dim, start, end, 1)
                parts.append(part if end - start == 1 else lowering.call(aten.mean.dim, part, [dim], True))
            x = lowering.call(aten.cat.default, parts, dim)
    return x


def _upsample(lowering: Lowering, layer: nn.Upsample, x: fx.Node) -> fx.Node:
    return _interpolate(lowering, x, layer.size, layer.scale_factor, layer.mode, layer.align_corners)


def _interpolate(
    lowering: Lowering,
    x: fx.Node,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> fx.Node:
    rank = len(x.meta["shape"]) - 2
    target = NEAREST.get(rank) if mode == "nearest" else {**LINEAR, "bicubic": aten.upsample_bicubic2d.vec}.get(mode)
    if target is None or antialias or recompute_scale_factor:
        raise CallRefused(f"interpolation by {mode!r} in {rank} dimensions, antialiased or with its scale recomputed")
    sizes = None if size is None else _sizes(size, rank)
    scales = None if scale_factor is None else [float(item) for item in _sizes(scale_factor, rank)]
    corners = [] if mode == "nearest" else [bool(align_corners)]
    return lowering.call(target, x, sizes, *corners, scales)


def _sizes(value: Any, rank: int) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value] * rank


def channel_norm(lowering: Lowering, layer: nn.LayerNorm, x: fx.Node, path: str) -> fx.Node:
    plain = nn.LayerNorm(layer.normalized_shape, layer.eps, layer.elementwise_affine, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    last = lowering.call(aten.permute.default, x, [0, 2, 3, 1])
    return lowering.call(aten.permute.default, lowering.layer(path, plain, last), [0, 3, 1, 2])


def _gelu(lowering: Lowering, x: fx.Node, approximate: str = "none") -> fx.Node:
    if approximate != "none":
        raise CallRefused(f"gelu approximated by {approximate!r}")
    return lowering.call(aten.gelu.default, x)


def _plain(target: Any, *names: str) -> Callable[[Lowering, Any, fx.Node], fx.Node]:
    """The ATen call with the module's attributes `names` as arguments."""
    return lambda lowering, layer, x: lowering.call(target, x, *(getattr(layer, name) for name in names))


def _same(lowering: Lowering, layer: Any, x: fx.Node) -> fx.Node:
    return x


MAX_POOLS = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}
AVERAGE_POOLS = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}
NEAREST = {1: aten.upsample_nearest1d.vec, 2: aten.upsample_nearest2d.vec, 3: aten.upsample_nearest3d.vec}
LINEAR = {
    "linear": aten.upsample_linear1d.vec,
    "bilinear": aten.upsample_bilinear2d.vec,
    "trilinear": aten.upsample_trilinear3d.vec,
}

MODULES: Mapping[type[nn.Module], Callable[[Lowering, Any, fx.Node], fx.Node]] = {
    nn.ReLU: _plain(aten.relu.default),
    nn.LeakyReLU: _plain(aten.leaky_relu.default, "negative_slope"),
    nn.ReLU6: _plain(aten.clamp.default, "min_val", "max_val"),
    nn.Hardtanh: _plain(aten.clamp.default, "min_val", "max_val"),
    nn.Sigmoid: _plain(aten.sigmoid.default),
    nn.Tanh: _plain(aten.tanh.default),
    nn.Hardswish: _plain(aten.hardswish.default),
    nn.Hardsigmoid: _plain(aten.hardsigmoid.default),
    nn.SiLU: _plain(aten.silu.default),
    nn.Mish: _plain(aten.mish.default),
    nn.GELU: lambda lowering, layer, x: _gelu(lowering, x, layer.approximate),
    nn.Softmax: _plain(aten.softmax.int, "dim"),
    nn.LogSoftmax: _plain(aten.log_softmax.int, "dim"),
    nn.Flatten: _plain(aten.flatten.using_ints, "start_dim", "end_dim"),
    nn.Identity: _same,
    nn.Dropout1d: _same,
    nn.Dropout2d: _same,
    nn.Dropout3d: _same,
    nn.MaxPool1d: _pool(MAX_POOLS[1], 1),
    nn.MaxPool2d: _pool(MAX_POOLS[2], 2),
    nn.MaxPool3d: _pool(MAX_POOLS[3], 3),
    nn.AvgPool1d: _pool(AVERAGE_POOLS[1], 1),
    nn.AvgPool2d: _pool(AVERAGE_POOLS[2], 2),
    nn.AvgPool3d: _pool(AVERAGE_POOLS[3], 3),
    nn.AdaptiveAvgPool1d: lambda lowering, layer, x: _adaptive_average(lowering, x, layer.output_size),
    nn.AdaptiveAvgPool2d: lambda lowering, layer, x: _adaptive_average(lowering, x, layer.output_size),
    nn.AdaptiveAvgPool3d: lambda lowering, layer, x: _adaptive_average(lowering, x, layer.output_size),
    nn.Upsample: _upsample,
    nn.PixelShuffle: _plain(aten.pixel_shuffle.default, "upscale_factor"),
    nn.PixelUnshuffle: _plain(aten.pixel_unshuffle.default, "downscale_factor"),
}


# --- functions and methods: each takes the graph in the making and the call's own arguments ---------------------------

Lower = Callable[..., Any]


def _unary(target: Any) -> Lower:
    return lambda lowering, x, inplace=False: lowering.call(target, x)


def _binary(target: Any, of_sizes: Callable[[int, int], int] | None = None) -> Lower:
    def lower(lowering: Lowering, a: Any, b: Any) -> Any:
        if BATCH in (a, b):
            raise CallRefused("arithmetic on the batch size")
        if of_sizes is not None and isinstance(a, int) and isinstance(b, int):
            return of_sizes(a, b)
        if not isinstance(a, fx.Node):  # a number in front: only the tensor may come first
            if target not in (aten.add.Tensor, aten.mul.Tensor):
                raise CallRefused("a number as the first of its arguments")
            a, b = b, a
        return lowering.call(target, a, b)

    return lower


def _size_division(lowering: Lowering, a: Any, b: Any) -> int:
    if not isinstance(a, int) or not isinstance(b, int):
        raise CallRefused("a division that rounds down, of other than sizes")
    return a // b


def _dims(dims: tuple[Any, ...]) -> list[Any]:
    return list(dims[0]) if len(dims) == 1 and isinstance(dims[0], tuple | list) else list(dims)


def _mean(lowering: Lowering, x: fx.Node, dim: Any, keepdim: bool = False) -> fx.Node:
    rank = len(x.meta["shape"])
    return lowering.call(aten.mean.dim, x, [item % rank for item in _sizes(dim, 1)], keepdim)


def _flatten(lowering: Lowering, x: fx.Node, start_dim: int = 0, end_dim: int = -1) -> fx.Node:
    return lowering.call(aten.flatten.using_ints, x, start_dim, end_dim)


def _reshape(lowering: Lowering, x: fx.Node, *shape: Any) -> fx.Node:
    """The batch in front stays; other sizes are numbers, at most one of them -1."""
    first, *sizes = _dims(shape)
    total = math.prod(x.meta["shape"][1:])
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and first is BATCH and known and total % known == 0:
        sizes[sizes.index(-1)] = total // known
    if first not in (BATCH, -1) or math.prod(sizes) != total:
        raise CallRefused(f"a reshape of {list(x.meta['shape'][1:])} per example to {[first, *sizes]}")
    return lowering.call(aten.reshape.default, x, [-1, *sizes])


def _transpose(lowering: Lowering, x: fx.Node, dim0: int, dim1: int) -> fx.Node:
    order = list(range(len(x.meta["shape"])))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return lowering.call(aten.permute.default, x, order)


def _split(lowering: Lowering, x: fx.Node, split_size_or_sections: Any, dim: int = 0) -> list[fx.Node]:
    total = x.meta["shape"][dim]
    given = split_size_or_sections
    parts = list(given) if isinstance(given, tuple | list) else [given] * math.ceil(total / given)
    if dim == 0 or sum(parts[:-1]) >= total:
        raise CallRefused(f"a split of {total} along dimension {dim} into {parts}")
    ends = [min(sum(parts[: index + 1]), total) for index in range(len(parts))]
    starts = [0, *ends[:-1]]
    return [lowering.call(aten.slice.Tensor, x, dim, start, end, 1) for start, end in zip(starts, ends, strict=True)]


def _chunk(lowering: Lowering, x: fx.Node, chunks: int, dim: int = 0) -> list[fx.Node]:
    return _split(lowering, x, math.ceil(x.meta["shape"][dim] / chunks), dim)


def _cat(lowering: Lowering, tensors: Any, dim: int = 0) -> fx.Node:
    return lowering.call(aten.cat.default, list(tensors), dim)


def _pad(lowering: Lowering, x: fx.Node, pad: Any, mode: str = "constant", value: float | None = None) -> fx.Node:
    if mode != "constant":
        raise CallRefused(f"padding by {mode!r}")
    return lowering.call(aten.constant_pad_nd.default, x, list(pad), value or 0.0)


def _getitem(lowering: Lowering, x: Any, index: Any) -> Any:
    """A part of a list, or `x[:, a:b]`: a part of the channels."""
    if not isinstance(x, fx.Node):
        return x[index]
    if not (isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None) and isinstance(index[1], slice)):
        raise CallRefused(f"an index {index!r}; only x[:, a:b] is taken")
    part = index[1]
    stop = 2**63 - 1 if part.stop is None else part.stop
    return lowering.call(aten.slice.Tensor, x, 1, part.start or 0, stop, part.step or 1)


def _size(lowering: Lowering, x: fx.Node, dim: int | None = None) -> Any:
    shape = (BATCH, *x.meta["shape"][1:])
    return shape if dim is None else shape[dim]


def _attribute(lowering: Lowering, x: Any, name: str) -> Any:
    if name != "shape" or not isinstance(x, fx.Node):
        raise CallRefused(f"the attribute {name!r}")
    return _size(lowering, x)


def _permute(lowering: Lowering, x: fx.Node, *dims: Any) -> fx.Node:
    return lowering.call(aten.permute.default, x, _dims(dims))


def _unsqueeze(lowering: Lowering, x: fx.Node, dim: int) -> fx.Node:
    return lowering.call(aten.unsqueeze.default, x, dim)


def _squeeze(lowering: Lowering, x: fx.Node, dim: Any) -> fx.Node:
    return lowering.call(aten.squeeze.dims, x, _sizes(dim, 1))


def _softmax(target: Any) -> Lower:
    def lower(lowering: Lowering, x: fx.Node, dim: int, _stacklevel: int = 3, dtype: Any = None) -> fx.Node:
        if dtype is not None:
            raise CallRefused(f"a softmax in {dtype}")
        return lowering.call(target, x, dim)

    return lower


def _dropped(lowering: Lowering, x: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    return x


FUNCTIONS: Mapping[Any, Lower] = {
    **dict.fromkeys((F.relu, torch.relu), _unary(aten.relu.default)),
    F.relu6: lambda lowering, x, inplace=False: lowering.call(aten.clamp.default, x, 0.0, 6.0),
    F.silu: _unary(aten.silu.default),
    F.gelu: _gelu,
    F.hardswish: _unary(aten.hardswish.default),
    F.hardsigmoid: _unary(aten.hardsigmoid.default),
    torch.sigmoid: _unary(aten.sigmoid.default),
    torch.tanh: _unary(aten.tanh.default),
    **dict.fromkeys((F.softmax, torch.softmax), _softmax(aten.softmax.int)),
    **dict.fromkeys((F.log_softmax, torch.log_softmax), _softmax(aten.log_softmax.int)),
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _binary(aten.add.Tensor, operator.add)),
    **dict.fromkeys((operator.sub, torch.sub), _binary(aten.sub.Tensor, operator.sub)),
    **dict.fromkeys((operator.mul, torch.mul), _binary(aten.mul.Tensor, operator.mul)),
    operator.floordiv: _size_division,
    **dict.fromkeys((operator.truediv, torch.div), _binary(aten.div.Tensor)),
    operator.getitem: _getitem,
    getattr: _attribute,
    torch.flatten: _flatten,
    torch.mean: _mean,
    torch.reshape: _reshape,
    torch.permute: _permute,
    torch.transpose: _transpose,
    torch.unsqueeze: _unsqueeze,
    torch.squeeze: _squeeze,
    torch.chunk: _chunk,
    torch.split: _split,
    **dict.fromkeys((torch.cat, torch.concat), _cat),
    F.pad: _pad,
    F.adaptive_avg_pool2d: _adaptive_average,
    F.interpolate: _interpolate,
}

METHODS: Mapping[str, Lower] = {
    "relu": _unary(aten.relu.default),
    "sigmoid": _unary(aten.sigmoid.default),
    "tanh": _unary(aten.tanh.default),
    "softmax": _softmax(aten.softmax.int),
    "add": _binary(aten.add.Tensor),
    "mul": _binary(aten.mul.Tensor),
    "flatten": _flatten,
    "mean": _mean,
    "view": _reshape,
    "reshape": _reshape,
    "permute": _permute,
    "transpose": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "chunk": _chunk,
    "split": _split,
    "size": _size,
    "contiguous": _dropped,
}
