"""The arguments of a node of an exported program: by ATen's schema, defaults filled in, of the types that it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from core.errors import ModelRefused
from core.graph.pt2_schema import Node
from core.graph.pt2_sizes import Size
from core.graph.pt2_values import Call, Constant, Filled, Merged, Spread
from core.graph.turned import Turned

_PREFIX = "torch.ops.aten."
_TENSORS = (fx.Node, Turned, Merged, Constant, Filled, Spread)


def described(node: Node) -> str:
    """A node by its name, or by its operator where it has none."""
    return repr(node.name) if node.name else f"(without a name) of {node.target!r}"


def operator_of(node: Node) -> str:
    """ "relu.default" of `torch.ops.aten.relu.default` and of `torch.ops.aten.relu_.default`; the whole target of what
    is not ATen's."""
    if not node.target.startswith(_PREFIX):
        return node.target
    name, _, overload = node.target.removeprefix(_PREFIX).partition(".")
    return f"{name.removesuffix('_') if not name.endswith('__') else name}.{overload}"


def is_in_place(node: Node) -> bool:
    """Whether it changes the first tensor that it reads."""
    name = node.target.removeprefix(_PREFIX).partition(".")[0]
    return node.target.startswith(_PREFIX) and name.endswith("_") and not name.endswith("__")


def owner_of(parameter: str | None) -> str | None:
    """The weight that a parameter is a part of: "conv.weight" of "conv.weight_v", and of what is in
    "conv.parametrizations.weight"."""
    name = re.sub(r"\bparametrizations\.(\w+)\..*", r"\1", parameter or "")
    return re.sub(r"weight_[vg]$", "weight", name) or None


def scope_of(node: Node) -> tuple[str, str]:
    """The path and the class of the module that made the call, "" where the export does not say."""
    entries = [entry.split(",") for entry in node.metadata.get("nn_module_stack", "").split(";")]
    if not entries or len(entries[-1]) != 3 or entries[-1][0] == entries[-1][1]:
        return "", ""
    _, path, kind = entries[-1]
    path = re.sub(r"@\d+", "", path.removeprefix("L['self']").replace("['", ".").replace("']", ""))
    return path.strip("."), kind


def bound(name: str, given: dict[str, Any], where: str) -> dict[str, Any]:
    """`given` in the order of the schema of `aten.<name>`. Raises `ModelRefused` for what does not belong there."""
    packet, _, overload = name.partition(".")
    function = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if function is None:
        raise ModelRefused(f"{where}: this torch ({torch.__version__}) does not have it")
    found: dict[str, Any] = {}
    arguments = function._schema.arguments
    if "self" in given and all(argument.name != "self" for argument in arguments):
        given = {arguments[0].name: given["self"], **given}  # dropout_ calls "self" what dropout calls "input"
        del given["self"]
    for argument in arguments:
        if argument.name in given:
            value = given[argument.name]
            if not _fits(value, argument.type):
                raise ModelRefused(f"{where}: the argument {argument.name!r} is not of type {argument.type}")
        elif argument.has_default_value():
            value = argument.default_value
        else:
            raise ModelRefused(f"{where}: the argument {argument.name!r} is missing")
        found[argument.name] = value
    unknown = sorted(set(given) - set(found))
    if unknown:
        raise ModelRefused(f"{where}: it has no argument {unknown[0][:60]!r}")
    return found


def _fits(value: Any, kind: Any) -> bool:
    name = kind.kind()
    if name == "OptionalType":
        return value is None or _fits(value, kind.getElementType())
    if name == "TensorType":
        return isinstance(value, (*_TENSORS, int, float, Size))  # ATen takes a number for a tensor of one
    if name == "ListType":
        inner = kind.getElementType()
        if isinstance(value, list):
            return all(_fits(item, inner) for item in value)
        return inner.kind() in ("IntType", "FloatType") and _fits(value, inner)  # one for all
    if name == "IntType":
        return value is None or (isinstance(value, int | torch.dtype | Size))
    if name in ("FloatType", "NumberType"):
        return isinstance(value, int | float | Size)
    if name == "BoolType":
        return value is None or isinstance(value, bool)
    if name == "StringType":
        return isinstance(value, str)
    return value is None  # devices, generators


def flattened(values: list[Any]) -> list[Any]:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def constants_of(call: Call) -> list[Constant] | None:
    """The constants among the arguments; None where there is something that is not constant."""
    found = []
    for value in flattened(list(call.args.values())):
        if isinstance(value, fx.Node | Turned | Merged | Size | Filled | Spread):
            return None
        if isinstance(value, Constant):
            found.append(value)
    return found


def hashable(value: Any) -> Any:
    if isinstance(value, Constant):
        return ("constant", value.key)
    if isinstance(value, Mapping):
        return tuple((key, hashable(item)) for key, item in value.items())
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value
