"""Batch normalisation, and the norms without tensors, which are read as their parts.

ONNX `BatchNormalization` <-> `nn.BatchNorm1d | BatchNorm2d | BatchNorm3d`. `MeanVarianceNormalization` and
`LpNormalization` become means, norms and divisions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    own = p.layer(str(node.target), lambda: LayerIds(channels, None, dict.fromkeys(TENSORS, (channels,))))
    p.unite(own.output, channels)
    return p.spread(channels, node)


def resize_batch_norm(layer: BatchNorm, cut: LayerCut) -> None:
    layer.num_features = int(cut.outputs.sum())


def write_batch_norm(writing: Writing, node: fx.Node) -> None:
    """BatchNormalization-9 and its successors take the same five inputs."""
    layer: BatchNorm = writing.module.get_submodule(str(node.target))  # type: ignore[assignment]
    inputs = [writing.tensor(f"{node.target}.{name}", to_numpy(getattr(layer, name))) for name in TENSORS]
    momentum = 1 - (0.1 if layer.momentum is None else layer.momentum)
    writing.add(
        "BatchNormalization", [writing.value(source(node)), *inputs], node, epsilon=layer.eps, momentum=momentum
    )


def read_mean_variance(reading: Reading, node: NodeProto) -> fx.Node:
    """MeanVarianceNormalization-9, 13: (x - mean) / (sqrt(mean of x² - mean²) + 1e-9), as its function body says."""
    x = reading.activation(node, 0)
    axes = reading.attributes(node, axes=None)["axes"] or [0, 2, 3]
    dims = sorted(reading.axis(node, axis, len(x.meta["shape"])) for axis in axes)
    if 0 in dims:
        raise reading.unknown(node, f"axes {axes}: a mean over the batch")
    mean = reading.call(aten.mean.dim, x, dims, True)
    squares = reading.call(aten.mean.dim, reading.call(aten.mul.Tensor, x, x), dims, True)
    variance = reading.call(aten.sub.Tensor, squares, reading.call(aten.mul.Tensor, mean, mean))
    deviation = reading.call(aten.add.Tensor, reading.call(aten.sqrt.default, variance), 1e-9)
    return reading.call(aten.div.Tensor, reading.call(aten.sub.Tensor, x, mean), deviation)


def read_lp_norm(reading: Reading, node: NodeProto) -> fx.Node:
    """LpNormalization-1, 22: x divided by its norm along one axis. Where the norm is 0 the result is 0 too."""
    attributes = reading.attributes(node, axis=-1, p=2)
    x = reading.activation(node, 0)
    dim = reading.axis(node, attributes["axis"], len(x.meta["shape"]))
    if dim == 0:
        raise reading.unknown(node, "a norm over the batch")
    if attributes["p"] not in (1, 2):
        raise reading.refused(node, f"p is {attributes['p']}; it is 1 or 2")
    norm = reading.call(aten.linalg_vector_norm.default, x, attributes["p"], [dim], True)
    smallest = float(torch.finfo(torch.float32).tiny)  # of the numbers without loss of digits
    return reading.call(aten.div.Tensor, x, reading.call(aten.clamp.default, norm, smallest))


_FORM = Form(batch_norm_rule, write_batch_norm, resize_layer=resize_batch_norm)
READERS = {
    "BatchNormalization": read_batch_norm,
    "LpNormalization": read_lp_norm,
    "MeanVarianceNormalization": read_mean_variance,
}
FORMS = {nn.BatchNorm1d: _FORM, nn.BatchNorm2d: _FORM, nn.BatchNorm3d: _FORM}
