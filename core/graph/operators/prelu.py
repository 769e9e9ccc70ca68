"""PRelu: a slope below 0 per channel, or one for all. ONNX `PRelu` <-> `nn.PReLU`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx, nn

from core.graph.ids import LayerIds, Propagation, source
from core.graph.operators.form import Form, LayerCut
from core.graph.tensors import to_numpy

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

aten = torch.ops.aten


def read_prelu(reading: Reading, node: NodeProto) -> fx.Node:
    """PRelu-9, 16. Slopes that are neither one nor one per channel (or that are computed) are multiplied with what is
    below 0. Exporters merge slopes that happen to be equal: each node has its own."""
    reading.attributes(node)
    x = reading.activation(node, 0)
    shape = x.meta["shape"]
    if not reading.is_constant(node.input[1]):
        return _as_product(reading, x, reading.activation(node, 1))
    slope = reading.weight(node, 1)
    if slope.ndim > len(shape):
        raise reading.refused(node, f"slopes of rank {slope.ndim} on an input of rank {len(shape)}")
    sizes = (1,) * (len(shape) - slope.ndim) + slope.shape
    if slope.size != sizes[1] or slope.size not in (1, shape[1]):
        return _as_product(reading, x, reading.activation(node, 1))

    def make() -> nn.Module:
        with torch.device("meta"):
            layer = nn.PReLU(slope.size)
        layer.weight = nn.Parameter(reading.tensor(slope.reshape(-1)))
        return layer

    return reading.layer(node, node.input[1] if reading.uses(node.input[1]) == 1 else "", make, x)


def _as_product(reading: Reading, x: fx.Node, slope: fx.Node) -> fx.Node:
    below = reading.call(aten.mul.Tensor, reading.call(aten.clamp.default, x, None, 0.0), slope)
    return reading.call(aten.add.Tensor, reading.call(aten.relu.default, x), below)


def prelu_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Each channel by itself: the ids stay, and a slope per channel goes with its channel."""
    layer: nn.PReLU = p.submodule(node)
    ids = p.ids[source(node)]
    if layer.num_parameters == 1:
        return ids
    channels = p.along(ids, 1)
    own = p.layer(str(node.target), lambda: LayerIds(channels, None, {"weight": (channels,)}))
    p.unite(own.output, channels)
    return ids


def resize_prelu(layer: nn.PReLU, cut: LayerCut) -> None:
    layer.num_parameters = int(cut.outputs.sum())


def write_prelu(writing: Writing, node: fx.Node) -> None:
    """PRelu-9: the slopes along dimension 1 of as many as the input has."""
    layer: nn.PReLU = writing.module.get_submodule(str(node.target))  # type: ignore[assignment]
    behind = len(source(node).meta["shape"]) - 2
    slope = np.reshape(to_numpy(layer.weight), (-1, *[1] * behind))
    writing.add("PRelu", [writing.value(source(node)), writing.tensor(f"{node.target}.weight", slope)], node)


READERS = {"PRelu": read_prelu}
FORMS = {nn.PReLU: Form(prelu_rule, write_prelu, resize_layer=resize_prelu)}
