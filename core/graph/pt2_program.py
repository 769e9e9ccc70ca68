"""What an exported program says about itself before any of it is read: inputs and outputs, names, what is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from core.errors import Fault, ModelRefused, ModelTooLarge, OperatorUnknown
from core.graph.aten import FOLDED_ONLY, LOWERINGS, SCALARS
from core.graph.limits import MAX_NODES, MAX_RANK, MAX_STATIC_BATCH
from core.graph.network import TensorSpec
from core.graph.onnx_checks import MAX_FAULTS
from core.graph.pt2_arguments import described, is_in_place, operator_of
from core.graph.pt2_lowering import HOME
from core.graph.pt2_schema import FLOAT, Argument, Node, Program
from core.graph.pt2_sizes import open_size

_SYMBOL = r"Symbol\('(\w{1,40})'[^()']*\)"
_MULTIPLE = rf"(?:Mul\(Integer\(([1-9]\d{{0,5}})\), {_SYMBOL}\)|{_SYMBOL})"
_LINEAR = re.compile(rf"{_MULTIPLE}|Add\({_MULTIPLE}, Integer\((-?\d{{1,6}})\)\)")
"""An open size of an input as its expression says: a number of times a symbol, and a number more."""

_MAY_ALIAS = ("reshape", "contiguous", "flatten", "to", "dropout", "type_as", "float", "expand_as", "narrow", "chunk")
"""Operators whose result may share its input's memory, though their schemas do not say so."""


