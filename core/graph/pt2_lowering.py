"""The canonical graph in the making from ATen calls: what the tables in `core/graph/aten_*.py` work with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn

from core.errors import ModelRefused, ModelTooLarge, OperatorUnknown
from core.graph.building import Building, readable
from core.graph.limits import MAX_FOLDED_ELEMENTS
from core.graph.operators import FORMS
from core.graph.pt2_sizes import Size, open_size, product, quotient, values_of
from core.graph.pt2_spans import of_call, of_layer
from core.graph.pt2_turned import aligned, met, once_per_example, placed, seen, settled, straight
from core.graph.pt2_values import (
    BATCHES,
    Activation,
    Call,
    Constant,
    Filled,
    Merged,
    Spread,
)
from core.graph.turned import Layout, Turned

HOME = "core/graph/aten.py"
_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")


class Lowering(Building):
    """A canonical graph in the making. `static_batch` is the batch size of the export (None: dynamic); the graph is
    made for any."""

    def __init__(self, static_batch: int | None, dynamic_space: bool) -> None:
        super().__init__(dynamic_space=dynamic_space)
        self.static_batch = static_batch
        first, second = BATCHES
        self.batch: Any = open_size("batch size", (first, second, first)) if static_batch is None else static_batch
        self._spans: dict[fx.Node, list[Any]] = {}  # per dimension: int or `Size`
        self.folded, self.allowance = 0, MAX_FOLDED_ELEMENTS
        self._keys: dict[Any, int] = {}
        self._bare: dict[int, fx.Node] = {}
        self._views: dict[tuple[Any, ...], tuple[int, Tensor]] = {}
        self._made: dict[tuple[Any, fx.Node, tuple[int, ...]], fx.Node] = {}
        self._shared: dict[Any, str] = {}
        self._layer_of: dict[int, str] = {}  # where a weight lies in memory -> the node whose layer has it

    # --- adding -------------------------------------------------------------------------------------------------

    def add_input(
        self, name: str, shape: tuple[int, ...], other: tuple[int, ...], spans: Sequence[Any] = ()
    ) -> fx.Node:
        """As `Building.add_input`; `spans` are the sizes behind the batch, as numbers to compute with."""
        made = super().add_input(name, shape, other)
        self._note_spans(made, lambda: [self.batch, *(spans or shape)])
        return made

    def call(self, target: Any, *args: Any, **options: Any) -> fx.Node:
        """As `Building.call`. Raises `OperatorUnknown` for a form that no operator's file has."""
        if target not in FORMS:
            raise OperatorUnknown(f"the canonical form {target} is not on the list in core/graph/operators")
        made = super().call(target, *args, **options)
        dtype = self._phantoms[made].dtype
        if dtype not in (torch.float32, torch.bool):
            raise ValueError(f"it makes numbers of type {str(dtype).removeprefix('torch.')}; only float32 is taken")
        self._note_spans(made, lambda: of_call(target, args, self._of, len(made.meta["shape"])))
        return made

    def once(self, target: Any, x: fx.Node, order: list[int]) -> fx.Node:
        """As `call`, made once."""
        key = (target, x, tuple(order))
        if key not in self._made:
            self._made[key] = self.call(target, x, order)
        return self._made[key]

    def apply(self, name: str, x: fx.Node) -> fx.Node:
        """As `Building.apply`."""
        made = super().apply(name, x)
        layer = self.root.get_submodule(name)
        self._note_spans(made, lambda: of_layer(layer, self._of(x), len(made.meta["shape"])))
        return made

    def key(self, *parts: Any) -> int:
        """A number for these hashable parts, the same for the same parts."""
        return self._keys.setdefault(parts, len(self._keys))

    def bare(self, call: Call, constant: Constant) -> fx.Node:
        """A constant as a node: a parameter where the program trains it, else a buffer."""
        if constant.key not in self._bare:
            value = constant.value
            if value.dtype not in (torch.float32, torch.bool):
                kind = str(value.dtype).removeprefix("torch.")
                raise self.unknown(call, f"a constant of type {kind} where float32 is computed with")
            name = readable(constant.parameter or "") or f"constants.{readable(call.name) or 'value'}"
            trained = constant.trained and value.dtype == torch.float32
            copy = value.clone(memory_format=torch.contiguous_format)
            self._bare[constant.key] = self.add_constant(name, nn.Parameter(copy) if trained else copy)
        return self._bare[constant.key]

    def pointwise(self, call: Call, target: Any, *operands: Any, **options: Any) -> Activation:
        """An element-wise form of activations, constants and numbers. What is folded or turned stays so."""
        tensors_only = target is torch.ops.aten.where.self
        operands = tuple(_without_sizes(item) if tensors_only else self.operand(item) for item in operands)
        values = [item for item in operands if isinstance(item, fx.Node | Turned)]
        if not values:
            raise self.unknown(call, "no activation among its operands")
        meets = any(isinstance(item, Constant) and item.value.dim() > 0 for item in operands)
        is_turned = any(isinstance(item, Turned) for item in values)
        lying = aligned(self, call, values, in_order=meets) if is_turned else [seen(item) for item in values]
        first, rest = max(lying, key=lambda value: len(value.order)), iter(lying)
        nodes = [
            next(rest).node if isinstance(item, fx.Node | Turned)
            else self.bare(call, met(self, call, item, first)) if isinstance(item, Constant) else item
            for item in operands
        ]  # fmt: skip
        return settled(self, Turned(self.call(target, *nodes, **options), first.order))

    def layer(
        self, call: Call, kind: str, weight: Constant | None, shared: tuple[Any, ...], make: Callable[[], nn.Module],
        x: fx.Node,
    ) -> fx.Node:  # fmt: skip
        """A layer applied to `x`, named after its weight or the module that made the call. Calls that agree in kind,
        weight and `shared` use one layer.

        Raises `OperatorUnknown` where calls share a weight, but not a layer: it would be counted twice and trained
        apart. (Vectors may be shared.)
        """
        known = None if weight is None else self._view_key(weight)
        key = None if known is None else self.key(kind, known, *shared)
        name = self._shared.get(key) if key is not None else None
        if name is None:
            if weight is not None and weight.value.dim() > 1:
                other = self._layer_of.setdefault(weight.value.data_ptr(), call.name)
                if other != call.name:
                    raise self.unknown(call, f"the weight {weight.parameter!r} of node {other!r} in an unlike layer")
            name = self.add_layer(self._layer_name(call, kind, weight), make())
            if key is not None:
                self._shared[key] = name
        return self.apply(name, x)

    def _view_key(self, weight: Constant) -> int:
        """The key of the first constant that was the same numbers in the same places of memory."""
        tensor = weight.value
        view = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        return self._views.setdefault(view, (weight.key, tensor))[0]  # while it is held, the memory is no other's

    def _layer_name(self, call: Call, kind: str, weight: Constant | None) -> str:
        """Of the weight ("layer1.0.conv1.weight" is "layer1.0.conv1"), else the module, the kind behind a container."""
        stem, _, last = ((weight.parameter if weight is not None else None) or "").rpartition(".")
        if stem and last == "weight":
            return readable(stem) or kind
        is_leaf = call.scope_class.startswith("torch.nn.modules.") and not call.scope_class.endswith(_CONTAINERS)
        parts = [call.scope] if is_leaf and call.scope else [call.scope, kind] if call.scope else [kind]
        return readable(".".join(parts)) or kind

    # --- looking ------------------------------------------------------------------------------------------------

    def is_bool(self, node: fx.Node) -> bool:
        return self._phantoms[node].dtype == torch.bool

    def numbers(self, *values: float) -> list[Constant]:
        """Numbers as constants, for forms that take tensors only."""
        return [Constant(torch.tensor(value), self.key("number", value)) for value in values]

    def operand(self, value: Any) -> Any:
        """A number where `value` is an untrained constant of one element; else the value itself."""
        if isinstance(value, Filled):
            return value.number
        value = _without_sizes(value)
        if isinstance(value, Constant) and not value.trained and value.value.numel() == 1:
            return value.value.reshape(()).item()
        return value

    def activation(self, call: Call, key: str) -> fx.Node:
        """The argument as a node with the batch in front."""
        value = call[key]
        if isinstance(value, Constant):
            return self.bare(call, once_per_example(self, value))
        if isinstance(value, Filled) and value.like is not None:  # the first state of a recurrent layer
            zeros = self.call(torch.ops.aten.mul.Tensor, value.like, 0.0)
            return zeros if value.number == 0 else self.call(torch.ops.aten.add.Tensor, zeros, value.number)
        if not isinstance(value, fx.Node):
            raise self.unknown(call, f"{self.described(value)} as {key!r}: the batch is not in front there")
        return value

    def seen(self, call: Call, value: Any) -> Turned:
        """An activation as one whose dimensions may be in any order."""
        if not isinstance(value, fx.Node | Turned):
            raise self.unknown(call, f"{self.described(value)} where an activation is known")
        return seen(value)

    def lifted(self, call: Call, key: str) -> tuple[fx.Node, Layout]:
        """The argument as a node with the batch in front, and where the batch lies in the exported program."""
        value = call[key]
        return straight(self, value) if isinstance(value, Turned) else (self.activation(call, key), Layout())

    def placed(self, node: fx.Node, layout: Layout) -> Activation:
        """A node as a value with the batch where `lifted` has found it."""
        return placed(self, node, layout)

    def weight(self, call: Call, key: str) -> Constant:
        """A float32 constant that is finite."""
        value = call[key]
        if not isinstance(value, Constant):
            raise self.unknown(call, f"{self.described(value)} as {key!r}, which must be constant")
        name = value.parameter or key
        if value.value.dtype != torch.float32:
            kind = str(value.value.dtype).removeprefix("torch.")
            raise self.unknown(call, f"weights of type {kind} ({name!r}); only float32 is taken")
        if value.value.numel() == 0:
            raise self.refused(call, f"the weight {name!r} is empty")
        if not bool(torch.isfinite(value.value).all()):
            raise self.refused(call, f"the weight {name!r} holds NaN or infinity")
        return value

    def weight_or_none(self, call: Call, key: str) -> Constant | None:
        return None if call[key] is None else self.weight(call, key)

    def integer(self, call: Call, key: str) -> int:
        return self.fixed(call, call[key], key)

    def integers(self, call: Call, key: str) -> list[int]:
        return [self.fixed(call, item, key) for item in call[key]]

    def fixed(self, call: Call, value: Any, key: str) -> int:
        if isinstance(value, Constant) and value.value.numel() == 1:
            value = value.value.reshape(()).item()
        if isinstance(value, Size):
            raise self.unknown(call, f"a {key!r} that depends on a dynamic dimension of an input")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int):
            raise self.refused(call, f"{key!r} is {self.described(value)}, not a whole number")
        return value

    def dim(self, call: Call, dim: int, rank: int) -> int:
        if not -max(rank, 1) <= dim < max(rank, 1):
            raise self.refused(call, f"dimension {dim} of an input of rank {rank}")
        return dim % max(rank, 1)

    def shape(self, value: Any) -> list[Any]:
        """The shape as the exported program sees it, the batch at the size of the export. Entries: int or `Size`."""
        if isinstance(value, Constant):
            return list(value.value.shape)
        if isinstance(value, Filled | Spread):
            return list(value.sizes)
        if isinstance(value, Merged):
            first, second, *space = self.shape(value.node)
            return [1, first * second, *space]
        if isinstance(value, Turned):
            sizes = self.shape(value.node)
            return [product(sizes[dim] for dim in value.dims(axis)) for axis in range(len(value.order))]
        return list(value.meta["shape"]) if value.op == "get_attr" else self._of(value)

    def holder(self, sizes: Sequence[Any], places: Sequence[int] | None = None) -> tuple[fx.Node, list[int]] | None:
        """(value, its dimensions) that has these `sizes`, at `places` where they are given; the first there is."""
        for node, spans in self._spans.items():
            found = [
                next((dim for dim in range(1, len(spans)) if spans[dim] == size), 0)
                if places is None else places[index] if spans[places[index] : places[index] + 1] == [size] else 0
                for index, size in enumerate(sizes)
            ]  # fmt: skip
            if all(found):
                return node, found
        return None

    def multiples(self, sizes: Sequence[Any]) -> tuple[fx.Node, list[int], list[int]] | None:
        """(value, its last dimensions, how many times each of them) that `sizes` are."""
        for node, spans in self._spans.items():
            last = range(max(2, len(spans) - len(sizes)), len(spans))
            times = [quotient(size, spans[dim]) for size, dim in zip(sizes, last, strict=False)]
            plain = node.op == "placeholder" or all(isinstance(size, Size) for size in sizes)  # no cut changes it
            if plain and len(times) == len(sizes) and all(isinstance(item, int) and item >= 1 for item in times):
                return node, list(last), times
        return None

    def _of(self, node: fx.Node) -> list[Any]:
        """Per dimension: int or `Size`."""
        return list(self._spans[node]) if node in self._spans else list(node.meta["shape"])

    def _note_spans(self, made: fx.Node, compute: Callable[[], list[Any]]) -> None:
        """Notes the sizes of `made`. What is not known of one that follows the input is a number of its own."""
        here, there = made.meta["shape"], self.other_shape(made)
        spans: list[Any] = [None] * len(here)
        if self.dynamic_space and here[1:] != there[1:]:
            with suppress(ArithmeticError, TypeError):
                spans = compute()
        for dim, pair in enumerate(zip(here, there, strict=True)):
            if values_of(spans[dim]) != (pair[0], *pair):
                known = pair[0] == pair[1]
                spans[dim] = pair[0] if known else open_size(f"{made.name}.{dim}", (pair[0], *pair))
        self._spans[made] = [self.batch, *spans[1:]]

    # --- folding ------------------------------------------------------------------------------------------------

    def fold(self, call: Call) -> list[Tensor]:
        """What the call makes of its constants. What it makes is counted before it is made."""
        packet, _, overload = call.operator.partition(".")
        function = getattr(getattr(torch.ops.aten, packet), overload)
        schema = function._schema
        if packet in ("view", "_unsafe_view"):  # what is folded need not lie in memory as it did for the exporter
            function = torch.ops.aten.reshape.default

        def run(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
            positional, named = [], {}
            for argument in schema.arguments:
                value = call[argument.name]
                value = [_plain(item, change) for item in value] if isinstance(value, list) else _plain(value, change)
                if not argument.kwarg_only:
                    positional.append(value)
                elif value is not None and argument.name not in ("device", "layout", "pin_memory"):
                    named[argument.name] = value
            if any(argument.name == "device" for argument in schema.arguments):
                named["device"] = "meta" if change is _phantom else "cpu"
            with torch.no_grad():
                result = function(*positional, **named)
            return list(result) if isinstance(result, list | tuple) else [result]

        is_view = any(item.alias_info is not None for item in schema.returns)
        if not is_view:
            values = call.args.values()
            read = max((item.value.numel() for item in values if isinstance(item, Constant)), default=0)
            self.charge(max(read, *(item.numel() for item in run(_phantom))), call)
        return run(lambda tensor: tensor)

    def charge(self, elements: int, call: Call) -> None:
        """Counts what folding makes, before it is made."""
        self.folded += elements
        if self.folded > self.allowance:
            raise ModelTooLarge(f"folding constants makes more than {self.allowance} numbers, at node {call.name!r}")

    # --- refusing -----------------------------------------------------------------------------------------------

    def unknown(self, call: Call, what: str) -> OperatorUnknown:
        return OperatorUnknown(
            f"operator aten.{call.operator} at node {call.name!r} has {what}, which is not on the list in {HOME}"
        )

    def refused(self, call: Call, what: str) -> ModelRefused:
        return ModelRefused(f"operator aten.{call.operator} at node {call.name!r}: {what}")

    @staticmethod
    def described(value: Any) -> str:
        kinds: tuple[tuple[Any, str], ...] = (
            ((fx.Node,), "an activation"), ((Turned,), "an activation with the batch moved"),
            ((Merged,), "an activation with the examples side by side"), ((Constant, Filled, Spread), "a constant"),
            ((Size,), "a size that follows the input"), ((Tensor,), "a tensor"), ((list, tuple), "a list"),
        )  # fmt: skip
        return next((text for kind, text in kinds if isinstance(value, kind)), repr(value)[:60])


def _without_sizes(value: Any) -> Any:
    """What ATen repeats up to the sizes of the others, it need not be told to."""
    return value.constant if isinstance(value, Spread) else value


def _phantom(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _plain(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return change(value.value) if isinstance(value, Constant) else value
