"""From ATen's normalisations to layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from core.graph.aten_layers import key_of, parameter
from core.graph.pt2_lowering import Lowering
from core.graph.pt2_values import Activation, Call, Constant, Merged, Spread

aten = torch.ops.aten
BATCH_NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
INSTANCE_NORMS: dict[int, Any] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _affine(layer: Any, weight: Constant | None, bias: Constant | None, count: int) -> None:
    """Ones and zeros where a normalisation has only one of weight and bias, or where the layer must have them."""
    layer.weight = parameter(weight) if weight is not None else nn.Parameter(torch.ones(count))
    layer.bias = parameter(bias) if bias is not None else nn.Parameter(torch.zeros(count))


def batch_norm(low: Lowering, call: Call) -> fx.Node:
    """In training mode too: the layer has running statistics, and the network is in eval mode when it is read."""
    x = low.activation(call, "input")
    weight, bias = low.weight_or_none(call, "weight"), low.weight_or_none(call, "bias")
    mean, variance = low.weight_or_none(call, "running_mean"), low.weight_or_none(call, "running_var")
    rank = len(x.meta["shape"])
    if mean is None or variance is None:
        raise low.unknown(call, "no running statistics: it would depend on the other examples of a batch")
    if rank not in BATCH_NORMS:
        raise low.unknown(call, f"an input of rank {rank}")
    channels = x.meta["shape"][1]
    if any(item is not None and item.value.shape != (channels,) for item in (weight, bias, mean, variance)):
        raise low.refused(call, f"weight, bias, mean and variance must each hold {channels} numbers")
    momentum = None if call["momentum"] is None else float(call["momentum"])

    def make() -> nn.Module:
        with torch.device("meta"):
            layer = BATCH_NORMS[rank](channels, float(call["eps"]), momentum)
        _affine(layer, weight, bias, channels)
        layer.running_mean, layer.running_var = mean.value.clone(), variance.value.clone()
        layer.num_batches_tracked = torch.zeros((), dtype=torch.int64)
        return layer  # type: ignore[no-any-return]

    # without a weight of its own it is named after its statistics
    if weight is None:
        name = (mean.parameter or "").removesuffix(".running_mean") + ".weight"
        weight = Constant(torch.ones(channels), low.key("ones of", mean.key), name, trained=True)
    shared = (key_of(bias), key_of(mean), key_of(variance), float(call["eps"]))
    return low.layer(call, "batch_norm", weight, shared, make, x)


def instance_norm(low: Lowering, call: Call) -> fx.Node:
    """With running statistics in eval mode it is a BatchNorm."""
    if not call["use_input_stats"]:
        return batch_norm(low, call)
    x = low.activation(call, "input")
    return _instance_norm(low, call, x, low.weight_or_none(call, "weight"), low.weight_or_none(call, "bias"))


def _instance_norm(low: Lowering, call: Call, x: fx.Node, weight: Constant | None, bias: Constant | None) -> fx.Node:
    rank, channels = len(x.meta["shape"]), x.meta["shape"][1]
    if rank not in INSTANCE_NORMS:
        raise low.unknown(call, f"an input of rank {rank}")

    def make() -> nn.Module:
        with torch.device("meta"):
            layer = INSTANCE_NORMS[rank](channels, float(call["eps"]), affine=weight is not None or bias is not None)
        if weight is not None or bias is not None:
            _affine(layer, weight, bias, channels)
        return layer  # type: ignore[no-any-return]

    return low.layer(call, "instance_norm", weight, (key_of(bias), float(call["eps"])), make, x)


def group_norm(low: Lowering, call: Call) -> fx.Node:
    x = low.activation(call, "input")
    groups = low.integer(call, "num_groups" if "num_groups" in call.args else "group")
    weight, bias = low.weight_or_none(call, "weight"), low.weight_or_none(call, "bias")
    channels = x.meta["shape"][1]
    if groups < 1 or channels % groups:
        raise low.refused(call, f"{groups} groups of {channels} channels")

    def make() -> nn.Module:
        with torch.device("meta"):
            layer = nn.GroupNorm(groups, channels, float(call["eps"]), affine=weight is not None or bias is not None)
        if layer.affine:
            _affine(layer, weight, bias, channels)
        return layer

    return low.layer(call, "group_norm", weight, (key_of(bias), groups, float(call["eps"])), make, x)


def layer_norm(low: Lowering, call: Call) -> Activation:
    """Over the last dimensions; not over the batch."""
    node, layout = low.lifted(call, "input")
    sizes = low.integers(call, "normalized_shape")
    weight, bias = low.weight_or_none(call, "weight"), low.weight_or_none(call, "bias")
    shape = list(node.meta["shape"])
    behind = len(shape) - 1 - layout.before - layout.left - layout.right
    if not sizes or len(sizes) > behind or shape[-len(sizes) :] != sizes:
        raise low.unknown(call, f"a normalisation over {sizes} of an input of shape {shape[1:]} per example")
    if weight is None and bias is not None:
        raise low.unknown(call, "a bias without a weight")

    def make() -> nn.Module:
        with torch.device("meta"):
            layer = nn.LayerNorm(sizes, float(call["eps"]), weight is not None, bias is not None)
        if weight is not None:
            layer.weight = parameter(weight)
        if bias is not None:
            layer.bias = parameter(bias)
        return layer

    shared = (key_of(bias), tuple(sizes), float(call["eps"]))
    return low.placed(low.layer(call, "layer_norm", weight, shared, make, node), layout)


def legit_norm(low: Lowering, call: Call) -> Any:
    """BatchNorm on statistics of its input. That is what an instance norm decomposes to, on the channels of all
    examples beside each other, or on a batch of 1; else it would depend on the other examples."""
    value = call["input"]
    if isinstance(value, Merged):
        weight, bias = (_once(low, call, key, value.node.meta["shape"][1]) for key in ("weight", "bias"))
        return Merged(_instance_norm(low, call, value.node, weight, bias))
    if low.static_batch == 1 and "InstanceNorm" in call.scope_class:
        x = low.activation(call, "input")
        return _instance_norm(low, call, x, low.weight_or_none(call, "weight"), low.weight_or_none(call, "bias"))
    raise low.unknown(call, "no running statistics: it would depend on the other examples of a batch")


def _once(low: Lowering, call: Call, key: str, channels: int) -> Constant | None:
    """A vector for the channels of all examples, which must be the same for each, as that of one."""
    value = call[key]
    if isinstance(value, Spread):
        value = value.constant
    elif isinstance(value, Constant):
        rows = value.value.reshape(-1, channels) if value.value.numel() % channels == 0 else value.value.new_empty(0, 1)
        if not len(rows) or not torch.equal(rows, rows[:1].expand_as(rows)):
            raise low.unknown(call, f"a {key!r} that is not the same for every example")
        value = Constant(rows[0], low.key("first of", value.key, channels), value.parameter, value.trained)
    return low.weight_or_none(replace(call, args={**call.args, key: value}), key)


def rms_norm(low: Lowering, call: Call) -> Any:
    """x / sqrt(mean of squares + eps) * weight, over the last dimensions."""
    x, layout = low.lifted(call, "input")
    rank, count = len(x.meta["shape"]), len(call["normalized_shape"])
    if count >= rank - layout.before - layout.left - layout.right:
        raise low.unknown(call, "a normalisation over the batch")
    eps = float(call["eps"]) if call["eps"] is not None else torch.finfo(torch.float32).eps
    squares = low.call(aten.mul.Tensor, x, x)
    mean = low.call(aten.mean.dim, squares, list(range(rank - count, rank)), True)
    root = low.call(aten.sqrt.default, low.call(aten.add.Tensor, mean, eps))
    normed: Any = low.call(aten.div.Tensor, x, root)
    if call["weight"] is not None:
        normed = low.pointwise(call, aten.mul.Tensor, normed, low.weight(call, "weight"))
    return low.placed(normed, layout)


LOWERINGS: Mapping[str, Callable[[Lowering, Call], Any]] = {
    "batch_norm.default": batch_norm,
    "native_batch_norm.default": batch_norm,
    "_native_batch_norm_legit.default": batch_norm,
    "_native_batch_norm_legit_functional.default": batch_norm,
    "_native_batch_norm_legit_no_training.default": batch_norm,
    "_native_batch_norm_legit.no_stats": legit_norm,
    "instance_norm.default": instance_norm,
    "group_norm.default": group_norm,
    "native_group_norm.default": group_norm,
    "layer_norm.default": layer_norm,
    "native_layer_norm.default": layer_norm,
    "rms_norm.default": rms_norm,
    "_fused_rms_norm.default": rms_norm,
}
