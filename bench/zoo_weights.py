"""Weights worth measuring with, for networks that come without trained ones (bench/zoo.py).

Constant weights (the light models are all 0.02) and constant scales (a fresh BatchNorm is all 1) are replaced by seeded
random ones, so that cutting the wrong channel shows; networks with random weights then see twenty batches in training
mode, so that the statistics of their BatchNorms are of their own activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

from core.graph.export import run_onnx

BATCHES = 20
SEED = 0


def randomise(module: nn.Module) -> None:
    """Replaces parameters that are one number all over: two channels that are alike could be taken for each other."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                if parameter.dim() == 1 and "bias" in name.rpartition(".")[2]:
                    parameter.normal_(0, 0.1, generator=generator)
                else:
                    parameter.uniform_(0.5, 1.5, generator=generator)


def settle(module: nn.Module, size: int) -> None:
    """Twenty batches in training mode, of which BatchNorms keep the mean statistics, whatever their momentum (that of
    torchvision's MobileNetV3 is 0.01: its statistics would be those of nothing)."""
    generator = torch.Generator().manual_seed(SEED)
    norms = {layer: layer.momentum for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the mean of all batches
    module.train()
    with torch.no_grad():
        for _ in range(BATCHES):
            module(torch.randn(4, 3, size, size, generator=generator))
    for layer, momentum in norms.items():
        layer.momentum = momentum


def replace_constant_weights(model: ModelProto) -> None:
    """Fills, in place, every weight that is one number all over: a light model makes them by ConstantOfShape.

    He's deviation for what is multiplied and summed, scales from 0.5 to 1.5, small shifts.
    """
    made_by = {node.output[0]: node for node in model.graph.node if node.op_type == "ConstantOfShape"}
    given = {tensor.name: tensor for tensor in model.graph.initializer}
    random = np.random.default_rng(SEED)
    done: dict[str, npt.NDArray[np.float32]] = {}
    for name, node, index in _weights_of(model):
        shape: tuple[int, ...]
        if name in made_by:
            shape = tuple(numpy_helper.to_array(given[made_by[name].input[0]]).tolist())
        elif name in given and given[name].data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(given[name])
            if array.size < 2 or (array != array.flat[0]).any():
                continue
            shape = array.shape
        else:
            continue
        if name not in done:
            done[name] = _filling(node, index, shape, random)
    assert made_by.keys() <= done.keys(), f"constant weights are left: {sorted(made_by.keys() - done.keys())}"
    kept = [node for node in model.graph.node if node.op_type != "ConstantOfShape"]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    old = [tensor for tensor in model.graph.initializer if tensor.name not in done]
    del model.graph.initializer[:]
    model.graph.initializer.extend(old)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in done.items())
    stale = {node.input[0] for node in made_by.values()}
    inputs = [item for item in model.graph.input if item.name not in done and item.name not in stale]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)  # before version 4 initialisers had to be inputs too


def calm(model: ModelProto, path: Path) -> None:
    """Scales, in place, the layer in front of a final Softmax so that it is not saturated: that would hide errors.

    `path` may be written to.
    """
    made_by = {output: node for node in model.graph.node for output in node.output}
    last = made_by[model.graph.output[0].name]
    if last.op_type != "Softmax":
        return
    probe = ModelProto()
    probe.CopyFrom(model)
    probe.graph.node.remove(last)
    probe.graph.output[0].name = last.input[0]
    del probe.graph.output[0].type.tensor_type.shape.dim[:]
    (spec,) = (item for item in probe.graph.input if item.name not in {t.name for t in probe.graph.initializer})
    shape = [dim.dim_value for dim in spec.type.tensor_type.shape.dim]
    path.write_bytes(probe.SerializeToString())
    (logits,) = run_onnx(path, shape[0], torch.randn(2, *shape[1:]))
    layer = made_by[last.input[0]]
    while layer.op_type not in ("Gemm", "Conv"):
        layer = made_by[layer.input[0]]
    for tensor in model.graph.initializer:
        if tensor.name in layer.input[1:]:
            array = numpy_helper.to_array(tensor) * np.float32(3 / float(logits.abs().max()))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _weights_of(model: ModelProto) -> Iterator[tuple[str, onnx.NodeProto, int]]:
    """(value, the operator that reads it as a weight, which input of it), through Unsqueeze and Reshape."""
    source = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in ("Unsqueeze", "Reshape")}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "BatchNormalization", "Mul", "Add"):
            for index, name in enumerate(node.input):
                yield source.get(name, name), node, index


def _filling(
    node: onnx.NodeProto, index: int, shape: tuple[int, ...], random: np.random.Generator
) -> npt.NDArray[np.float32]:
    if node.op_type in ("Conv", "Gemm") and index == 1:
        fan_in = float(np.prod(shape[1:]))
        return np.asarray(random.standard_normal(shape) * np.sqrt(2 / fan_in), dtype=np.float32)
    if node.op_type == "Mul" or (node.op_type == "BatchNormalization" and index in (1, 4)):
        return np.asarray(random.uniform(0.5, 1.5, shape), dtype=np.float32)
    return np.asarray(random.standard_normal(shape) * 0.1, dtype=np.float32)
