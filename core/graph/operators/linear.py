"""Fully connected layers. ONNX `Gemm`, `MatMul` (and the `Add` of a bias behind it) <-> `nn.Linear`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import NodeProto
from torch import Tensor, fx, nn

from core.graph.ids import LayerIds, Propagation, source
from core.graph.operators.form import Form
from core.graph.tensors import to_numpy

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.onnx_writing import Writing


def _layer(weight: npt.NDArray[Any], bias: npt.NDArray[Any] | None, reading: Reading) -> nn.Linear:
    """`weight` is (out, in)."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(reading.tensor(weight))
    if bias is not None:
        layer.bias = nn.Parameter(reading.tensor(bias))
    return layer


def read_gemm(reading: Reading, node: NodeProto) -> fx.Node:
    """Gemm-9, 11, 13: y = alpha x W' + beta c. Constants alpha and beta go into weight and bias."""
    attributes = reading.attributes(node, alpha=1.0, beta=1.0, transA=0, transB=0)
    if attributes["transA"]:
        raise reading.unknown(node, "transA = 1")
    x = reading.activation(node, 0)
    weight = reading.weight(node, 1)
    bias = reading.weight(node, 2) if reading.given(node, 2) else None
    if weight.ndim != 2 or len(x.meta["shape"]) != 2:
        raise reading.refused(node, "Gemm multiplies matrices")
    weight = weight if attributes["transB"] else weight.T
    if weight.shape[1] != x.meta["shape"][1]:
        raise reading.refused(node, f"a weight for {weight.shape[1]} inputs meets {x.meta['shape'][1]}")
    weight = weight * np.float32(attributes["alpha"]) if attributes["alpha"] != 1 else weight
    if bias is not None:
        if bias.ndim > 2 or bias.size not in (1, weight.shape[0]) or (bias.ndim == 2 and bias.shape[0] != 1):
            raise reading.unknown(node, f"a third input of shape {list(bias.shape)} on {weight.shape[0]} outputs")
        bias = np.broadcast_to(bias.reshape(-1), (weight.shape[0],)) * np.float32(attributes["beta"])
    shared = (*node.input[1:], str(attributes))
    return reading.layer(node, node.input[1], lambda: _layer(weight, bias, reading), x, shared=shared)


def read_matmul(reading: Reading, node: NodeProto) -> fx.Node:
    """MatMul-9, 13 by a constant matrix on the right. A bias is put in by `raise_bias`."""
    reading.attributes(node)
    if not reading.is_constant(node.input[1]):
        raise reading.unknown(node, "a product of two activations")
    x = reading.activation(node, 0)
    weight = reading.weight(node, 1)
    if weight.ndim != 2 or len(x.meta["shape"]) < 2:
        raise reading.unknown(node, f"a constant of rank {weight.ndim} on an input of rank {len(x.meta['shape'])}")
    if weight.shape[0] != x.meta["shape"][-1]:
        raise reading.refused(node, f"a weight for {weight.shape[0]} inputs meets {x.meta['shape'][-1]}")
    return reading.layer(node, node.input[1], lambda: _layer(weight.T, None, reading), x)


def raise_bias(reading: Reading, node: NodeProto) -> fx.Node | None:
    """The Linear that an Add completes: one side is a MatMul read nowhere else, the other a constant vector."""
    for matmul, constant in ((0, 1), (1, 0)):
        if reading.is_constant(node.input[matmul]) or not reading.is_constant(node.input[constant]):
            continue
        product = reading.activation(node, matmul)
        if product.op != "call_module" or reading.uses(node.input[matmul]) != 1:
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
    """Consumes the ids along the last dimension, makes new ones."""
    layer: nn.Linear = p.submodule(node)
    ids = p.ids[source(node)]
    own = p.layer(str(node.target), lambda: LayerIds(p.fresh(layer.out_features), p.fresh(layer.in_features)))
    assert own.input is not None
    others = ids.narrow(-1, 0, 1)
    if others.numel() > 1 and not bool((others == others.reshape(-1)[0]).all()):
        # the layer runs along one dimension while the channels lie along another
        reason = "a linear layer runs across another dimension than the channels"
        p.freeze(own.input, node, reason)
        p.freeze(own.output, node, reason)
        return p.frozen_result([ids], node, reason)
    p.unite(own.input, p.along(ids, -1))
    return p.spread(own.output, node, dim=-1)


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


READERS = {"Gemm": read_gemm, "MatMul": read_matmul}
FORMS = {nn.Linear: Form(linear_rule, write_linear, macs=linear_macs)}
