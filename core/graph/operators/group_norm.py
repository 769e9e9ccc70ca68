"""Norms over places and groups of channels. ONNX `GroupNormalization`, `InstanceNormalization` <-> `nn.GroupNorm`,
`nn.InstanceNorm1d | InstanceNorm2d | InstanceNorm3d`.

Of several groups whole ones go. The norm over one group of all channels goes over those that are left after a cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import NodeProto
from torch import Tensor, fx, nn

from core.graph.ids import LayerIds, Propagation, source
from core.graph.operators.form import Form, LayerCut
from core.graph.operators.kept_norms import KeptNorm, along
from core.graph.tensors import to_numpy

if TYPE_CHECKING:
    from core.graph.building import Building
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing

InstanceNorm = nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
RESHAPES = (torch.ops.aten.reshape.default, torch.ops.aten.flatten.using_ints, torch.ops.aten.unflatten.int)
"""They keep the order of the numbers."""

CLASSES: dict[int, Any] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def group_norm(groups: int, channels: int, eps: float, weight: Tensor | None, bias: Tensor | None) -> nn.GroupNorm:
    """`weight` and `bias` are (channels,), both or neither."""
    with torch.device("meta"):
        layer = nn.GroupNorm(groups, channels, eps, affine=weight is not None)
    if weight is not None and bias is not None:
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def read_group_norm(reading: Reading, node: NodeProto) -> fx.Node:
    """GroupNormalization-21. (18, whose scale is per group, is deprecated: the checker refuses it.)"""
    attributes = reading.attributes(node, epsilon=1e-5, num_groups=None, stash_type=1)
    if attributes["stash_type"] != 1:
        raise reading.unknown(node, f"stash_type {attributes['stash_type']}: only float32 is computed in")
    x = reading.activation(node, 0)
    shape, groups = x.meta["shape"], int(attributes["num_groups"] or 0)
    if len(shape) < 2 or groups < 1 or shape[1] % groups:
        raise reading.refused(node, f"{groups} groups of an input of shape {list(shape)}")
    weight, bias = reading.weight(node, 1), reading.weight(node, 2)
    if weight.shape != shape[1:2] or bias.shape != shape[1:2]:
        raise reading.refused(node, f"scale and bias must each hold {shape[1]} numbers")

    def make() -> nn.Module:
        tensors = reading.tensor(weight), reading.tensor(bias)
        return group_norm(groups, shape[1], float(attributes["epsilon"]), *tensors)

    return reading.layer(node, node.input[1], make, x)


def regrouped(building: Building, x: fx.Node, sizes: Sequence[tuple[int, int]]) -> fx.Node | None:
    """A GroupNorm, where `x` is an InstanceNorm of reshaped groups of channels that get their `sizes` back.

    torch exports it so: (N, C, …) -> (N, G, -1) -> InstanceNorm -> (N, C, …). `sizes` are those behind the batch, in
    the two examples that shapes are worked out for. None where it is something else.
    """
    layer: Any = building.root.get_submodule(str(x.target)) if x.op == "call_module" else None
    if type(layer) not in CLASSES.values():
        return None
    start = source(x)
    while start.target in RESHAPES:
        start = source(start)
        known = list(zip(start.meta["shape"][1:], building.other_shape(start)[1:], strict=True))
        groups = layer.num_features
        if known == list(sizes) and known[0][0] % groups == 0:
            times, plain = known[0][0] // groups, bool((layer.weight == 1).all() and (layer.bias == 0).all())
            tensors = (None if plain else item.detach().repeat_interleave(times) for item in (layer.weight, layer.bias))
            building.remove(str(x.target))
            name = building.add_layer(str(x.target), group_norm(groups, known[0][0], layer.eps, *tensors))
            return building.apply(name, start)
    return None


def read_instance_norm(reading: Reading, node: NodeProto) -> fx.Node:
    """InstanceNormalization-6, 22. For a GroupNorm torch writes it between two reshapes: see `regrouped`."""
    epsilon = float(reading.attributes(node, epsilon=1e-5)["epsilon"])
    x = reading.activation(node, 0)
    rank, channels = len(x.meta["shape"]), x.meta["shape"][1]
    if rank not in CLASSES:
        raise reading.unknown(node, f"an input of rank {rank}; 3 to 5 are taken")
    weight, bias = reading.weight(node, 1), reading.weight(node, 2)
    if weight.shape != (channels,) or bias.shape != (channels,):
        raise reading.refused(node, f"scale and bias must each hold {channels} numbers")

    def make() -> nn.Module:
        with torch.device("meta"):
            layer: InstanceNorm = CLASSES[rank](channels, epsilon, affine=True)
        layer.weight, layer.bias = nn.Parameter(reading.tensor(weight)), nn.Parameter(reading.tensor(bias))
        return layer

    return reading.layer(node, node.input[1], make, x)


def group_norm_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Ids pass. Channels of one of several groups go together."""
    layer: nn.GroupNorm = p.submodule(node)
    channels = p.along(p.ids[source(node)], 1)
    if layer.num_groups > 1:
        rows = channels.reshape(layer.num_groups, -1)
        p.unite(rows, rows[:, :1])
    return _carried(p, node, channels)


