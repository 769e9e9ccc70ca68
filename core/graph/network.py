"""The canonical graph: what every model becomes, and what every method works on.

A `Network` holds a `torch.fx.GraphModule` whose parametrised layers are plain `torch.nn` modules (`call_module`),
whose other nodes are ATen calls from the closed list in `core/graph/operators` (`call_function`), and whose bare
constants are buffers (`get_attr`). Dimension 0 of every activation is the batch; nothing in the graph depends on its
size, so that a model uploaded with a static batch of 1 can be trained. `node.meta["shape"]` is the shape for one,
`node.meta["dtype"]` the type: float32, or where numbers are compared or counted bool, int32 or int64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from core.errors import Fault, ModelRefused
from core.graph.copying import copied
from core.graph.ids import Grouped
from core.graph.shapes import propagate_shapes, run_shapes
from core.graph.softmax import final_softmax, without_final_softmax


@dataclass(frozen=True)
class TensorSpec:
    """An input or output as uploaded. `shape` holds an int per static dimension and a name per dynamic one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Origin:
    """Where a network came from: what the export needs to be drop-in.

    `template` is the uploaded ONNX model without nodes and weights (its names, types, dimensions, metadata, producer,
    doc strings), serialised; None for a model that was not ONNX. `static_batch` is the batch size that the upload fixed
    and the import freed; None where it was dynamic.
    """

    format: str
    opset: int
    template: bytes | None = None
    static_batch: int | None = None
    ends_in_softmax: bool = False


