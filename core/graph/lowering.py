"""From a plain `nn.Module` to the canonical graph: symbolic tracing, then each call replaced by its canonical form.

Meant for the constructors in `core/graph/architectures`; a module that uses anything outside the tables of
`core/graph/lowering_calls.py` is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from core.errors import ModelRefused, OperatorUnknown
from core.graph.lowering_calls import (
    FUNCTIONS,
    KEPT_LAYERS,
    METHODS,
    MODULES,
    CallRefused,
    ChannelLayerNorm,
    Lower,
    Lowering,
    channel_norm,
)
from core.graph.network import Network, Origin, TensorSpec


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in KEPT_LAYERS or type(m) in MODULES or type(m) is ChannelLayerNorm


def trace(module: nn.Module, input_shape: tuple[int, ...], *, format: str = "torch", opset: int = 20) -> Network:
    """`module` (one input, one output) as a Network with input "input", output "output" and a dynamic batch.

    The Network has the module's own layers (no copy) and its mode. `input_shape` is without the batch.

    Raises `OperatorUnknown` for a call outside the tables, `ModelRefused` where the shape does not fit.
    """
    lowering = Lowering(module)
    new: dict[fx.Node, Any] = {}
    modes = {layer: layer.training for layer in module.modules()}
    for node in _Tracer().trace(module).nodes:
        args = fx.map_arg(node.args, lambda n: new[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: new[n])
        if node.op == "output":
            lowering.graph.output(args[0])
            continue
        try:
            new[node] = _lowered(lowering, node, args, kwargs, tuple(input_shape))
        except CallRefused as error:
            raise OperatorUnknown(
                f"{node.op} {node.target} at {node.name!r} has {error}, which is not in core/graph/lowering_calls.py"
            ) from None
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelRefused(f"node {node.name!r} does not fit the shapes that reach it: {reason}") from None
    lowered = fx.GraphModule(lowering.root, lowering.graph)
    lowered.train(module.training)
    for layer, training in modes.items():  # working out shapes put them into eval mode
        layer.training = training
    (output,) = lowered.graph.find_nodes(op="output")
    return Network(
        lowered,
        inputs=(TensorSpec("input", "float32", ("batch", *input_shape)),),
        outputs=(TensorSpec("output", "float32", ("batch", *output.args[0].meta["shape"][1:])),),
        origin=Origin(format, opset),
        input_shapes=(tuple(input_shape),),
    )


def _lowered(lowering: Lowering, node: fx.Node, args: Any, kwargs: Any, input_shape: tuple[int, ...]) -> Any:
    target = str(node.target)
    if node.op == "placeholder":
        return lowering.add_input("input", input_shape, input_shape)
    if node.op == "get_attr":
        return lowering.constant(target)
    if node.op == "call_module":
        layer = lowering.module.get_submodule(target)
        if type(layer) is ChannelLayerNorm:
            return channel_norm(lowering, layer, args[0], target)
        if type(layer) in KEPT_LAYERS:
            _refuse_odd(layer)
            return lowering.layer(target, layer, *args)
        return MODULES[type(layer)](lowering, layer, *args)
    table: Mapping[Any, Lower] = FUNCTIONS if node.op == "call_function" else METHODS
    if node.target not in table:
        raise OperatorUnknown(f"{node.op} {node.target} at {node.name!r} is not in core/graph/lowering_calls.py")
    return table[node.target](lowering, *args, **kwargs)


def _refuse_odd(layer: nn.Module) -> None:
    if getattr(layer, "padding_mode", "zeros") != "zeros" or isinstance(getattr(layer, "padding", 0), str):
        raise CallRefused("padding by another rule than a number of zeros")
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.running_mean is None or not layer.affine):
        raise CallRefused("no running statistics, or no scale and bias, of its own")
