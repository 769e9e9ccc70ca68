"""From a plain `nn.Module` to the canonical graph: symbolic tracing, then each call replaced by its canonical form.

Meant for the constructors in `architectures.py`; a module that uses anything outside the tables below is refused by
name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from core.errors import OperatorUnknown
from core.graph.network import Network, Origin, TensorSpec, propagate_shapes

aten = torch.ops.aten

KEPT_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout)


def _pool(layer: Any, graph: fx.Graph, x: fx.Node) -> fx.Node:
    pair = torch.nn.modules.utils._pair
    if isinstance(layer, nn.MaxPool2d):
        stride, padding, dilation = pair(layer.stride), pair(layer.padding), pair(layer.dilation)
        args = (x, list(pair(layer.kernel_size)), list(stride), list(padding), list(dilation), layer.ceil_mode)
        return graph.call_function(aten.max_pool2d.default, args)
    stride, padding = pair(layer.stride), pair(layer.padding)
    window = (x, list(pair(layer.kernel_size)), list(stride), list(padding))
    return graph.call_function(aten.avg_pool2d.default, (*window, layer.ceil_mode, layer.count_include_pad))


def _global_average(layer: nn.AdaptiveAvgPool2d, graph: fx.Graph, x: fx.Node) -> fx.Node:
    if torch.nn.modules.utils._pair(layer.output_size) != (1, 1):
        raise OperatorUnknown(f"AdaptiveAvgPool2d to {layer.output_size} is not taken; only to 1 x 1")
    return graph.call_function(aten.mean.dim, (x, [2, 3], True))


MODULES: dict[type[nn.Module], Callable[[Any, fx.Graph, fx.Node], fx.Node]] = {
    nn.ReLU: lambda layer, graph, x: graph.call_function(aten.relu.default, (x,)),
    nn.LeakyReLU: lambda layer, graph, x: graph.call_function(aten.leaky_relu.default, (x, layer.negative_slope)),
    nn.ReLU6: lambda layer, graph, x: graph.call_function(aten.clamp.default, (x, 0.0, 6.0)),
    nn.Sigmoid: lambda layer, graph, x: graph.call_function(aten.sigmoid.default, (x,)),
    nn.Tanh: lambda layer, graph, x: graph.call_function(aten.tanh.default, (x,)),
    nn.Hardswish: lambda layer, graph, x: graph.call_function(aten.hardswish.default, (x,)),
    nn.Softmax: lambda layer, graph, x: graph.call_function(aten.softmax.int, (x, layer.dim)),
    nn.Flatten: lambda layer, graph, x: graph.call_function(
        aten.flatten.using_ints, (x, layer.start_dim, layer.end_dim)
    ),
    nn.Identity: lambda layer, graph, x: x,
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool2d: _global_average,
}


def _index(x: Any, index: Any) -> tuple[Any, tuple[Any, ...]]:
    """`x[:, a:b]`: a part of the channels."""
    if not (isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None) and isinstance(index[1], slice)):
        raise OperatorUnknown(f"indexing by {index!r} is not taken; only x[:, a:b] is")
    part = index[1]
    return aten.slice.Tensor, (x, 1, part.start or 0, 2**63 - 1 if part.stop is None else part.stop, part.step or 1)


FUNCTIONS: dict[Any, Callable[..., tuple[Any, tuple[Any, ...]]]] = {
    F.relu: lambda x, inplace=False: (aten.relu.default, (x,)),
    torch.relu: lambda x: (aten.relu.default, (x,)),
    torch.flatten: lambda x, start_dim=0, end_dim=-1: (aten.flatten.using_ints, (x, start_dim, end_dim)),
    operator.add: lambda a, b: (aten.add.Tensor, (a, b)),
    torch.add: lambda a, b: (aten.add.Tensor, (a, b)),
    operator.getitem: _index,
    operator.sub: lambda a, b: (aten.sub.Tensor, (a, b)),
    operator.mul: lambda a, b: (aten.mul.Tensor, (a, b)),
    torch.cat: lambda tensors, dim=0: (aten.cat.default, (list(tensors), dim)),
    F.pad: lambda x, pad, mode="constant", value=None: (aten.constant_pad_nd.default, (x, list(pad), value or 0.0)),
}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in KEPT_LAYERS or type(m) in MODULES


def trace(module: nn.Module, input_shape: tuple[int, ...], *, format: str = "torch", opset: int = 20) -> Network:
    """`module` (one input, one output) as a Network with input "input", output "output" and a dynamic batch.

    The Network has the module's own layers (no copy) and its mode. `input_shape` is without the batch.

    Raises `OperatorUnknown` for a call outside the tables above, `ModelRefused` where the shape does not fit.
    """
    traced = _Tracer().trace(module)
    graph = fx.Graph()
    new: dict[fx.Node, Any] = {}
    for node in traced.nodes:
        args = fx.map_arg(node.args, lambda n: new[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: new[n])
        if node.op == "placeholder":
            new[node] = graph.placeholder("input")
        elif node.op == "output":
            graph.output(args[0])
        elif node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            is_kept = type(layer) in KEPT_LAYERS
            new[node] = (
                graph.call_module(str(node.target), args) if is_kept else MODULES[type(layer)](layer, graph, *args)
            )
        elif node.op == "call_function" and node.target in FUNCTIONS:
            target, canonical = FUNCTIONS[node.target](*args, **kwargs)
            new[node] = graph.call_function(target, canonical)
        else:
            raise OperatorUnknown(f"{node.op} {node.target} at {node.name!r} is not in core/graph/lowering.py")
    lowered = fx.GraphModule(module, graph)
    lowered.train(module.training)
    propagate_shapes(lowered, (tuple(input_shape),))
    (output,) = lowered.graph.find_nodes(op="output")
    return Network(
        lowered,
        inputs=(TensorSpec("input", "float32", ("batch", *input_shape)),),
        outputs=(TensorSpec("output", "float32", ("batch", *output.args[0].meta["shape"][1:])),),
        origin=Origin(format, opset),
        input_shapes=(tuple(input_shape),),
    )
