"""The closed list of operators. One file per family, each with readers, channel rules, MACs and writers side by side.

`READERS` is by ONNX operator, `FORMS` by canonical form (layer class or ATen call). To teach Billhook an operator, add
it to a family's file (or a new file named below); nothing else has to know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onnx import NodeProto
from torch import fx, nn

from core.graph.operators import (
    activation,
    cast,
    comparison,
    concat,
    convolution,
    dropout,
    einsum,
    elementwise,
    fitting,
    gather,
    group_norm,
    layer_norm,
    linear,
    local_response,
    matmul,
    normalization,
    padding,
    pooling,
    prelu,
    reduce,
    reshape,
    reshape_reading,
    resize,
    shape,
    slicing,
    softmax,
    space_depth,
    transposed,
    unary,
)
from core.graph.operators.form import Form

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading
    from core.graph.turned import Turned

READERS: Mapping[str, Callable[[Reading, NodeProto], fx.Node | Turned]] = {
    **activation.READERS,
    **cast.READERS,
    **comparison.READERS,
    **concat.READERS,
    **convolution.READERS,
    **dropout.READERS,
    **einsum.READERS,
    **elementwise.READERS,
    **gather.READERS,
    **group_norm.READERS,
    **layer_norm.READERS,
    **linear.READERS,
    **local_response.READERS,
    **matmul.READERS,
    **normalization.READERS,
    **padding.READERS,
    **pooling.READERS,
    **prelu.READERS,
    **reduce.READERS,
    **reshape_reading.READERS,
    **resize.READERS,
    **shape.READERS,
    **slicing.READERS,
    **softmax.READERS,
    **space_depth.READERS,
    **transposed.READERS,
    **unary.READERS,
}

FORMS: Mapping[Any, Form] = {
    **activation.FORMS,
    **cast.FORMS,
    **comparison.FORMS,
    **concat.FORMS,
    **convolution.FORMS,
    **dropout.FORMS,
    **elementwise.FORMS,
    **fitting.FORMS,
    **gather.FORMS,
    **group_norm.FORMS,
    **layer_norm.FORMS,
    **linear.FORMS,
    **local_response.FORMS,
    **matmul.FORMS,
    **normalization.FORMS,
    **padding.FORMS,
    **pooling.FORMS,
    **prelu.FORMS,
    **reduce.FORMS,
    **reshape.FORMS,
    **resize.FORMS,
    **shape.FORMS,
    **slicing.FORMS,
    **softmax.FORMS,
    **space_depth.FORMS,
    **transposed.FORMS,
    **unary.FORMS,
}


MAKERS: tuple[type[nn.Module], ...] = (*convolution.CONVOLUTIONS, nn.Linear)
"""Layers that make channels. A normalisation has parameters per channel too, but only carries what it is given."""


def form_of(module: fx.GraphModule, node: fx.Node) -> Form | None:
    """The form of a `call_module` or `call_function` node, None where it is not on the list."""
    key = type(module.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    return FORMS.get(key)
