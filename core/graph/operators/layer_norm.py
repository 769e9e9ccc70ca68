"""Norms over the last dimensions. ONNX `LayerNormalization`, `RMSNormalization` <-> `nn.LayerNorm`, `nn.RMSNorm`.

Where the channels lie among those dimensions, the norm of a cut network goes over the channels that are left.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import NodeProto
from torch import Tensor, fx, nn

from core.graph.ids import LayerIds, Propagation, compressed, source
from core.graph.operators.form import Form, LayerCut
from core.graph.operators.kept_norms import KeptNorm, along
from core.graph.tensors import to_numpy

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

Norm = nn.LayerNorm | nn.RMSNorm


def layer_norm(shape: tuple[int, ...], eps: float, weight: Tensor | None, bias: Tensor | None) -> nn.LayerNorm:
    """Over the last dimensions, of `shape`. `weight` and `bias` are of that shape; a bias needs a weight."""
    with torch.device("meta"):
        layer = nn.LayerNorm(shape, eps, elementwise_affine=weight is not None, bias=bias is not None)
    layer.weight = None if weight is None else nn.Parameter(weight)  # type: ignore[assignment]
    layer.bias = None if bias is None else nn.Parameter(bias)  # type: ignore[assignment]
    return layer


def rms_norm(shape: tuple[int, ...], eps: float, weight: Tensor | None) -> nn.RMSNorm:
    with torch.device("meta"):
        layer = nn.RMSNorm(shape, eps, elementwise_affine=weight is not None)
    layer.weight = None if weight is None else nn.Parameter(weight)  # type: ignore[assignment]
    return layer


def read_layer_norm(reading: Reading, node: NodeProto) -> fx.Node:
    """LayerNormalization-17 with constant scale and bias."""
    x, shape, eps = _normalised(reading, node)
    weight = _spread(reading, node, 1, shape)
    bias = _spread(reading, node, 2, shape) if reading.given(node, 2) else None

    def make() -> nn.Module:
        return layer_norm(shape, eps, reading.tensor(weight), None if bias is None else reading.tensor(bias))

    return reading.layer(node, _vector(node, weight), make, x)


def read_rms_norm(reading: Reading, node: NodeProto) -> fx.Node:
    """RMSNormalization-23 with a constant scale."""
    x, shape, eps = _normalised(reading, node)
    weight = _spread(reading, node, 1, shape)
    return reading.layer(node, _vector(node, weight), lambda: rms_norm(shape, eps, reading.tensor(weight)), x)


def _normalised(reading: Reading, node: NodeProto) -> tuple[fx.Node, tuple[int, ...], float]:
    """(input, sizes of the dimensions that the norm goes over, epsilon). `stash_type` is the type to compute in."""
    attributes = reading.attributes(node, axis=-1, epsilon=1e-5, stash_type=1)
    x = reading.activation(node, 0)
    axis = reading.axis(node, attributes["axis"], len(x.meta["shape"]))
    if axis == 0:
        raise reading.unknown(node, "a norm over the batch")
    if any(name and reading.uses(name) for name in node.output[1:]):
        raise reading.unknown(node, "a mean or deviation that is read")
    if attributes["stash_type"] != 1:
        raise reading.unknown(node, f"stash_type {attributes['stash_type']}: only float32 is computed in")
    return x, x.meta["shape"][axis:], float(attributes["epsilon"])


def _spread(reading: Reading, node: NodeProto, index: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A constant input over the dimensions of the norm."""
    array = reading.weight(node, index)
    short = array.reshape(array.shape[max(0, array.ndim - len(shape)) :]) if _leading_ones(array, shape) else array
    try:
        return np.broadcast_to(short, shape)
    except ValueError:
        raise reading.refused(node, f"input {index} has shape {list(array.shape)}, not {list(shape)}") from None


def _leading_ones(array: npt.NDArray[Any], shape: tuple[int, ...]) -> bool:
    return array.ndim > len(shape) and math.prod(array.shape[: array.ndim - len(shape)]) == 1


def _vector(node: NodeProto, weight: npt.NDArray[Any]) -> str:
    """The name of the weight where nodes may have it in common: exporters merge those that happen to be equal."""
    return node.input[1] if weight.ndim == 1 else ""


