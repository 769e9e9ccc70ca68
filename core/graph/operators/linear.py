"""Fully connected layers. ONNX `Gemm`, `MatMul` (and the `Add` of a bias behind it) <-> `nn.Linear`.

`matmul.py` reads MatMul.
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
from core.graph.tensors import to_numpy

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing


ALONE = "alone"
"""Marks the node of a Linear whose weight no other node reads."""


def linear(reading: Reading, weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None = None) -> nn.Linear:
    """`weight` is (out, in), `bias` (out,)."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(reading.tensor(weight))
    if bias is not None:
        layer.bias = nn.Parameter(reading.tensor(bias))
    return layer


def read_gemm(reading: Reading, node: NodeProto) -> fx.Node:
    """Gemm-9, 11, 13: y = alpha x W' + beta c. Constants alpha and beta go into weight and bias; what is computed
    (c is an activation) is added behind the layer."""
    if len(reading.activation(node, 0).meta["shape"]) != 2:
        raise reading.refused(node, "Gemm multiplies matrices")
    return gemm(reading, node)


def gemm(reading: Reading, node: NodeProto) -> fx.Node:
    """Gemm of rows, which may lie in several dimensions."""
    attributes = reading.attributes(node, alpha=1.0, beta=1.0, transA=0, transB=0)
    if attributes["transA"]:
        raise reading.unknown(node, "transA = 1, a sum over the batch")
    x = reading.activation(node, 0)
    weight = reading.weight(node, 1)
    computed = reading.given(node, 2) and not reading.is_constant(node.input[2])
    bias = reading.weight(node, 2) if reading.given(node, 2) and not computed else None
    if weight.ndim != 2:
        raise reading.refused(node, "Gemm multiplies matrices")
    weight = weight if attributes["transB"] else weight.T
    if weight.shape[1] != x.meta["shape"][-1]:
        raise reading.refused(node, f"a weight for {weight.shape[1]} inputs meets {x.meta['shape'][-1]}")
    weight = weight * np.float32(attributes["alpha"]) if attributes["alpha"] != 1 else weight
    if bias is not None:
        if bias.ndim == 2 and bias.shape[0] != 1:
            raise reading.unknown(node, f"a third input of shape {list(bias.shape)}, one for each of the batch")
        if bias.ndim > 2 or bias.size not in (1, weight.shape[0]):
            raise reading.refused(node, f"a third input of shape {list(bias.shape)} meets {weight.shape[0]} outputs")
        bias = np.broadcast_to(bias.reshape(-1), (weight.shape[0],)) * np.float32(attributes["beta"])
    shared = (node.input[1], *(() if computed else node.input[2:]), str(attributes))
    made = reading.layer(node, node.input[1], lambda: linear(reading, weight, bias), x, shared=shared)
    made.meta[ALONE] = reading.uses(node.input[1]) == 1
    if not computed:
        return made
    added = reading.activation(node, 2)
    if attributes["beta"] != 1:
        added = reading.call(torch.ops.aten.mul.Tensor, added, float(attributes["beta"]))
    return reading.call(torch.ops.aten.add.Tensor, made, added)


def raise_bias(reading: Reading, node: NodeProto) -> fx.Node | None:
    """The Linear that an Add completes: one side is a product read nowhere else, the other a constant vector.

    A layer that is used twice keeps its sums apart: they may be with different vectors.
    """
    for matmul, constant in ((0, 1), (1, 0)):
        if reading.is_constant(node.input[matmul]) or not reading.is_constant(node.input[constant]):
            continue
        product = reading.activation(node, matmul)
        if product.op != "call_module" or reading.uses(node.input[matmul]) != 1 or not product.meta.get(ALONE):
            continue
        layer = reading.root.get_submodule(str(product.target))
        if not isinstance(layer, nn.Linear) or "bias" in dict(layer.named_parameters()) or product.users:
            continue
        bias = reading.weight(node, constant)
        if bias.shape == (layer.out_features,) or (bias.ndim == 2 and bias.shape == (1, layer.out_features)):
            layer.bias = nn.Parameter(reading.tensor(bias.reshape(-1)))
            return product
    return None


def linear_rule(p: Propagation, node: fx.Node) -> Tensor:
    """Consumes the ids along the last dimension, makes new ones. Channels that lie along another dimension alone pass:
    the layer goes over each by itself (tokens mixed, as in an MLP-Mixer), and its own width stays."""
    layer: nn.Linear = p.submodule(node)
    ids = p.ids[source(node)]
    (small,) = compressed(ids)
    varying = [dim for dim in range(ids.dim()) if bool((small != small.narrow(dim, 0, 1)).any())]

    def make() -> LayerIds:
        made, read = p.fresh(layer.out_features), p.fresh(layer.in_features)
        return LayerIds(made, read, {"weight": (made, read), "bias": (made,)}, reads=("weight", 1))

    own = p.layer(str(node.target), make)
    assert own.input is not None
    if varying and ids.dim() - 1 not in varying:
        for side in (own.input, own.output):
            p.freeze(side, node, "a linear layer runs across another dimension than the channels")
        return ids.narrow(-1, 0, 1).expand(node.meta["shape"])
    p.unite(own.input, p.along(ids, -1))
    return p.spread(own.output, node, dim=-1)


def resize_linear(layer: nn.Linear, cut: LayerCut) -> None:
    layer.out_features, layer.in_features = layer.weight.shape


def linear_macs(layer: nn.Linear, output: tuple[int, ...]) -> int:
    """`output` is (1, ..., out_features)."""
    return math.prod(output) * layer.in_features


def write_linear(writing: Writing, node: fx.Node) -> None:
    """Gemm on matrices with a bias; else MatMul (and Add)."""
    layer: nn.Linear = writing.module.get_submodule(str(node.target))  # type: ignore[assignment]
    parameters = dict(layer.named_parameters())
    x, weight = writing.value(source(node)), to_numpy(parameters["weight"])
    if "bias" not in parameters:
        writing.add("MatMul", [x, writing.tensor(f"{node.target}.weight", np.ascontiguousarray(weight.T))], node)
        return
    bias = writing.tensor(f"{node.target}.bias", to_numpy(parameters["bias"]))
    if len(node.meta["shape"]) == 2:
        inputs = [x, writing.tensor(f"{node.target}.weight", weight), bias]
        writing.add("Gemm", inputs, node, alpha=1.0, beta=1.0, transB=1)
        return
    turned = writing.tensor(f"{node.target}.weight", np.ascontiguousarray(weight.T))
    product = writing.add("MatMul", [x, turned], None, hint=f"{node.target}.product")
    writing.add("Add", [product, bias], node)


READERS = {"Gemm": read_gemm}
FORMS = {nn.Linear: Form(linear_rule, write_linear, resize_layer=resize_linear, macs=linear_macs)}
