"""Transposed convolution, 1d to 3d. ONNX `ConvTranspose` <-> `nn.ConvTranspose1d | ConvTranspose2d | ConvTranspose3d`.

Its weight is (in, out / groups, ...): a filter lies along dimension 1, and the input is read along dimension 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from onnx import NodeProto
from torch import Tensor, fx, nn

from core.graph.ids import LayerIds, Propagation, source
from core.graph.operators.convolution import ATTRIBUTES, TRANSPOSED, check_channels
from core.graph.operators.form import Form, LayerCut
from core.graph.operators.slicing import TO_THE_END
from core.graph.operators.windows import window_attributes
from core.graph.tensors import to_numpy

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
CLASSES: dict[int, Any] = dict(enumerate(TRANSPOSED, start=1))


def read_conv_transpose(reading: Reading, node: NodeProto) -> fx.Node:
    """ConvTranspose-1, 11, 22 with constant weights. What the layer itself cannot leave out is sliced off behind it."""
    attributes = reading.attributes(node, **ATTRIBUTES, output_padding=None, output_shape=None)
    x = reading.activation(node, 0)
    weight = reading.weight(node, 1)
    bias = reading.weight(node, 2) if reading.given(node, 2) else None
    rank = weight.ndim - 2
    groups = int(attributes["group"])
    out_channels = groups * weight.shape[1] if rank in CLASSES else 0
    kernel = check_channels(reading, node, attributes, x, weight, (weight.shape[0], out_channels), bias)
    window = window_attributes(reading, node, attributes, kernel)
    extra = tuple(attributes["output_padding"] or (0,) * rank)
    if len(extra) != rank or not all(0 <= value <= 65_535 for value in extra):
        raise reading.refused(node, f"output_padding is {list(extra)}; {rank} numbers from 0 to 65535 are needed")
    # what a full transposed convolution makes, without padding, of each spatial size
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, window.dilations, strict=True)]
    pads = _pads(reading, node, attributes, x, [r + e for r, e in zip(reach, extra, strict=True)], window.strides)
    places = [_place(begin, end, more) for (begin, end), more in zip(pads, extra, strict=True)]
    padding, output_padding = (tuple(place[index] for place in places) for index in (0, 1))
    for more, stride, dilation in zip(output_padding, window.strides, window.dilations, strict=True):
        if more >= max(stride, dilation):
            steps = f"stride {stride} and dilation {dilation}"
            raise reading.unknown(node, f"{more} places behind its output, with {steps}")

    def make() -> nn.Module:
        with torch.device("meta"):
            layer: Transposed = CLASSES[rank](
                weight.shape[0], out_channels, kernel, window.strides, padding, output_padding, groups,
                bias is not None, window.dilations,
            )  # fmt: skip
        layer.weight = nn.Parameter(reading.tensor(weight))
        if bias is not None:
            layer.bias = nn.Parameter(reading.tensor(bias))
        return layer

    shared = (node.input[1], node.input[2] if bias is not None else "", window, padding, output_padding, groups)
    made = reading.layer(node, node.input[1], make, x, shared=shared)
    for dim, (_, _, front, back) in enumerate(places, start=2):
        size = made.meta["shape"][dim]
        if front + back >= size:
            raise reading.refused(node, f"pads leave nothing of dimension {dim}")
        if front or back:
            end = (-back or TO_THE_END) if reading.dynamic_space else size - back
            made = reading.call(torch.ops.aten.slice.Tensor, made, dim, front, end, 1)
    return made


def _pads(
    reading: Reading,
    node: NodeProto,
    attributes: dict[str, Any],
    x: fx.Node,
    reach: list[int],
    strides: tuple[int, ...],
) -> list[tuple[int, int]]:
    """(at the beginning, at the end) of each dimension of the output, with `auto_pad` and `output_shape` worked out.

    `reach` is how far one number of the input reaches, the output padding counted. The second may be negative: so many
    places behind the last that the input reaches hold the bias alone.
    """
    auto, wanted, rank = attributes["auto_pad"].decode(), attributes["output_shape"], len(reach)
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise reading.unknown(node, f"auto_pad {auto!r}")
    if wanted is None and auto in ("NOTSET", "VALID"):
        pads = tuple((attributes["pads"] if auto == "NOTSET" else None) or (0,) * (2 * rank))
        if len(pads) != 2 * rank or not all(0 <= value <= 65_535 for value in pads):
            raise reading.refused(node, f"pads is {list(pads)}; {2 * rank} numbers from 0 to 65535 are needed")
        return list(zip(pads[:rank], pads[rank:], strict=True))
    spatial, other = x.meta["shape"][2:], reading.other_shape(x)[2:]
    if wanted is not None and len(wanted) == rank + 2:
        wanted = wanted[2:]
    if wanted is not None and (len(wanted) != rank or not all(1 <= size < 2**31 for size in wanted)):
        raise reading.refused(node, f"output_shape is {list(wanted)}; {rank} sizes are needed")
    if wanted is not None and spatial != other:
        raise reading.unknown(node, "an output_shape on inputs of dynamic size")
    found = []
    for index, (size, stride) in enumerate(zip(spatial, strides, strict=True)):
        target = size * stride if wanted is None else wanted[index]
        total = (size - 1) * stride + reach[index] - target
        if total < 0 and auto != "NOTSET":
            raise reading.unknown(node, f"auto_pad {auto!r} that would add places, where runtimes do not agree")
        small, large = max(total, 0) // 2, max(total, 0) - max(total, 0) // 2
        begin = small if auto == "SAME_UPPER" else large
        found.append((begin, total - begin))
    return found


def _place(begin: int, end: int, extra: int) -> tuple[int, int, int, int]:
    """(padding, output padding, places to slice off in front, behind) that are ONNX's pads and output padding.

    The layer's padding is the same at both ends; its output padding gives back places at the end.
    """
    if 0 <= end <= begin:
        return end, extra, begin - end, 0
    more = extra - (end - begin)
    return begin, max(more, 0), 0, max(-more, 0)


def conv_transpose_rule(p: Propagation, node: fx.Node) -> Tensor:
    """As for Conv, the dimensions of the weight changed over."""
    layer: Transposed = p.submodule(node)
    inside = p.grouped.get(str(node.target)) == "inside"

    def make() -> LayerIds:
        made, read = p.fresh(layer.out_channels), p.fresh(layer.in_channels)
        if layer.groups == 1:
            return LayerIds(made, read, {"weight": (read, made), "bias": (made,)}, reads=("weight", 0))
        rows, columns = read.reshape(layer.groups, -1), made.reshape(layer.groups, -1)
        if inside:
            p.unite(rows, rows[:1])
            p.unite(columns, columns[:1])
            return LayerIds(made, read, {"weight": (read, columns[0]), "bias": (made,)}, reads=("weight", 0))
        p.unite(rows, rows[:, :1])
        p.unite(columns, rows[:, :1])
        return LayerIds(made, read, {"weight": (read, None), "bias": (made,)})

    own = p.layer(str(node.target), make)
    assert own.input is not None
    p.unite(own.input, p.along(p.ids[source(node)], 1))
    return p.spread(own.output, node)


def resize_conv_transpose(layer: Transposed, cut: LayerCut) -> None:
    """The number of groups follows from the channels that are left and how many of them a group makes."""
    layer.in_channels, per_group = layer.weight.shape[:2]
    layer.out_channels = int(cut.outputs.sum())
    layer.groups = layer.out_channels // per_group


def conv_transpose_macs(layer: Transposed, output: tuple[int, ...]) -> int:
    """`output` is (1, C, ...): every number of the *input* is multiplied by each weight that it meets. Not the bias."""
    places = 1
    for index, size in enumerate(output[2:]):
        padding, extra = layer.padding[index], layer.output_padding[index]
        assert not isinstance(padding, str)
        reach = (layer.kernel_size[index] - 1) * layer.dilation[index] + 1
        places *= (size - extra - reach + 2 * padding) // layer.stride[index] + 1
    return places * layer.in_channels * (layer.out_channels // layer.groups) * math.prod(layer.kernel_size)


def write_conv_transpose(writing: Writing, node: fx.Node) -> None:
    """ConvTranspose-1 holds all of it."""
    layer: Transposed = writing.module.get_submodule(str(node.target))  # type: ignore[assignment]
    inputs = [writing.value(source(node)), writing.tensor(f"{node.target}.weight", to_numpy(layer.weight))]
    if layer.bias is not None:
        inputs.append(writing.tensor(f"{node.target}.bias", to_numpy(layer.bias)))
    assert not isinstance(layer.padding, str)
    writing.add(
        "ConvTranspose", inputs, node,
        dilations=list(layer.dilation), group=layer.groups, kernel_shape=list(layer.kernel_size),
        output_padding=list(layer.output_padding), pads=[*layer.padding, *layer.padding], strides=list(layer.stride),
    )  # fmt: skip


_FORM = Form(conv_transpose_rule, write_conv_transpose, resize_layer=resize_conv_transpose, macs=conv_transpose_macs)
READERS = {"ConvTranspose": read_conv_transpose}
FORMS = dict.fromkeys(TRANSPOSED, _FORM)