def layer_norm_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Where channels lie in the dimensions of the norm, it goes over those that stay, and its tensors are sliced along
    them. Where they do not, each is normalised by itself: the ids pass, and the tensors stay."""
    layer: Norm = p.submodule(node)
    ids = p.ids[source(node)]
    (small,) = compressed(ids)
    count = len(layer.normalized_shape)
    first = ids.dim() - count
    varying = [dim for dim in range(first, ids.dim()) if bool((small != small.narrow(dim, 0, 1)).any())]
    dim = max(varying, key=lambda item: ids.shape[item], default=ids.dim() - 1)
    channels = p.along(ids, dim) if varying else p.fresh(ids.shape[dim])
    dims = tuple(channels if first + index == dim else None for index in range(count))
    own = p.layer(str(node.target), lambda: LayerIds(channels, None, {"weight": dims, "bias": dims}))
    if not varying:
        p.freeze(own.output, node, "the norm goes over other dimensions than the channels")
        return ids
    if own.tensors["weight"][dim - first] is None:  # used twice, with its channels along another dimension
        p.freeze(own.output, node, "the norm is used along several dimensions")
        return p.frozen_result([ids], node, "the norm is used along several dimensions")
    p.unite(own.output, channels)
    return p.spread(channels, node, dim)


def resize_layer_norm(layer: Norm, cut: LayerCut) -> None:
    keeps = cut.slices()["weight"]
    layer.normalized_shape = tuple(
        size if kept is None else int(kept.sum()) for size, kept in zip(layer.normalized_shape, keeps, strict=True)
    )


def layer_norm_reference(layer: Norm, cut: LayerCut) -> nn.Module:
    shape = layer.normalized_shape
    keeps, dims = along(cut.slices()["weight"], shape), range(-len(shape), 0)
    eps = layer.eps if layer.eps is not None else torch.finfo(torch.float32).eps
    bias = layer.bias if isinstance(layer, nn.LayerNorm) else None
    return KeptNorm(keeps, dims, eps, layer.weight, bias, centred=isinstance(layer, nn.LayerNorm))


def write_layer_norm(writing: Writing, node: fx.Node) -> None:
    """LayerNormalization-17; before it by its parts, as torch exports it."""
    layer = writing.module.get_submodule(str(node.target))
    assert isinstance(layer, nn.LayerNorm)
    x, count = writing.value(source(node)), len(layer.normalized_shape)
    if writing.opset >= 17:
        inputs = [x, _weight(writing, node, layer)]
        if layer.bias is not None:
            inputs.append(writing.tensor(f"{node.target}.bias", to_numpy(layer.bias)))
        writing.add("LayerNormalization", inputs, node, axis=-count, epsilon=layer.eps)
        return
    centred = writing.step(node, "Sub", x, _mean(writing, node, x, count))
    _write_scaled(writing, node, centred, centred, layer.eps, layer.weight, layer.bias)


def write_rms_norm(writing: Writing, node: fx.Node) -> None:
    """RMSNormalization-23; before it by its parts."""
    layer = writing.module.get_submodule(str(node.target))
    assert isinstance(layer, nn.RMSNorm)
    x = writing.value(source(node))
    eps = layer.eps if layer.eps is not None else torch.finfo(torch.float32).eps
    if writing.opset >= 23:
        axis = -len(layer.normalized_shape)
        writing.add("RMSNormalization", [x, _weight(writing, node, layer)], node, axis=axis, epsilon=eps)
    else:
        _write_scaled(writing, node, x, x, eps, layer.weight, None)


def _weight(writing: Writing, node: fx.Node, layer: Norm) -> str:
    """The scale, which ONNX wants in any case."""
    weight = np.ones(layer.normalized_shape, np.float32) if layer.weight is None else to_numpy(layer.weight)
    return writing.tensor(f"{node.target}.weight", weight)


def _mean(writing: Writing, node: fx.Node, x: str, count: int) -> str:
    """Over the last `count` dimensions. ReduceMean-18 made the axes an input."""
    axes = list(range(len(node.meta["shape"]) - count, len(node.meta["shape"])))
    if writing.opset < 18:
        return writing.step(node, "ReduceMean", x, axes=axes, keepdims=1)
    axes_name = writing.tensor(f"{node.target}.axes", np.array(axes, dtype=np.int64))
    return writing.step(node, "ReduceMean", x, axes_name, keepdims=1)


def _write_scaled(
    writing: Writing, node: fx.Node, x: str, centred: str, eps: float, weight: Tensor | None, bias: Tensor | None
) -> None:
    """x / sqrt(mean(centred²) + eps) * weight + bias."""
    layer: Norm = writing.module.get_submodule(str(node.target))  # type: ignore[assignment]
    variance = _mean(writing, node, writing.step(node, "Mul", centred, centred), len(layer.normalized_shape))
    above = writing.step(node, "Add", variance, writing.tensor(f"{node.target}.eps", np.float32(eps)))
    factors = {"Mul": (weight, "weight"), "Add": (bias, "bias")}
    steps = [(op_type, tensor, name) for op_type, (tensor, name) in factors.items() if tensor is not None]
    inputs = [x, writing.step(node, "Sqrt", above)]
    last = "Div"
    for op_type, tensor, name in steps:
        inputs = [writing.step(node, last, *inputs), writing.tensor(f"{node.target}.{name}", to_numpy(tensor))]
        last = op_type
    writing.add(last, inputs, node)


READERS = {"LayerNormalization": read_layer_norm, "RMSNormalization": read_rms_norm}
FORMS = {
    nn.LayerNorm: Form(
        layer_norm_rule, write_layer_norm, resize_layer=resize_layer_norm, reference=layer_norm_reference
    ),
    nn.RMSNorm: Form(layer_norm_rule, write_rms_norm, resize_layer=resize_layer_norm, reference=layer_norm_reference),
}
