"""BatchNormalization. ONNX `BatchNormalization` <-> `nn.BatchNorm1d | BatchNorm2d | BatchNorm3d`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from onnx import NodeProto
from torch import Tensor, fx, nn

from core.graph.ids import LayerIds, Propagation, source
from core.graph.operators.form import Form
from core.graph.tensors import to_numpy

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
CLASSES: dict[int, type[BatchNorm]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
TENSORS = ("weight", "bias", "running_mean", "running_var")


def read_batch_norm(reading: Reading, node: NodeProto) -> fx.Node:
    """BatchNormalization-9, 14, 15 in inference mode. ONNX's momentum is torch's 1 - momentum."""
    attributes = reading.attributes(node, epsilon=1e-5, momentum=0.9, training_mode=0, spatial=1)
    if attributes["training_mode"] or attributes["spatial"] != 1 or sum(bool(name) for name in node.output) != 1:
        raise reading.unknown(node, "BatchNormalization in training mode")
    x = reading.activation(node, 0)
    channels = x.meta["shape"][1] if len(x.meta["shape"]) in CLASSES else -1
    tensors = [reading.weight(node, index) for index in range(1, 5)]
    if any(tensor.shape != (channels,) for tensor in tensors):
        raise reading.refused(node, f"scale, bias, mean and variance must each hold {channels} numbers")

    def make() -> nn.Module:
        with torch.device("meta"):
            layer = CLASSES[len(x.meta["shape"])](channels, float(attributes["epsilon"]), 1 - attributes["momentum"])
        layer.weight, layer.bias = (nn.Parameter(reading.tensor(tensor)) for tensor in tensors[:2])
        layer.running_mean, layer.running_var = (reading.tensor(tensor) for tensor in tensors[2:])
        layer.num_batches_tracked = torch.zeros((), dtype=torch.int64)
        return layer

    return reading.layer(node, node.input[1], make, x)


def batch_norm_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Each channel is normalised by itself: ids pass, and the layer's own tensors are sliced like its input."""
    channels = p.along(p.ids[source(node)], 1)
    own = p.layer(str(node.target), lambda: LayerIds(channels, None))
    p.unite(own.output, channels)
    return p.spread(channels, node)


def write_batch_norm(writing: Writing, node: fx.Node) -> None:
    """BatchNormalization-9 and its successors take the same five inputs."""
    layer: BatchNorm = writing.module.get_submodule(str(node.target))  # type: ignore[assignment]
    inputs = [writing.tensor(f"{node.target}.{name}", to_numpy(getattr(layer, name))) for name in TENSORS]
    momentum = 1 - (0.1 if layer.momentum is None else layer.momentum)
    writing.add(
        "BatchNormalization", [writing.value(source(node)), *inputs], node, epsilon=layer.eps, momentum=momentum
    )


_FORM = Form(batch_norm_rule, write_batch_norm)
READERS = {"BatchNormalization": read_batch_norm}
FORMS = {nn.BatchNorm1d: _FORM, nn.BatchNorm2d: _FORM, nn.BatchNorm3d: _FORM}
