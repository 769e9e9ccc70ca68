"""Shapes: worked out on the meta device, which takes no memory and does no arithmetic.

Torch works many a shape out in Python, in dozens of calls; the commonest operators and layers are therefore done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from core.errors import Fault, ModelRefused, ModelTooLarge
from core.graph.ids import operator_name
from core.graph.limits import MAX_ACTIVATION_ELEMENTS

SAME_SHAPE = frozenset(
    getattr(torch.ops.aten, name).default
    for name in ("relu", "leaky_relu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "clamp", "silu", "gelu", "elu")
)
"""ATen calls that change neither shape nor type. Torch works even that out with several calls of its own."""
BROADCAST = frozenset(getattr(torch.ops.aten, name).Tensor for name in ("add", "sub", "mul", "div"))


def call_phantom(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What an ATen call makes of tensors on the meta device."""
    if target in SAME_SHAPE and args[0].is_floating_point():
        return cast("Tensor", args[0])
    if target in BROADCAST:
        tensors = [item for item in args if isinstance(item, Tensor)]
        if all(item.dtype == torch.float32 for item in tensors):
            shape = torch.broadcast_shapes(*(item.shape for item in tensors))  # type: ignore[no-untyped-call]
            return tensors[0].new_empty(shape)
    return cast("Tensor", target(*args, **kwargs))


def layer_phantom(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer in inference mode makes of a tensor on the meta device."""
    if not x.is_floating_point():
        pass  # torch says what it thinks of that
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and x.shape[1] == layer.num_features:
        return x
    elif isinstance(layer, nn.Linear) and x.shape[-1] == layer.in_features:
        return x.new_empty((*x.shape[:-1], layer.out_features))
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and x.dim() == 2 + len(layer.kernel_size):
        space = _convolved(layer, x.shape[2:])
        if x.shape[1] == layer.in_channels and min(space, default=1) > 0:
            return x.new_empty((x.shape[0], layer.out_channels, *space))
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    phantoms = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    training = layer.training
    layer.eval()  # in training mode a norm refuses one value per channel
    try:
        result: Tensor = torch.func.functional_call(layer, phantoms, (x,))
    finally:
        layer.train(training)
    return result


def _convolved(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, space: tuple[int, ...]) -> list[int]:
    """The sizes behind the channels; [0], which is no size, where the padding is not given in numbers."""
    if isinstance(layer.padding, str):
        return [0]
    windows = zip(space, layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    return [(size + 2 * pad - gap * (width - 1) - 1) // stride + 1 for size, width, stride, pad, gap in windows]


def propagate_shapes(
    module: fx.GraphModule, input_shapes: tuple[tuple[int, ...], ...], *, prove_batch: bool = True
) -> None:
    """Writes `node.meta["shape"]` (batch 1) on every node, and proves on another batch that only dimension 0 follows
    it. That one has a size that nothing in the graph has, or it could meet a dimension that happens to be as long.

    Raises `ModelTooLarge` past the cap on activations, `ModelRefused` where shapes do not fit or the batch is not free.
    """
    one = run_shapes(module, input_shapes, batch=1)
    sizes = {size for shape in one.values() for size in shape}
    many = next(size for size in count(2) if size not in sizes)
    try:
        several = run_shapes(module, input_shapes, batch=many) if prove_batch else {}
    except ModelTooLarge:
        raise
    except ModelRefused as error:
        raise ModelRefused(
            f"one image fits, a batch of {many} does not: {error.message}", faults=error.faults
        ) from None
    for node, shape in one.items():
        if prove_batch and node.op != "get_attr" and (shape[:1] != (1,) or several[node] != (many, *shape[1:])):
            raise _mixed(module, node, shape, several[node], many)
        node.meta["shape"] = shape


def _mixed(
    module: fx.GraphModule, node: fx.Node, one: tuple[int, ...], several: tuple[int, ...], many: int
) -> ModelRefused:
    """Of a node whose value is of the shape `one` for an image, and `several` for `many` of them."""
    does = f"operator {operator_name(module, node)} mixes the batch with other dimensions"
    made = f"of one image it makes {list(one)}, of {many} {list(several)}"
    right = f"{[many, *one[1:]]} of {many}: the batch in front, and nothing else that follows it"
    fault = Fault(f"/graph/node/{node.name}", f"{does}: {made}", right)
    return ModelRefused(
        f"node {node.name!r}: {does}, so that its size cannot be freed: {made}; right is {right}", faults=[fault]
    )


def run_shapes(
    module: fx.GraphModule, input_shapes: tuple[tuple[int, ...], ...], *, batch: int, capped: bool = True
) -> dict[fx.Node, tuple[int, ...]]:
    """The shape of every node's value for a batch of inputs of `input_shapes` (each without the batch).

    Raises as `propagate_shapes` does; not `capped`, for sizes that nothing is run at, no activation is too large. Notes
    the type of every value in `node.meta["dtype"]`.
    """
    layers = dict(module.named_modules())
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    inputs = [torch.empty(batch, *shape, device="meta", dtype=dtype) for shape in reversed(input_shapes)]
    values: dict[fx.Node, Tensor] = {}
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        if node.op == "placeholder":
            value = inputs.pop()
        elif node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            value = torch.empty_like(getattr(layers[path], name), device="meta", requires_grad=False)
        else:
            try:
                value = _value(node, values, layers)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                reason = str(error).splitlines()[0]
                raise ModelRefused(f"node {node.name!r} does not fit the shapes that reach it: {reason}") from None
        if capped and value.numel() > MAX_ACTIVATION_ELEMENTS * batch:
            message = f"node {node.name!r} makes {value.numel() // batch} numbers"
            raise ModelTooLarge(f"{message}; at most {MAX_ACTIVATION_ELEMENTS} are taken")
        values[node] = value
        node.meta["dtype"] = value.dtype
    return {node: tuple(value.shape) for node, value in values.items()}


def _value(node: fx.Node, values: dict[fx.Node, Tensor], layers: Mapping[str, nn.Module]) -> Tensor:
    if node.op == "call_module":
        (x,) = node.all_input_nodes
        return layer_phantom(layers[str(node.target)], values[x])
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    return call_phantom(node.target, args, kwargs)