class Exported:
    """An exported program, checked: every operator that is needed is known, every name is made once before it is read.

    `inputs` are the tensors that a caller gives, `examples` their shapes behind the batch at the sizes of the export,
    `values` those given as Python values, `sources` (weight, whether it is trained) by the name that the graph has for
    it; `outputs` are the names of what a caller gets, `needed` the indices of the nodes that these depend on, `roots`
    by value the value whose memory it may share.
    """

    def __init__(self, program: Program) -> None:
        self.graph, self.signature = program.graph_module.graph, program.graph_module.signature
        if len(self.graph.nodes) > MAX_NODES:
            raise ModelTooLarge(f"the graph has {len(self.graph.nodes)} nodes; at most {MAX_NODES} are taken")
        self.values: dict[str, Any] = {}
        self.sources: dict[str, tuple[str, bool]] = {}
        self.examples: list[tuple[int, ...]] = []
        self._symbols: dict[str, str] = {}
        self._ranges = program.range_constraints
        self._expressions: list[list[str | None]] = []
        self.inputs = self._inputs()
        self.outputs = self._outputs()
        self.roots = self._check_names()
        self.needed = self._needed()
        self._refuse_unknown()

    # --- the signature ------------------------------------------------------------------------------------------

    def _inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that a caller gives. Weights and Python values are noted on the way."""
        found: list[TensorSpec] = []
        for spec in self.signature.input_specs:
            if spec.parameter is not None:
                self.sources[spec.parameter.arg.name] = (spec.parameter.parameter_name, True)
            elif spec.buffer is not None:
                self.sources[spec.buffer.arg.name] = (spec.buffer.buffer_name, False)
            elif spec.tensor_constant is not None:
                self.sources[spec.tensor_constant.arg.name] = (spec.tensor_constant.tensor_constant_name, False)
            elif spec.constant_input is not None:
                self.values[spec.constant_input.name] = next(iter(spec.constant_input.value.values()), None)
            elif spec.user_input is not None:
                if spec.user_input.arg.as_tensor is None:
                    raise ModelRefused("an input of the exported call is no tensor; inputs are float32 tensors")
                found.append(self._input(spec.user_input.arg.as_tensor.name))
            else:
                raise ModelRefused("the program takes a custom object or a token; inputs are float32 tensors")
        if not found:
            raise ModelRefused("the model has no input")
        if len({spec.shape[0] for spec in found}) > 1:
            raise ModelRefused("the inputs disagree about dimension 0, the batch")
        batch = found[0].shape[0]
        if isinstance(batch, int) and batch > MAX_STATIC_BATCH:
            raise ModelTooLarge(f"a static batch of {batch}; at most {MAX_STATIC_BATCH} is taken")
        return tuple(found)

    def _input(self, name: str) -> TensorSpec:
        meta = self.graph.tensor_values.get(name)
        if meta is None or meta.dtype != FLOAT:
            raise ModelRefused(f"{name!r} is not a float32 tensor; inputs and outputs are float32")
        if not 2 <= len(meta.sizes) <= MAX_RANK:
            raise ModelRefused(f"{name!r} has {len(meta.sizes)} dimensions; 2 to {MAX_RANK}, the batch in front")
        shape: list[int | str] = []
        example: list[int] = []
        for index, size in enumerate(meta.sizes):
            if size.as_expr is None:
                if size.as_int is None or not 1 <= size.as_int < 2**31:
                    raise ModelTooLarge(f"{name!r} has a dimension of {size.as_int}; 1 to {2**31 - 1} are taken")
                shape.append(size.as_int)
                example.append(size.as_int)
                continue
            usual = {0: "batch", 2: "height", 3: "width"} if len(meta.sizes) == 4 else {0: "batch"}
            wanted = usual.get(index, f"dim_{index}")
            if wanted in self._symbols.values() and size.as_expr.expr_str not in self._symbols:
                wanted = f"{name}_dim_{index}" if index else "batch"
            known = self._symbols.setdefault(size.as_expr.expr_str, wanted)
            if (known == "batch") is not (index == 0):
                raise ModelRefused(f"dimension {index} of {name!r} and the batch must not be the same size")
            hint = size.as_expr.hint.as_int if size.as_expr.hint is not None else None
            if hint is not None and not 1 <= hint < 2**31:
                raise ModelTooLarge(f"{name!r} has a dimension of {hint}; 1 to {2**31 - 1} are taken")
            shape.append(known)
            example.append(hint or 64)
        self._expressions.append([None if size.as_expr is None else size.as_expr.expr_str for size in meta.sizes[1:]])
        self.examples.append(tuple(example[1:]))
        return TensorSpec(name, "float32", tuple(shape))

    def spans(self, others: Sequence[tuple[int, ...]]) -> list[list[Any]]:
        """Per input the sizes behind the batch as numbers to compute with, `others` being those of a second example."""
        symbols: dict[str, tuple[int, int]] = {}
        found = []
        for spec, *columns in zip(self.inputs, self.examples, others, self._expressions, strict=True):
            sizes: list[Any] = []
            for dim, (here, there, expression) in enumerate(zip(*columns, strict=True), start=1):
                match = _LINEAR.fullmatch(expression or "")
                if expression is None:
                    sizes.append(here)
                    continue
                factor, symbol, added = 1, "", 0
                if match is not None:
                    factor, added = int(match[1] or match[4] or 1), int(match[7] or 0)
                    symbol = match[2] or match[3] or match[5] or match[6]
                pair = ((here - added) // factor, (there - added) // factor)
                fits = all(part * factor + added == size for part, size in zip(pair, (here, there), strict=True))
                if not symbol or not fits or symbols.setdefault(symbol, pair) != pair:
                    symbol, pair, factor, added = f"{spec.name}.{dim}", (here, there), 1, 0
                limits = self._ranges.get(symbol)
                least = max(1, (limits.min_val if limits is not None else None) or 1)
                sizes.append(open_size(symbol, (pair[0], *pair), least) * factor + added)
            found.append(sizes)
        return found

    def _outputs(self) -> list[str]:
        """The values that a caller gets; buffers that were changed are left out."""
        found = []
        for spec in self.signature.output_specs:
            if spec.user_output is None:
                continue
            if spec.user_output.arg.as_tensor is None:
                raise ModelRefused("an output of the exported call is no tensor; outputs are float32 tensors")
            found.append(spec.user_output.arg.as_tensor.name)
        if not found:
            raise ModelRefused("the model has no output")
        for name in found:
            meta = self.graph.tensor_values.get(name)
            if meta is None or meta.dtype != FLOAT:
                raise ModelRefused(f"the output {name!r} is not a float32 tensor; inputs and outputs are float32")
        return found

    # --- names, and what is needed ------------------------------------------------------------------------------

    def _check_names(self) -> dict[str, str]:
        """Every name is made once, before it is read. Returns the value whose memory each may share."""
        taken = [*self.sources, *self.values, *(spec.name for spec in self.inputs)]
        makers = dict.fromkeys(taken, "an input")
        if len(makers) != len(taken):
            twice = next(name for name in taken if taken.count(name) > 1)
            raise ModelRefused(f"the name {twice!r} is used twice, by inputs")
        for node in self.graph.nodes:
            for name in made(node):
                if name in makers:
                    raise ModelRefused(
                        f"the name {name!r} is used twice: by {makers[name]} and by node {described(node)}"
                    )
                makers[name] = f"node {described(node)}"
        known = set(taken)
        roots = {name: name for name in taken}
        for node in self.graph.nodes:
            for name in read(node):
                if name not in known:
                    late = f"{makers.get(name)} makes later: the graph has a cycle, or its nodes are out of order"
                    reason = late if name in makers else "nothing makes"
                    raise ModelRefused(
                        f"operator {node.target} at node {described(node)} reads {name!r}, which {reason}"
                    )
            known.update(made(node))
            source = next(read(node), None)
            shares = source is not None and _shares(node)
            roots.update((name, roots[source] if shares and source is not None else name) for name in made(node))
        for name in self.outputs:
            if name not in known:
                raise ModelRefused(f"nothing makes the output {name!r}")
        return roots

    def _needed(self) -> set[int]:
        """The nodes that an output depends on, and those that change an activation in place."""
        wanted = set(self.outputs)
        found = set()
        for index in range(len(self.graph.nodes) - 1, -1, -1):
            node = self.graph.nodes[index]
            changes = is_in_place(node) and self.roots.get(next(read(node), "")) not in self.sources
            if changes or wanted.intersection(made(node)):
                found.add(index)
                wanted.update(read(node))
        return found

    def _refuse_unknown(self) -> None:
        """Raises `OperatorUnknown` with every needed node whose operator is not on the list."""
        known = {*LOWERINGS, *FOLDED_ONLY, "sym_size.int", "sym_numel.default"}
        unknown = [
            node for index, node in enumerate(self.graph.nodes)
            if index in self.needed and operator_of(node) not in known and node.target not in SCALARS
        ]  # fmt: skip
        if not unknown:
            return
        faults = [
            Fault(
                "/graph/node/" + (node.name or next(made(node), "")).replace("~", "~0").replace("/", "~1"),
                f"unknown operator {node.target.removeprefix('torch.ops.')[:100]}",
                f"one of those in {HOME}",
            )
            for node in unknown[:MAX_FAULTS]
        ]
        names = [node.target.removeprefix("torch.ops.")[:100] for node in unknown]
        first = f"operator {names[0]} at node {described(unknown[0])} is not on the list in {HOME}"
        others = sorted(set(names[1:MAX_FAULTS]))
        more = f"; nor are {len(unknown) - 1} more nodes ({', '.join(others)})" if others else ""
        raise OperatorUnknown(first + more, faults=faults)


def _names(argument: Argument) -> Iterator[str]:
    for item in (argument.as_tensor, *(argument.as_tensors or ())):
        if item is not None:
            yield item.name
    for optional in (argument.as_optional_tensor, *(argument.as_optional_tensors or ())):
        if optional is not None and optional.as_tensor is not None:
            yield optional.as_tensor.name
    for symbol in (argument.as_sym_int, argument.as_sym_float, argument.as_sym_bool, *(argument.as_sym_ints or ())):
        if symbol is not None and symbol.as_name is not None:
            yield symbol.as_name


def made(node: Node) -> Iterator[str]:
    for argument in node.outputs:
        yield from _names(argument)


def read(node: Node) -> Iterator[str]:
    for item in node.inputs:
        yield from _names(item.arg)


def _shares(node: Node) -> bool:
    """Whether what the node makes may share the memory of the first tensor that it reads."""
    name = operator_of(node)
    if is_in_place(node) or name.partition(".")[0] in _MAY_ALIAS:
        return True
    packet = getattr(torch.ops.aten, name.partition(".")[0], None) if re.fullmatch(r"\w+\.\w+", name) else None
    overload = getattr(packet, name.partition(".")[2], None) if name in LOWERINGS else None
    return overload is not None and any(item.alias_info is not None for item in overload._schema.returns)