def instance_norm_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Each channel is normalised by itself."""
    return _carried(p, node, p.along(p.ids[source(node)], 1))


def _carried(p: Propagation, node: fx.Node, channels: Tensor) -> Tensor:
    own = p.layer(str(node.target), lambda: LayerIds(channels, None, {"weight": (channels,), "bias": (channels,)}))
    p.unite(own.output, channels)
    return p.spread(channels, node)


def resize_group_norm(layer: nn.GroupNorm, cut: LayerCut) -> None:
    channels = int(cut.outputs.sum())
    if layer.num_groups > 1:
        layer.num_groups = channels * layer.num_groups // layer.num_channels
    layer.num_channels = channels


def group_norm_reference(layer: nn.GroupNorm, cut: LayerCut) -> nn.Module:
    """Whole groups are normalised by themselves, whatever else is removed."""
    return layer if layer.num_groups > 1 else _OneGroup(layer, cut)


class _OneGroup(nn.Module):
    """The norm over the channels that stay and all places."""

    def __init__(self, layer: nn.GroupNorm, cut: LayerCut) -> None:
        super().__init__()
        self.layer, self.keeps = layer, along([cut.outputs], [layer.num_channels])

    def forward(self, x: Tensor) -> Tensor:
        view = [-1, *[1] * (x.dim() - 2)]
        weight, bias = (None if item is None else item.reshape(view) for item in (self.layer.weight, self.layer.bias))
        norm = KeptNorm(self.keeps.reshape(view), range(1, x.dim()), self.layer.eps, weight, bias)
        result: Tensor = norm(x)
        return result


def resize_instance_norm(layer: InstanceNorm, cut: LayerCut) -> None:
    layer.num_features = int(cut.outputs.sum())


def write_group_norm(writing: Writing, node: fx.Node) -> None:
    """GroupNormalization-21; before it as torch exports it (18 has one scale per group)."""
    layer = writing.module.get_submodule(str(node.target))
    assert isinstance(layer, nn.GroupNorm)
    x, name = writing.value(source(node)), str(node.target)
    tensors = {"weight": np.ones(layer.num_channels, np.float32), "bias": np.zeros(layer.num_channels, np.float32)}
    if layer.affine:
        tensors = {key: to_numpy(getattr(layer, key)) for key in tensors}
    if writing.opset >= 21:
        inputs = [x, *(writing.tensor(f"{name}.{key}", value) for key, value in tensors.items())]
        writing.add("GroupNormalization", inputs, node, epsilon=layer.eps, num_groups=layer.num_groups)
        return
    parted = writing.tensor(f"{name}.groups", np.array([0, layer.num_groups, -1], dtype=np.int64))
    ones = writing.tensor(f"{name}.ones", np.ones(layer.num_groups, np.float32))
    zeros = writing.tensor(f"{name}.zeros", np.zeros(layer.num_groups, np.float32))
    grouped = writing.step(node, "Reshape", x, parted)
    normed = writing.step(node, "InstanceNormalization", grouped, ones, zeros, epsilon=layer.eps)
    shape = writing.step(node, "Shape", x)
    if not layer.affine:
        writing.add("Reshape", [normed, shape], node)
        return
    whole = writing.step(node, "Reshape", normed, shape)
    view = [-1, *[1] * (len(node.meta["shape"]) - 2)]
    weight, bias = (writing.tensor(f"{name}.{key}", value.reshape(view)) for key, value in tensors.items())
    writing.add("Add", [writing.step(node, "Mul", whole, weight), bias], node)


def write_instance_norm(writing: Writing, node: fx.Node) -> None:
    """InstanceNormalization-6 and its successor."""
    layer: InstanceNorm = writing.module.get_submodule(str(node.target))  # type: ignore[assignment]
    tensors = {"weight": np.ones(layer.num_features, np.float32), "bias": np.zeros(layer.num_features, np.float32)}
    if layer.affine:
        tensors = {key: to_numpy(getattr(layer, key)) for key in tensors}
    inputs = [writing.tensor(f"{node.target}.{key}", value) for key, value in tensors.items()]
    writing.add("InstanceNormalization", [writing.value(source(node)), *inputs], node, epsilon=layer.eps)


_INSTANCE_NORM = Form(instance_norm_rule, write_instance_norm, resize_layer=resize_instance_norm)
READERS = {"GroupNormalization": read_group_norm, "InstanceNormalization": read_instance_norm}
FORMS: dict[Any, Form] = {
    nn.GroupNorm: Form(
        group_norm_rule, write_group_norm, resize_layer=resize_group_norm, reference=group_norm_reference
    ),
    **dict.fromkeys(CLASSES.values(), _INSTANCE_NORM),
}
