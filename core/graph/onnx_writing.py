"""What the writers of `core/graph/operators` work with while a canonical graph becomes an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import NodeProto, TensorProto
from torch import fx

from core.errors import Fault, RecipeInvalid
from core.graph.ids import operator_name
from core.graph.tensors import to_numpy

NUMPY_TYPES: Mapping[torch.dtype, Callable[[float], np.generic]] = {
    torch.bool: np.bool_,
    torch.int32: np.int32,
    torch.int64: np.int64,
}
"""Of values that are not floating-point numbers; those are written as float32, whatever the network computes in."""


class Writing:
    """An ONNX graph in the making, of `opset`. Names follow from the canonical graph alone, so that equal networks make
    equal files."""

    def __init__(
        self,
        module: fx.GraphModule,
        opset: int,
        reserved: set[str],
        others: Mapping[fx.Node, tuple[int, ...]] | None = None,
    ) -> None:
        self.module = module
        self.opset = opset
        self.others = others or {}  # shapes of a second example, where sizes are open
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._names: dict[fx.Node, str] = {}
        self._initializers: dict[str, npt.NDArray[Any]] = {}
        self._taken = set(reserved)

    def value(self, argument: Any) -> str:
        """The name of an argument that is a node; a bare constant becomes an initialiser."""
        assert isinstance(argument, fx.Node)
        if argument.op == "get_attr" and argument not in self._names:
            path, _, name = str(argument.target).rpartition(".")
            buffer = getattr(self.module.get_submodule(path), name)
            self._names[argument] = self.tensor(str(argument.target), to_numpy(buffer))
        return self._names[argument]

    def bind(self, node: fx.Node, name: str) -> None:
        """The value of `node` is called `name` (an input or output of the model)."""
        self._names[node] = name

    def is_open(self, node: fx.Node, dim: int) -> bool:
        """Whether dimension `dim` of `node` follows an open size of an input."""
        shape = node.meta["shape"]
        return bool(self.others.get(node, shape)[dim] != shape[dim])

    def bound(self, node: fx.Node) -> bool:
        return node in self._names

    def tensor(self, name: str, array: npt.NDArray[Any] | np.generic) -> str:
        """An initialiser. A layer that is used twice has its weights written once."""
        array = np.asarray(array)
        known = self._initializers.get(name)
        if known is not None and known.dtype == array.dtype and np.array_equal(known, array):
            return name
        name = self._unique(name)
        self._initializers[name] = array
        self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return name

    def add(
        self, op_type: str, inputs: list[str], node: fx.Node | None, *, hint: str | None = None, **attributes: Any
    ) -> str:
        """A node of the ONNX graph; its result is the value of `node`, or an intermediate value called `hint`.

        Returns the result's name.
        """
        stem = hint or (str(node.target) if node is not None and node.op == "call_module" else str(node and node.name))
        known = self._names.get(node) if node is not None else None
        result = known if known is not None else self._unique(f"{stem}.output")
        if node is not None:
            self._names[node] = result
        while inputs and inputs[-1] == "":
            inputs = inputs[:-1]
        made = onnx.helper.make_node(op_type, inputs, [result], name=self._unique(stem), **attributes)
        self.nodes.append(made)
        return result

    def step(self, node: fx.Node, op_type: str, *inputs: str, **attributes: Any) -> str:
        """An intermediate value on the way to that of `node`, where one operator is written as several."""
        stem = str(node.target) if node.op == "call_module" else node.name
        return self.add(op_type, list(inputs), None, hint=f"{stem}.{op_type.lower()}", **attributes)

    def number(self, node: fx.Node, value: float, name: str = "value") -> str:
        """A number that `node` computes with, of the type of the node's first tensor."""
        kind = NUMPY_TYPES.get(node.all_input_nodes[0].meta["dtype"], np.float32)
        return self.tensor(f"{node.name}.{name}", kind(value))

    def too_old(self, op_type: str, node: fx.Node, what: str, needed: int | None) -> RecipeInvalid:
        """The error for an operator that `opset` cannot hold."""
        expected = f"opset {needed} or newer" if needed is not None else "another operator"
        described = f"{op_type} {what} ({operator_name(self.module, node)} at node {node.name!r})"
        message = f"opset {self.opset} cannot hold {described}"
        return RecipeInvalid(message, faults=[Fault("/export/opset", message, expected)])

    def _unique(self, name: str) -> str:
        wanted, number = name, 2
        while wanted in self._taken:
            wanted, number = f"{name}_{number}", number + 1
        self._taken.add(wanted)
        return wanted
