"""Conv, 1d to 3d: dense, grouped, depthwise, dilated. ONNX `Conv` <-> `nn.Conv1d | Conv2d | Conv3d`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import NodeProto
from torch import Tensor, fx, nn

from core.graph.ids import LayerIds, Propagation, source
from core.graph.operators.form import Form, LayerCut
from core.graph.operators.windows import same_padding, window_attributes
from core.graph.tensors import to_numpy

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CLASSES: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (*CLASSES.values(), *TRANSPOSED)
"""Layers whose output channels are filters."""

ATTRIBUTES: dict[str, Any] = {
    "kernel_shape": None, "strides": None, "pads": None, "dilations": None, "group": 1, "auto_pad": b"NOTSET",
}  # fmt: skip


def read_conv(reading: Reading, node: NodeProto) -> fx.Node:
    """Conv-1, 11, 22 with constant weights. Padding that differs at the two ends becomes a pad in front."""
    attributes = reading.attributes(node, **ATTRIBUTES)
    x = reading.activation(node, 0)
    weight = reading.weight(node, 1)
    bias = reading.weight(node, 2) if reading.given(node, 2) else None
    rank = weight.ndim - 2
    groups = int(attributes["group"])
    channels = (groups * weight.shape[1] if rank in CLASSES else 0, weight.shape[0])
    kernel = check_channels(reading, node, attributes, x, weight, channels, bias)
    window = window_attributes(reading, node, attributes, kernel)
    others = reading.other_shape(x)[2:]
    begin, end = same_padding(reading, node, attributes, x.meta["shape"][2:], kernel, window, others)
    if begin != end:
        amounts = [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]
        x = reading.call(torch.ops.aten.constant_pad_nd.default, x, amounts, 0.0)
        begin = (0,) * rank

    def make() -> nn.Module:
        with torch.device("meta"):
            layer: Convolution = CLASSES[rank](
                weight.shape[1] * groups, weight.shape[0], kernel, window.strides, begin, window.dilations, groups,
                bias is not None,
            )  # fmt: skip
        layer.weight = nn.Parameter(reading.tensor(weight))
        if bias is not None:
            layer.bias = nn.Parameter(reading.tensor(bias))
        return layer

    shared = (node.input[1], node.input[2] if bias is not None else "", window, begin, groups)
    return reading.layer(node, node.input[1], make, x, shared=shared)


def check_channels(
    reading: Reading,
    node: NodeProto,
    attributes: dict[str, Any],
    x: fx.Node,
    weight: npt.NDArray[np.float32],
    channels: tuple[int, int],
    bias: npt.NDArray[np.float32] | None,
) -> tuple[int, ...]:
    """The size of the kernel. Refuses a weight, a bias or groups that do not fit the input and `channels` (in, out)."""
    shape, groups = x.meta["shape"], int(attributes["group"])
    if weight.ndim - 2 not in CLASSES or len(shape) != weight.ndim:
        raise reading.unknown(node, f"a weight of rank {weight.ndim} on an input of rank {len(shape)}")
    kernel = tuple(weight.shape[2:])
    if attributes["kernel_shape"] is not None and tuple(attributes["kernel_shape"]) != kernel:
        raise reading.refused(node, f"kernel_shape is {attributes['kernel_shape']}, the weight's is {list(kernel)}")
    if channels[0] != shape[1] != reading.other_shape(x)[1]:
        wanted = f"the weight takes {channels[0]}: export the model with that size fixed"
        raise reading.refused(node, f"its input leaves the number of channels open (dimension 1), {wanted}")
    if groups < 1 or channels[0] != shape[1] or weight.shape[0] % groups:
        told = f"group {groups}, a weight of shape {list(weight.shape)} and {shape[1]} input channels"
        raise reading.refused(node, f"{told} do not fit together")
    if bias is not None and bias.shape != channels[1:]:
        raise reading.refused(node, f"the bias has shape {list(bias.shape)}, not [{channels[1]}]")
    return kernel


def conv_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Dense: consumes the input's channels, makes new ones.

    Grouped, cut whole: all channels of a group, in and out, are one. Cut inside: the channels at one place of every
    group, of the input and of the output, are one.
    """
    layer: Convolution = p.submodule(node)
    inside = p.grouped.get(str(node.target)) == "inside"

    def make() -> LayerIds:
        made, read = p.fresh(layer.out_channels), p.fresh(layer.in_channels)
        if layer.groups == 1:
            return LayerIds(made, read, {"weight": (made, read), "bias": (made,)}, reads=("weight", 1))
        rows, columns = made.reshape(layer.groups, -1), read.reshape(layer.groups, -1)
        if inside:
            p.unite(rows, rows[:1])
            p.unite(columns, columns[:1])
            return LayerIds(made, read, {"weight": (made, columns[0]), "bias": (made,)}, reads=("weight", 1))
        p.unite(rows, rows[:, :1])
        p.unite(columns, rows[:, :1])
        return LayerIds(made, read, {"weight": (made, None), "bias": (made,)})

    own = p.layer(str(node.target), make)
    assert own.input is not None
    p.unite(own.input, p.along(p.ids[source(node)], 1))
    return p.spread(own.output, node)


def resize_conv(layer: Convolution, cut: LayerCut) -> None:
    """The number of groups follows from the channels that are left and how many of them a filter reads."""
    layer.out_channels, per_group = layer.weight.shape[:2]
    layer.in_channels = int(cut.inputs.sum())
    layer.groups = layer.in_channels // per_group


def conv_macs(layer: Convolution, output: tuple[int, ...]) -> int:
    """`output` is (1, C, ...): every output number takes one MAC per weight of its filter. The bias is not counted."""
    return math.prod(output) * (layer.in_channels // layer.groups) * math.prod(layer.kernel_size)


def write_conv(writing: Writing, node: fx.Node) -> None:
    """Conv-1 holds all of it."""
    layer: Convolution = writing.module.get_submodule(str(node.target))  # type: ignore[assignment]
    assert not isinstance(layer.padding, str)
    inputs = [writing.value(source(node)), writing.tensor(f"{node.target}.weight", to_numpy(layer.weight))]
    if layer.bias is not None:
        inputs.append(writing.tensor(f"{node.target}.bias", to_numpy(layer.bias)))
    writing.add(
        "Conv", inputs, node,
        dilations=list(layer.dilation), group=layer.groups, kernel_shape=list(layer.kernel_size),
        pads=[*layer.padding, *layer.padding], strides=list(layer.stride),
    )  # fmt: skip


_FORM = Form(conv_rule, write_conv, resize_layer=resize_conv, macs=conv_macs)
READERS = {"Conv": read_conv}
FORMS = dict.fromkeys(CLASSES.values(), _FORM)
