"""What the readers of `core/graph/operators` work with while an ONNX graph becomes a canonical one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import NodeProto
from torch import Tensor, fx, nn

from core.errors import Fault, ModelRefused, OperatorUnknown
from core.graph.building import Building, readable
from core.graph.onnx_spreads import Spread, spread
from core.graph.operators.shape import expand_like
from core.graph.sizes import BATCH, Size, described_sizes, follows_batch
from core.graph.turned import Turned

HOME = "core/graph/operators"
WHOLE_TYPES = {np.dtype(np.bool_), np.dtype(np.int32), np.dtype(np.int64)}
ANY_TYPE = frozenset({
    "Cast", "Identity", "Where", "Not", "And", "Or", "Xor", "Add", "Sub", "Mul",
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "Concat", "Expand", "Flatten", "Gather", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
})  # fmt: skip
"""Operators that take bool, int32 and int64 as well: exporters mask and count with them. All others take float32."""


class Reading(Building):
    """A canonical graph in the making. By value name, `constants` are folded arrays, `spreads` constants as long as the
    batch or another open size, `activations` graph nodes.

    `static_batch` is the batch size that the upload fixed (None: dynamic); the graph is made for any.
    """

    def __init__(self, opset: int, uses: Counter[str], static_batch: int | None, dynamic_space: bool) -> None:
        super().__init__(dynamic_space=dynamic_space)
        self.opset = opset
        self.static_batch = static_batch
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.spreads: dict[str, Spread] = {}
        self.activations: dict[str, fx.Node] = {}
        self.turned: dict[str, Turned] = {}
        self.straight: dict[str, fx.Node] = {}  # of what is turned, the node with the batch in front
        self._bare: dict[str, fx.Node] = {}  # of spread constants, what is spread
        self._uses = uses
        self._shared: dict[tuple[Any, ...], str] = {}
        self._weights: dict[str, NodeProto] = {}  # weight -> the node whose layer has it

    # --- inputs of a node ---------------------------------------------------------------------------------------

    def given(self, node: NodeProto, index: int) -> bool:
        return len(node.input) > index and node.input[index] != ""

    def is_constant(self, name: str) -> bool:
        return name in self.constants

    def uses(self, name: str) -> int:
        """How many nodes and outputs read the value."""
        return self._uses[name]

    def alias(self, name: str, of: str) -> None:
        """`name` stands for the value `of`, and is read as often."""
        self._uses[name] = self._uses[of]

    def activation(self, node: NodeProto, index: int) -> fx.Node:
        """The input as a node of the graph; a constant becomes a buffer."""
        if not self.given(node, index):
            raise self.refused(node, f"input {index} is missing")
        name = node.input[index]
        if name in self.turned:
            what = "an input whose batch a Transpose has moved from the front"
            raise self.unknown(node, f"{what}, where it does not work on each example by itself")
        if name in self.spreads:
            return self.spread_node(node, index, self.spreads[name])
        if name not in self.activations:
            return self.constant_node(node, index)
        found = self.activations[name]
        if found.meta["dtype"] != torch.float32 and node.op_type not in ANY_TYPE:
            kind = str(found.meta["dtype"]).removeprefix("torch.")
            raise self.unknown(node, f"input {index} of type {kind}, where float32 is computed with")
        return found

    def moved(self, node: NodeProto, index: int) -> Turned:
        """The input as a node of the graph and the order of its dimensions, whose batch need not be in front."""
        name = node.input[index] if self.given(node, index) else ""
        if name in self.turned:
            return self.turned[name]
        x = self.activation(node, index)
        return Turned(x, tuple(range(len(x.meta["shape"]))))

    def settled(self, value: Turned) -> fx.Node | Turned:
        """As a node of the graph, its dimensions put in order, where the batch is in front."""
        if value.order[0] != 0:
            return value
        return value.node if value.plain else self.call(torch.ops.aten.permute.default, value.node, list(value.order))

    def bind(self, name: str, value: fx.Node | Turned) -> None:
        """The value called `name` in the model."""
        if isinstance(value, Turned):
            self.turned[name] = value
        else:
            self.activations[name] = value

    def kind(self, node: NodeProto, index: int) -> str:
        """The type of the input's elements: "float32", "bool", "int64" ...; "open size" where one is among them."""
        array = self.constants.get(node.input[index]) if self.given(node, index) else None
        if array is None and self.given(node, index) and node.input[index] in self.spreads:
            array = self.spreads[node.input[index]].array
        if array is not None:
            return str(array.dtype) if array.dtype != object else "open size"
        return str(self.moved(node, index).node.meta["dtype"]).removeprefix("torch.")

    def constant_node(self, node: NodeProto, index: int) -> fx.Node:
        """A constant input as a buffer of the graph."""
        name = node.input[index]
        return self._buffer(node, index, self.constants[name], self.activations)

    def _buffer(self, node: NodeProto, index: int, array: npt.NDArray[Any], known: dict[str, fx.Node]) -> fx.Node:
        name = node.input[index]
        if array.dtype != np.float32 and (array.dtype not in WHOLE_TYPES or node.op_type not in ANY_TYPE):
            raise self.unknown(node, f"input {index}, a constant of type {array.dtype}, where float32 is computed with")
        if name not in known:
            path = f"constants.{readable(name) or 'value'}"
            known[name] = self.add_constant(path, torch.from_numpy(np.array(array)))
        return known[name]

    def spread(self, node: NodeProto, index: int) -> Spread | None:
        """The input as a constant that is as long as open sizes, where it is one: also one whose images are all alike
        in a model of a fixed batch."""
        name = node.input[index]
        array = self.constants.get(name)
        if array is None:
            return self.spreads.get(name)
        alike = array.ndim > 1 and array.dtype != object and len(array) == self.static_batch
        if not alike or not bool((array == array[:1]).all()):
            return None
        found = spread(array[:1], (BATCH, *array.shape[1:]))
        assert isinstance(found, Spread)
        return found

    def spread_node(self, node: NodeProto, index: int, value: Spread) -> fx.Node:
        """The input, a constant as long as open sizes, expanded like activations that have them."""
        sizes = value.sizes
        like: dict[fx.Node, list[int]] = {}
        for dim, size in enumerate(sizes):
            found = size.multiple() if isinstance(size, Size) else None
            if size == BATCH and dim == 0:
                given = (self.activations.get(other) for other in node.input if other not in self.constants)
                beside = next((other for other in given if other is not None), None)
                like.setdefault(beside or self.graph.find_nodes(op="placeholder")[0], []).append(0)
            elif found is not None and found[1] == 1 and found[0].dim == dim and found[0].node is not None:
                like.setdefault(found[0].node, []).append(dim)
            elif found is not None or isinstance(size, Size) or dim == 0:
                wanted = "the batch in front, and behind it fixed sizes or those of another value in their places"
                raise self.misplaced(
                    node, f"reads {node.input[index]!r}, a constant of the sizes {described_sizes(sizes)}", wanted
                )
        made = self._buffer(node, index, value.array, self._bare)
        for other, dims in like.items():
            made = self.call(expand_like, made, other, dims)
        return made

    def weight(self, node: NodeProto, index: int) -> npt.NDArray[np.float32]:
        """A constant float32 input."""
        name = node.input[index] if self.given(node, index) else ""
        if name not in self.constants:
            raise self.unknown(node, f"input {index} ({name!r}) that is not constant")
        array = self.constants[name]
        if array.dtype != np.float32:
            raise self.unknown(node, f"weights of type {array.dtype} ({name!r}); only float32 is taken")
        if 0 in array.shape:
            raise self.refused(node, f"the weight {name!r} is empty")
        if not np.isfinite(array).all():
            raise self.refused(node, f"the weight {name!r} holds NaN or infinity")
        return cast("npt.NDArray[np.float32]", array)

    def scalar(self, node: NodeProto, index: int) -> float:
        """A constant input of one element."""
        array = self.constants.get(node.input[index])
        if array is None or array.size != 1 or array.dtype == object:
            raise self.unknown(node, f"input {index} ({node.input[index]!r}) that is not one constant number")
        return float(array.reshape(()))

    def shape(self, node: NodeProto, index: int) -> list[Any]:
        """A constant vector of sizes; entries may be a `Size`, where they are open."""
        array = self.constants.get(node.input[index]) if self.given(node, index) else None
        if array is None or array.ndim != 1 or array.dtype not in (np.dtype(np.int64), np.dtype(np.int32), object):
            raise self.unknown(node, f"input {index} that is not a constant vector of integers")
        return list(array.tolist())

    def integers(self, node: NodeProto, index: int) -> list[int]:
        return [self.size(node, item) for item in self.shape(node, index)]

    def size(self, node: NodeProto, item: Any) -> int:
        if isinstance(item, Size) and follows_batch(item):
            raise self.unknown(node, "the batch size where another size belongs")
        if isinstance(item, Size):
            raise self.unknown(node, "a size that depends on a dynamic dimension of an input")
        return int(item)

    def is_batch(self, item: Any) -> bool:
        """Whether an entry of a shape stands for the batch."""
        return item == BATCH or (self.static_batch is not None and item == self.static_batch)

    def axis(self, node: NodeProto, axis: int, rank: int) -> int:
        if not -rank <= axis < rank:
            raise self.refused(node, f"axis {axis} on an input of rank {rank}")
        return axis % rank

    def attributes(self, node: NodeProto, **defaults: Any) -> dict[str, Any]:
        """The node's attributes, `defaults` filled in. Raises `OperatorUnknown` for one that is not among them."""
        found = dict(defaults)
        for attribute in node.attribute:
            if attribute.name not in defaults:
                raise self.unknown(node, f"the attribute {attribute.name!r}")
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise self.unknown(node, f"a graph in the attribute {attribute.name!r}")
            value = onnx.helper.get_attribute_value(attribute)
            found[attribute.name] = list(value) if attribute.type == onnx.AttributeProto.INTS else value
            default = defaults[attribute.name]
            if default is not None and not isinstance(found[attribute.name], type(default)):
                raise self.refused(node, f"the attribute {attribute.name!r} is {value!r}, not like {default!r}")
        return found

    # --- making -------------------------------------------------------------------------------------------------

    def input(self, name: str, shape: tuple[int, ...], other: tuple[int, ...]) -> None:
        """An input by the shape of one example, and of another with other sizes where they are dynamic."""
        self.activations[name] = self.add_input(name, shape, other)

    def layer(
        self, node: NodeProto, weight: str, make: Callable[[], nn.Module], x: fx.Node, shared: tuple[Any, ...] = ()
    ) -> fx.Node:
        """A layer applied to `x`, named after its weight or its node. Nodes that agree in `shared` use one layer.

        Raises `OperatorUnknown` where nodes share a weight, but not a layer: as two layers it would be counted twice,
        and training would part them. (Vectors may be shared: exporters merge those that happen to be equal.)
        """
        key = (node.op_type, *shared)
        name = self._shared.get(key) if shared else None
        if name is None:
            if weight in self.constants and self.constants[weight].ndim > 1:
                other = self._weights.setdefault(weight, node)
                if other.output[0] != node.output[0]:
                    shared_by = f"the weight {weight!r} of node {described(other)} in an unlike layer"
                    raise self.unknown(node, f"{shared_by} (as two it would be counted twice and trained apart)")
            name = self.add_layer(layer_name(node, weight), make())
            if shared:
                self._shared[key] = name
        return self.apply(name, x)

    def tensor(self, array: npt.NDArray[Any]) -> Tensor:
        """A copy: no layer shares memory with another or with the file."""
        return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))

    # --- refusing -----------------------------------------------------------------------------------------------

    def unknown(self, node: NodeProto, what: str, right: str | None = None) -> OperatorUnknown:
        """Of what is not on the list; `right` is what would be."""
        message = f"operator {node.op_type} at node {described(node)} has {what}, which is not on the list in {HOME}"
        message += f"; right is {right}" if right else ""
        return OperatorUnknown(message, faults=[Fault(pointer(node), f"operator {node.op_type} has {what}", right)])

    def misplaced(self, node: NodeProto, does: str, right: str) -> OperatorUnknown:
        """Of what a node does with the batch; `right` is what it may do."""
        fault = Fault(pointer(node), f"operator {node.op_type} {does}", right)
        return OperatorUnknown(
            f"operator {node.op_type} at node {described(node)} {does}; right is {right}", faults=[fault]
        )

    def refused(self, node: NodeProto, what: str) -> ModelRefused:
        message = f"operator {node.op_type} at node {described(node)}: {what}"
        return ModelRefused(message, faults=[Fault(pointer(node), f"operator {node.op_type}: {what}")])


def pointer(node: NodeProto) -> str:
    """The node in the file, as a JSON pointer: by its name, or by its first output where it has none."""
    name = node.name or (node.output[0] if node.output else "")
    return "/graph/node/" + name.replace("~", "~0").replace("/", "~1")


def described(node: NodeProto) -> str:
    """A node by its name, or by its first output where it has none."""
    return repr(node.name) if node.name else f"(without a name) that makes {node.output[0] if node.output else ''!r}"


def layer_name(node: NodeProto, weight: str) -> str:
    """A layer's name: of its weight ("layer1.0.conv1.weight"), its node ("/layer1/layer1.0/conv1/Conv"), its kind."""
    stem, _, kind = weight.rpartition(".")
    if kind == "weight" and stem and "::" not in weight and "/" not in weight:
        return readable(stem)
    parts: list[str] = []
    scopes = [part for part in node.name.split("/") if part]
    scoped = node.name.startswith("/") and len(scopes) > 1
    for part in scopes[:-1] if scoped else []:
        # torch repeats a Sequential's name in front of its member's: layer1, layer1.0
        if parts and part.startswith(parts[-1] + "."):
            parts.pop()
        parts.append(part)
    return readable(".".join(parts) if parts else node.name) or node.op_type.lower()
