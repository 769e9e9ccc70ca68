"""What the readers of `core/graph/operators` work with while an ONNX graph becomes a canonical one."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import NodeProto
from torch import Tensor, fx, nn

from core.errors import ModelRefused, OperatorUnknown
from core.graph.onnx_constants import Batch, Dynamic

HOME = "core/graph/operators"
_RESERVED = frozenset({*keyword.kwlist, *dir(fx.GraphModule), *dir(nn.Module())})


class Reading:
    """A canonical graph in the making. `constants` are folded arrays by value name, `activations` are graph nodes.

    `static_batch` is the batch size that the upload fixed (None: dynamic); the graph is made for any. `dynamic_space`
    says that a dimension behind the batch is dynamic too: the sizes seen here are then only examples, and every shape
    is worked out for a second example as well, to tell which sizes follow them.
    """

    def __init__(self, opset: int, uses: Counter[str], static_batch: int | None, dynamic_space: bool) -> None:
        self.opset = opset
        self.static_batch = static_batch
        self.dynamic_space = dynamic_space
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.activations: dict[str, fx.Node] = {}
        self._uses = uses
        self._phantoms: dict[fx.Node, Tensor] = {}
        self._others: dict[fx.Node, Tensor] = {}  # of the second example; none where it does not fit
        self._shared: dict[tuple[Any, ...], str] = {}
        self._weights: dict[str, NodeProto] = {}  # weight -> the node whose layer has it
        self._taken: set[str] = set()
        self._prefixes: set[str] = set()

    # --- inputs of a node ---------------------------------------------------------------------------------------

    def given(self, node: NodeProto, index: int) -> bool:
        return len(node.input) > index and node.input[index] != ""

    def is_constant(self, name: str) -> bool:
        return name in self.constants

    def uses(self, name: str) -> int:
        """How many nodes and outputs read the value."""
        return self._uses[name]

    def activation(self, node: NodeProto, index: int) -> fx.Node:
        """The input as a node of the graph; a constant becomes a buffer."""
        if not self.given(node, index):
            raise self.refused(node, f"input {index} is missing")
        name = node.input[index]
        return self.activations[name] if name in self.activations else self.constant_node(node, index)

    def constant_node(self, node: NodeProto, index: int) -> fx.Node:
        """A constant input as a buffer of the graph."""
        name = node.input[index]
        array = self.constants[name]
        if array.dtype != np.float32:
            raise self.unknown(node, f"input {index}, a constant of type {array.dtype}, where float32 is computed with")
        if name not in self.activations:
            path = self._unique(f"constants.{readable(name) or 'value'}")
            self._attach(path, torch.from_numpy(np.array(array)))
            made = self.graph.get_attr(path)
            self._note(made, torch.empty(array.shape, device="meta"))
            self._others[made] = self._phantoms[made]
            self.activations[name] = made
        return self.activations[name]

    def operand(self, node: NodeProto, index: int) -> fx.Node | float:
        """An input of an element-wise operator: a number where it is a constant of one element."""
        array = self.constants.get(node.input[index]) if self.given(node, index) else None
        if array is not None and array.size == 1 and array.dtype == np.float32:
            return float(array.reshape(()))
        return self.activation(node, index)

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
        """A constant vector of sizes; entries may be `Batch` or `Dynamic`."""
        array = self.constants.get(node.input[index]) if self.given(node, index) else None
        if array is None or array.ndim != 1 or array.dtype not in (np.dtype(np.int64), np.dtype(np.int32), object):
            raise self.unknown(node, f"input {index} that is not a constant vector of integers")
        return list(array.tolist())

    def integers(self, node: NodeProto, index: int) -> list[int]:
        return [self.size(node, item) for item in self.shape(node, index)]

    def size(self, node: NodeProto, item: Any) -> int:
        if isinstance(item, Dynamic):
            raise self.unknown(node, "a size that depends on a dynamic dimension of an input")
        if isinstance(item, Batch):
            raise self.unknown(node, "the batch size where another size belongs")
        return int(item)

    def is_batch(self, item: Any) -> bool:
        """Whether an entry of a shape stands for the batch."""
        return isinstance(item, Batch) or (self.static_batch is not None and item == self.static_batch)

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
        made = self.graph.placeholder(readable(name).replace(".", "_") or "input")
        self._note(made, torch.empty(1, *shape, device="meta"))
        self._others[made] = torch.empty(1, *other, device="meta")
        self.activations[name] = made

    def other_shape(self, x: fx.Node) -> tuple[int, ...]:
        """The shape of `x` for the second example; that of the first where the second does not fit the graph, which
        is then of one size."""
        return tuple(self._others.get(x, self._phantoms[x]).shape)

    def call(self, target: Any, *args: Any) -> fx.Node:
        """An ATen call. Its shape is worked out at once, on the meta device."""
        made = self.graph.call_function(target, args)
        self._note(made, target(*fx.map_arg(args, lambda item: self._phantoms[item])))
        self._note_other(made, lambda: target(*fx.map_arg(args, lambda item: self._others[item])))
        return made

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
                    raise self.unknown(node, f"the weight {weight!r} of node {described(other)} in an unlike layer")
            name = self._unique(layer_name(node, weight))
            self._attach(name, make())
            if shared:
                self._shared[key] = name
        made = self.graph.call_module(name, (x,))
        layer = self.root.get_submodule(name)
        tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        phantoms = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
        layer.eval()
        self._note(made, torch.func.functional_call(layer, phantoms, (self._phantoms[x],)))
        self._note_other(made, lambda: torch.func.functional_call(layer, phantoms, (self._others[x],)))
        return made

    def tensor(self, array: npt.NDArray[Any]) -> Tensor:
        """A copy: no layer shares memory with another or with the file."""
        return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))

    # --- refusing -----------------------------------------------------------------------------------------------

    def unknown(self, node: NodeProto, what: str) -> OperatorUnknown:
        return OperatorUnknown(
            f"operator {node.op_type} at node {described(node)} has {what}, which is not on the list in {HOME}"
        )

    def refused(self, node: NodeProto, what: str) -> ModelRefused:
        return ModelRefused(f"operator {node.op_type} at node {described(node)}: {what}")

    # --- inside -------------------------------------------------------------------------------------------------

    def _note(self, made: fx.Node, phantom: Tensor) -> None:
        self._phantoms[made] = phantom
        made.meta["shape"] = tuple(phantom.shape)

    def _note_other(self, made: fx.Node, compute: Callable[[], Tensor]) -> None:
        if self.dynamic_space and all(item in self._others for item in made.all_input_nodes):
            with suppress(RuntimeError, ValueError, IndexError, TypeError):
                self._others[made] = compute()

    def _unique(self, name: str) -> str:
        """`name`, numbered where it is taken or would lie inside another layer."""
        wanted, number = name, 2
        while wanted in self._taken or wanted in self._prefixes or _prefixes(wanted) & self._taken:
            wanted, number = f"{name}_{number}", number + 1
        self._taken.add(wanted)
        self._prefixes |= _prefixes(wanted)
        return wanted

    def _attach(self, path: str, value: nn.Module | Tensor) -> None:
        owner = self.root
        *parents, last = path.split(".")
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            owner = owner.get_submodule(parent)
        if isinstance(value, nn.Module):
            owner.add_module(last, value)
        else:
            owner.register_buffer(last, value)


def _prefixes(path: str) -> set[str]:
    parts = path.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


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


def readable(name: str) -> str:
    """`name` as a dotted path of words that fx may write into Python and that modules do not use themselves."""
    pieces = [re.sub(r"\W+", "_", piece, flags=re.ASCII).strip("_") for piece in name[:200].split(".")]
    return ".".join(f"{piece}_" if piece in _RESERVED else piece for piece in pieces if piece)
