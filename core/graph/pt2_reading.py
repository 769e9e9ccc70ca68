"""The `.pt2` reader: the archive's program, call by call through the tables of `core/graph/aten.py`, as a `Network`.

Nothing of the program is run: it is data. Constants are folded with the operators listed there, sizes are computed for
every image at once (`pt2_sizes.Size`), and what an output does not depend on is left out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import fx

from core.errors import ModelRefused, OperatorUnknown
from core.graph import aten_elementwise
from core.graph.aten import FOLDED_ONLY, LOWERINGS, MAX_NUMBER, ROUNDED, SCALARS, UNFOLDED
from core.graph.network import Network, Origin, TensorSpec, other_shapes
from core.graph.pt2_archive import Archive, View, open_archive
from core.graph.pt2_arguments import (
    bound,
    constants_of,
    described,
    flattened,
    hashable,
    is_in_place,
    operator_of,
    owner_of,
    scope_of,
)
from core.graph.pt2_lowering import HOME, Lowering
from core.graph.pt2_program import Exported, made, read
from core.graph.pt2_schema import DTYPES, UNTAKEN_DTYPES, Argument, Node, SymInt, TensorMeta
from core.graph.pt2_sizes import Size, Undecided, product, values_of
from core.graph.pt2_values import Call, Constant, Filled, Merged, Spread
from core.graph.raising import raise_norms
from core.graph.turned import Turned

OPSET = 20
"""Of the ONNX file that a `.pt2` becomes, unless the recipe says otherwise."""

_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def read_pt2(path: Path) -> Network:
    """The exported program at `path`. See `core/graph/aten.py` for what it may hold; float32.

    Raises subclasses of `ModelRefused`, naming the operator and the node.
    """
    archive = open_archive(path)
    try:
        return _Reader(archive, path.stat().st_size).network()
    finally:
        archive.close()


class _Reader:
    def __init__(self, archive: Archive, size: int) -> None:
        self.archive, self.program = archive, Exported(archive.program)
        self.values = self.program.values
        self.owners: dict[View, str] = {}
        self.stale: dict[str, str] = {}  # value -> the in-place call that changed it through another
        inputs = self.program.inputs
        static = inputs[0].shape[0]
        is_open = any(isinstance(size, str) for spec in inputs for size in spec.shape[1:])
        self.low = Lowering(static if isinstance(static, int) else None, is_open)
        self.low.allowance += 4 * size  # a weight may be folded several times over

    # --- reading ------------------------------------------------------------------------------------------------

    def network(self) -> Network:
        self.others = other_shapes(self.program.inputs, tuple(self.program.examples))
        spans = self.program.spans(self.others)
        for spec, shape, other, own in zip(self.program.inputs, self.program.examples, self.others, spans, strict=True):
            self.values[spec.name] = self.low.add_input(spec.name, shape, other, own)
        for index, node in enumerate(self.program.graph.nodes):
            if index in self.program.needed:
                self._take(node)
            if is_in_place(node):
                self._spoil(node)
        results = []
        for name in self.program.outputs:
            value = self._value(name, name)
            if isinstance(value, Constant | Filled | Spread) or not isinstance(value, fx.Node | Turned):
                raise ModelRefused(f"the output {name!r} is a constant: it does not depend on any input")
            if not isinstance(value, fx.Node):
                raise OperatorUnknown(f"the output {name!r} does not have the batch in front")
            if self.low.is_bool(value):
                raise ModelRefused(f"the output {name!r} is not a float32 tensor; inputs and outputs are float32")
            results.append(value)
        graph = self.low.graph
        graph.output(tuple(results) if len(results) > 1 else results[0])
        raise_norms(self.low)  # what nothing uses goes too
        (last,) = graph.find_nodes(op="output")
        results = list(last.args[0]) if isinstance(last.args[0], tuple | list) else [last.args[0]]
        outputs = tuple(self._output(index, node) for index, node in enumerate(results))
        module = fx.GraphModule(self.low.root, graph).eval()
        origin = Origin("pt2", OPSET, None, self.low.static_batch)
        return Network(module, self.program.inputs, outputs, origin, tuple(self.program.examples))

    def _output(self, index: int, node: fx.Node) -> TensorSpec:
        name = "output" if len(self.program.outputs) == 1 else f"output_{index}"
        taken = {spec.name for spec in self.program.inputs}
        while name in taken:
            name += "_"
        open_sizes: dict[tuple[int, int], str] = {}
        for spec, *examples in zip(self.program.inputs, self.program.examples, self.others, strict=True):
            for declared, *sizes in zip(spec.shape[1:], *examples, strict=True):
                if isinstance(declared, str):
                    open_sizes.setdefault((sizes[0], sizes[1]), declared)
        pairs = zip(node.meta["shape"][1:], self.low.other_shape(node)[1:], strict=True)
        sizes = [
            here if here == there else open_sizes.get((here, there), f"{name}_dim_{place}")
            for place, (here, there) in enumerate(pairs, start=1)
        ]
        return TensorSpec(name, "float32", (self.program.inputs[0].shape[0], *sizes))

    def _take(self, node: Node) -> None:
        """Lowers, folds or computes one node, and notes what it makes."""
        names = list(made(node))
        if node.target in SCALARS:
            numbers = flattened([self._argument(node, item.arg) for item in node.inputs])
            results = [self._scalar(node, numbers)]
        elif (name := operator_of(node)) in ("sym_size.int", "sym_numel.default"):
            shape = self.low.shape(self._argument(node, node.inputs[0].arg))
            if name == "sym_size.int":
                place = self._argument(node, node.inputs[1].arg) if len(node.inputs) > 1 else None
                if not isinstance(place, int) or not -len(shape) <= place < len(shape):
                    raise ModelRefused(
                        f"operator aten.{name} at node {described(node)}: dimension {place} of {len(shape)}"
                    )
                results = [shape[place]]
            else:
                results = [product(shape)]
        else:
            results = self._lowered(node, name)
        if len(results) < len(names) and len(results) != 1:
            raise ModelRefused(
                f"operator {node.target} at node {described(node)} makes {len(results)}, not {len(names)}"
            )
        self.values.update(zip(names, results, strict=False))  # further results (indices, masks) are not made

    def _scalar(self, node: Node, numbers: list[Any]) -> Any:
        try:
            for number in numbers:
                cases: list[Any] = [*values_of(number)]
                if not all(isinstance(item, int | float | Fraction) and _is_usual(item) for item in cases):
                    raise ValueError("what it reads is no number, or too large")
            if node.target not in ROUNDED and any(isinstance(item, Size) and item.rounded for item in numbers):
                raise Undecided("it goes on with a quotient of an open size, which torch rounds")
            result = SCALARS[node.target](*numbers)
            return float(result) if isinstance(result, Fraction) else result
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ModelRefused(f"operator {node.target} at node {described(node)}: {error}") from None

    def _lowered(self, node: Node, name: str) -> list[Any]:
        call = self._call(node, name)
        low = self.low
        try:
            if name in UNFOLDED:
                pass
            elif (folded := self._folded(call)) is not None:
                return folded
            elif name in FOLDED_ONLY:
                raise low.unknown(
                    call, "an activation, or a size that follows the input: it is known on constants only"
                )
            if name in aten_elementwise.LOWERINGS:
                _check_fillings(low, call)
            result = LOWERINGS[name](low, call)
        except OperatorUnknown as error:
            if "at node" in error.message:
                raise
            raise low.unknown(call, f"a form of its own: {error.message}") from None
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, ArithmeticError, AttributeError) as error:
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise low.refused(call, reason) from None
        return result if isinstance(result, list) else [result]

    def _call(self, node: Node, name: str) -> Call:
        given: dict[str, Any] = {}
        strides: dict[str, Any] = {}
        for item in node.inputs:
            given[item.name] = self._argument(node, item.arg)
            if item.arg.as_tensor is not None and (
                meta := self.program.graph.tensor_values.get(item.arg.as_tensor.name)
            ):
                strides[item.name] = _layout(meta)
        scope, scope_class = scope_of(node)
        where = f"operator aten.{name} at node {described(node)}"
        args = bound(name, given, where)
        kept = {key: value for key, value in strides.items() if value is not None}
        return Call(node.name or next(made(node), name), name, args, kept, scope, scope_class)

    def _folded(self, call: Call) -> list[Any] | None:
        """The results where everything that the call reads is constant; None where it is not, or makes a tensor of one
        number, which is carried as such."""
        if call.operator in aten_elementwise.LOWERINGS or call.operator in FOLDED_ONLY:
            call = self._made_whole(call)
        constants = constants_of(call)
        if constants is None or (not constants and call.operator not in FOLDED_ONLY):
            return None
        low = self.low
        key = low.key(call.operator, hashable(dict(call.args)))
        results = low.fold(call)
        owners = {owner_of(item.parameter) for item in constants}
        if len(constants) == 1:
            owners = {constants[0].parameter}
        owner = owners.pop() if len(owners) == 1 else None
        trained = any(item.trained for item in constants)
        return [Constant(item, low.key(key, place), owner, trained) for place, item in enumerate(results)]

    def _made_whole(self, call: Call) -> Call:
        """With constants for what is one number throughout, where all that the call reads is constant."""
        values = [item for item in flattened(list(call.args.values())) if not isinstance(item, Filled)]
        if any(isinstance(item, fx.Node | Turned | Merged | Size) for item in values):
            return call
        args = dict(call.args)
        for name, item in args.items():
            if isinstance(item, Filled) and all(isinstance(size, int) for size in item.sizes):
                self.low.charge(math.prod(item.sizes), call)
                args[name] = Constant(
                    torch.full(item.sizes, item.number), self.low.key("full", item.number, item.sizes)
                )
        return replace(call, args=args)

    # --- values -------------------------------------------------------------------------------------------------

    def _value(self, name: str, where: str) -> Any:
        if name in self.stale:
            raise OperatorUnknown(
                f"node {where!r} reads {name!r} after {self.stale[name]} has changed it in place, through another "
                f"name; that is not on the list in {HOME}"
            )
        if name not in self.values:
            if name not in self.program.sources:  # a second result: the indices of a pooling, the mask of a dropout
                raise OperatorUnknown(f"node {where!r} reads {name!r}, a result that is not on the list in {HOME}")
            weight, trained = self.program.sources[name]
            view = self.archive.view(weight)
            owner = self.owners.setdefault(view, weight)
            trained = trained and DTYPES[view.dtype][0] == torch.float32
            self.values[name] = Constant(self.archive.tensor(weight), self.low.key("weight", view), owner, trained)
        return self.values[name]

    def _argument(self, node: Node, argument: Argument) -> Any:
        where = node.name or next(made(node), "")
        kinds = argument.model_fields_set
        if len(kinds) != 1:
            raise ModelRefused(
                f"operator {node.target} at node {described(node)} has an argument of a kind that is not taken"
            )
        kind = next(iter(kinds))
        value = getattr(argument, kind)
        if kind == "as_tensor":
            return self._value(value.name, where)
        if kind == "as_tensors":
            return [self._value(item.name, where) for item in value]
        if kind == "as_optional_tensors":
            return [None if item.as_tensor is None else self._value(item.as_tensor.name, where) for item in value]
        if kind == "as_optional_tensor":
            return None if value.as_tensor is None else self._value(value.as_tensor.name, where)
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_sym_ints"):
            items = [
                next((each for each in (item.as_int, item.as_float, item.as_bool) if each is not None), None)
                if item.as_name is None else self._value(item.as_name, where)
                for item in (value if kind == "as_sym_ints" else [value])
            ]  # fmt: skip
            return items if kind == "as_sym_ints" else items[0]
        if kind in ("as_float", "as_floats"):
            numbers = [_FLOATS.get(item, item) for item in (value if kind == "as_floats" else [value])]
            return numbers if kind == "as_floats" else numbers[0]
        if kind == "as_scalar_type":
            return UNTAKEN_DTYPES.get(value) or DTYPES.get(value, (torch.complex128, ""))[0] or torch.float16
        if kind in ("as_none", "as_memory_format", "as_layout", "as_device"):
            return None  # where and in which order numbers lie in memory changes none of them
        return list(value) if isinstance(value, tuple) else value

    def _spoil(self, node: Node) -> None:
        """After a call in place: the name that it changed stands for its result, others of that memory for nothing."""
        source, result = next(read(node), None), next(made(node), None)
        if source is None:
            return
        root = self.program.roots[source]
        for name, other in self.program.roots.items():
            if other == root and name not in (source, result) and (name in self.values or name in self.program.sources):
                self.stale.setdefault(name, f"node {described(node)}")
        if result in self.values:
            self.values[source] = self.values[result]
        else:
            self.stale.setdefault(source, f"node {described(node)}")


def _check_fillings(low: Lowering, call: Call) -> None:
    """A tensor of one number may stand for that number only where it does not make what it meets larger."""
    values = list(call.args.values())
    shapes = [low.shape(item)[::-1] for item in values if isinstance(item, fx.Node | Turned | Constant)]
    for filling in (item for item in values if isinstance(item, Filled | Spread)):
        for place, size in enumerate(filling.sizes[::-1]):
            if shapes and size != 1 and not any(place < len(shape) and shape[place] == size for shape in shapes):
                raise low.unknown(call, "a constant that is larger than what it meets")


def _is_usual(number: Any) -> bool:
    return bool(-MAX_NUMBER <= number <= MAX_NUMBER)


def _layout(meta: TensorMeta) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Sizes and strides, at the sizes of the export where they are dynamic."""
    sizes, strides = ([_hinted(item) for item in group] for group in (meta.sizes, meta.strides))
    if None in sizes or None in strides or len(sizes) != len(strides):
        return None
    return tuple(size or 0 for size in sizes), tuple(stride or 0 for stride in strides)


def _hinted(item: SymInt) -> int | None:
    if item.as_expr is None:
        return item.as_int
    return item.as_expr.hint.as_int if item.as_expr.hint is not None else None
