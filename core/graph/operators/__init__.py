"""The closed list of operators. One file per family, each with readers, channel rules, MACs and writers side by side.

`READERS` is by ONNX operator, `FORMS` by canonical form (layer class or ATen call). To teach Billhook an operator, add
it to a family's file (or a new file named below); nothing else has to know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onnx import NodeProto
from torch import fx

from core.graph.operators import activation, convolution, elementwise, linear, normalization, pooling, shape, slicing
from core.graph.operators.form import Form

if TYPE_CHECKING:
    from core.graph.onnx_reading import Reading

READERS: Mapping[str, Callable[[Reading, NodeProto], fx.Node]] = {
    **activation.READERS,
    **convolution.READERS,
    **elementwise.READERS,
    **linear.READERS,
    **normalization.READERS,
    **pooling.READERS,
    **shape.READERS,
    **slicing.READERS,
}

FORMS: Mapping[Any, Form] = {
    **activation.FORMS,
    **convolution.FORMS,
    **elementwise.FORMS,
    **linear.FORMS,
    **normalization.FORMS,
    **pooling.FORMS,
    **shape.FORMS,
    **slicing.FORMS,
}


def form_of(module: fx.GraphModule, node: fx.Node) -> Form | None:
    """The form of a `call_module` or `call_function` node, None where it is not on the list."""
    key = type(module.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    return FORMS.get(key)