class Network:
    """A network in canonical form. See the module's docstring for the form, DESIGN section 3 for why.

    Args:
        module: the canonical graph.
        inputs: the inputs as uploaded, in order.
        outputs: the outputs as uploaded, in order.
        origin: where it came from.
        input_shapes: per input, the shape of one example without the batch (dynamic dimensions filled in).
        grouped: per grouped convolution, how it is cut; by default whichever way leaves more to choose from. It stays
            with the network through cuts, so that a plan of several cuts is one cut of the original.

    Raises:
        ModelTooLarge: an activation is past the cap.
        ModelRefused: the graph depends on the batch size, or an output is not what it is declared as.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        origin: Origin,
        input_shapes: tuple[tuple[int, ...], ...],
        grouped: Mapping[str, Grouped] | None = None,
    ) -> None:
        self.module = module
        self.inputs = inputs
        self.outputs = outputs
        self.input_shapes = input_shapes
        self.grouped: Mapping[str, Grouped] = grouped_cuts(module) if grouped is None else grouped
        self._without_softmax: fx.GraphModule | None = None
        self.through: Callable[[fx.GraphModule, tuple[Tensor, ...]], Any] | None = None
        """What runs the graph in place of itself, where a training wants it otherwise; a clone has none."""
        propagate_shapes(module, input_shapes)
        _refuse_false_declarations(outputs, self.computed_outputs())
        _refuse_whole_numbers(outputs, self.output_nodes())
        self.origin = replace(origin, ends_in_softmax=any(map(final_softmax, self.output_nodes())))

    # --- running ------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Tensor) -> Any:
        """All outputs for a batch of any size: one tensor where there is one output, else a tuple."""
        return self._run(self.module, inputs)

    def logits(self, *inputs: Tensor) -> Any:
        """As `__call__`, but in front of a final Softmax or LogSoftmax (the same where there is none)."""
        if not self.origin.ends_in_softmax:
            return self._run(self.module, inputs)
        if self._without_softmax is None:
            self._without_softmax = without_final_softmax(self.module)
        return self._run(self._without_softmax, inputs)

    def _run(self, module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Any:
        return module(*inputs) if self.through is None else self.through(module, inputs)

    def example_input(self, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers shaped like the first input, (batch, ...), the same for the same seed."""
        return self.example_inputs(batch, seed, dtype)[0]

    def example_inputs(self, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """As `example_input`, for every input."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *shape, generator=generator, dtype=dtype) for shape in self.input_shapes)

    # --- as nn.Module -------------------------------------------------------------------------------------------

    def clone(self, instead: Mapping[int, Tensor] | None = None) -> Network:
        """A deep copy: own parameters, own buffers, the same mode. `instead` has other tensors by the old ones' id."""
        twin = copy.copy(self)
        twin.module = copied(self.module, instead or {})
        twin._without_softmax = None
        twin.through = None
        return twin

    def to(self, target: torch.device | torch.dtype | str) -> Network:
        """Moves or converts parameters and buffers in place. Returns self."""
        self.module.to(target)
        self._without_softmax = None  # it shares modules, but not bare constants
        return self

    def train(self, mode: bool = True) -> Network:
        self.module.train(mode)
        return self

    def eval(self) -> Network:
        return self.train(False)

    @property
    def training(self) -> bool:
        return self.module.training

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.module.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.named_parameters()

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies `state` in; names and shapes must match exactly. Raises `RuntimeError` where they do not."""
        self.module.load_state_dict(state, strict=True)

    # --- looking ------------------------------------------------------------------------------------------------

    def layers(self) -> dict[str, nn.Module]:
        """Parametrised layers by name, in execution order, each once."""
        found: dict[str, nn.Module] = {}
        for node in self.module.graph.nodes:
            if node.op == "call_module" and node.target not in found:
                layer = self.module.get_submodule(node.target)
                if next(layer.parameters(), None) is not None:
                    found[node.target] = layer
        return found

    def output_nodes(self) -> list[fx.Node]:
        """The nodes whose values are the outputs, in order."""
        (output,) = self.module.graph.find_nodes(op="output")
        value = output.args[0]
        return list(value) if isinstance(value, tuple | list) else [value]

    def computed_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs with the shapes that the graph makes of `input_shapes`; the batch stays as it was declared."""
        return tuple(
            replace(spec, shape=(*spec.shape[:1], *node.meta["shape"][1:]))
            for spec, node in zip(self.outputs, self.output_nodes(), strict=True)
        )

    def second_shapes(self) -> dict[fx.Node, tuple[int, ...]] | None:
        """The shape of every node where open sizes of the inputs are others: what differs from `node.meta["shape"]`
        follows them. None where nothing is open, or where the network takes one size only."""
        if not any(isinstance(size, str) for spec in self.inputs for size in spec.shape[1:]):
            return None
        dtypes = {node: node.meta.get("dtype") for node in self.module.graph.nodes}
        try:
            return run_shapes(self.module, other_shapes(self.inputs, self.input_shapes), batch=1, capped=False)
        except ModelRefused:
            return None
        finally:
            for node, dtype in dtypes.items():
                node.meta["dtype"] = dtype

    def known_outputs(self) -> tuple[TensorSpec, ...]:
        """As `computed_outputs`, but what follows an input's open height or width stays as it was declared."""
        if not any(isinstance(size, str) for spec in self.inputs for size in spec.shape[1:]):
            return self.computed_outputs()
        others = self.second_shapes()
        if others is None:
            return self.outputs
        return tuple(
            replace(spec, shape=(*spec.shape[:1], *(
                here if here == there else declared
                for declared, here, there in zip(spec.shape[1:], found.shape[1:], others[node][1:], strict=True)
            )))
            for spec, found, node in zip(self.outputs, self.computed_outputs(), self.output_nodes(), strict=True)
        )  # fmt: skip


OPEN_FACTORS = (2, 3, 5, 7)
"""How many times as large the open sizes of an input are in the second example that shapes are worked out for: no two
alike, so that a height is not taken for a width."""


def other_shapes(inputs: tuple[TensorSpec, ...], shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """The input shapes of the second example, `shapes` being those of the first."""
    found = []
    for spec, shape in zip(inputs, shapes, strict=True):
        is_open = [isinstance(declared, str) for declared in spec.shape[1:]]
        found.append(
            tuple(
                size * OPEN_FACTORS[sum(is_open[:index]) % len(OPEN_FACTORS)] if is_open[index] else size
                for index, size in enumerate(shape)
            )
        )
    return tuple(found)


def grouped_cuts(module: nn.Module, way: Grouped | Literal["auto"] = "auto") -> dict[str, Grouped]:
    """How each grouped convolution of `module` is cut: group by group where that leaves the more units, else inside.

    `way` sets it for all but depthwise ones, which have nothing inside.
    """
    found: dict[str, Grouped] = {}
    for name, layer in module.named_modules():
        groups = getattr(layer, "groups", 1)
        if isinstance(groups, int) and groups > 1:
            per_group = min(layer.in_channels, layer.out_channels) // groups
            chosen: Grouped = "inside" if groups < per_group else "whole"
            found[name] = chosen if way == "auto" or per_group == 1 else way
    return found


def _refuse_false_declarations(declared: tuple[TensorSpec, ...], computed: tuple[TensorSpec, ...]) -> None:
    """Raises `ModelRefused` where an output's declared dimension behind the batch is not the one that the graph makes.

    ONNX Runtime runs such a file all the same, so that the declaration would be found out by whoever relies on it.
    """
    faults = [
        Fault(
            f"/graph/output/{index}",
            f"{said.name} is declared {_text(said.shape)}",
            f"{_text(found.shape)}, as computed",
        )
        for index, (said, found) in enumerate(zip(declared, computed, strict=True))
        if len(said.shape) != len(found.shape)
        or any(isinstance(a, int) and a != b for a, b in zip(said.shape[1:], found.shape[1:], strict=True))
    ]
    if faults:
        told = "; ".join(f"{fault.message}, but is {fault.expected}" for fault in faults)
        raise ModelRefused(f"the model does not make what it declares: {told}", faults=faults)


def _refuse_whole_numbers(declared: tuple[TensorSpec, ...], nodes: list[fx.Node]) -> None:
    """Raises `ModelRefused` where an output is made of truth values or integers."""
    for said, node in zip(declared, nodes, strict=True):
        kind = node.meta["dtype"]
        if not kind.is_floating_point:
            found = str(kind).removeprefix("torch.")
            raise ModelRefused(f"the output {said.name!r} is declared as {said.dtype}, but is computed as {found}")


def _text(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
