"""The canonical graph: what every model becomes, and what every method works on.

A `Network` holds a `torch.fx.GraphModule` whose parametrised layers are plain `torch.nn` modules (`call_module`),
whose other nodes are ATen calls from the closed list in `core/graph/operators` (`call_function`), and whose bare
constants are buffers (`get_attr`). Dimension 0 of every activation is the batch; nothing in the graph depends on its
size, so that a model uploaded with a static batch of 1 can be trained. `node.meta["shape"]` is the shape for one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from core.errors import Fault, ModelRefused, ModelTooLarge
from core.graph.limits import MAX_ACTIVATION_ELEMENTS
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
    ) -> None:
        self.module = module
        self.inputs = inputs
        self.outputs = outputs
        self.input_shapes = input_shapes
        self._without_softmax: fx.GraphModule | None = None
        propagate_shapes(module, input_shapes)
        _refuse_false_declarations(outputs, self.computed_outputs())
        self.origin = replace(origin, ends_in_softmax=any(map(final_softmax, self.output_nodes())))

    # --- running ------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Tensor) -> Any:
        """All outputs for a batch of any size: one tensor where there is one output, else a tuple."""
        return self.module(*inputs)

    def logits(self, *inputs: Tensor) -> Any:
        """As `__call__`, but in front of a final Softmax or LogSoftmax (the same where there is none)."""
        if not self.origin.ends_in_softmax:
            return self.module(*inputs)
        if self._without_softmax is None:
            self._without_softmax = without_final_softmax(self.module)
        return self._without_softmax(*inputs)

    def example_input(self, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers shaped like the first input, (batch, ...), the same for the same seed."""
        return self.example_inputs(batch, seed, dtype)[0]

    def example_inputs(self, batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """As `example_input`, for every input."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *shape, generator=generator, dtype=dtype) for shape in self.input_shapes)

    # --- as nn.Module -------------------------------------------------------------------------------------------

    def clone(self) -> Network:
        """A deep copy: own parameters, own buffers, the same mode."""
        twin = copy.copy(self)
        twin.module = copy.deepcopy(self.module)
        twin._without_softmax = None
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

    def known_outputs(self) -> tuple[TensorSpec, ...]:
        """As `computed_outputs`, but what follows an input's open height or width stays as it was declared."""
        if not any(isinstance(size, str) for spec in self.inputs for size in spec.shape[1:]):
            return self.computed_outputs()
        larger = tuple(
            tuple(
                size if isinstance(declared, int) else 2 * size
                for declared, size in zip(spec.shape[1:], shape, strict=True)
            )
            for spec, shape in zip(self.inputs, self.input_shapes, strict=True)
        )
        try:
            others = run_shapes(self.module, larger, batch=1)
        except ModelRefused:  # of one size only
            return self.outputs
        return tuple(
            replace(spec, shape=(*spec.shape[:1], *(
                here if here == there else declared
                for declared, here, there in zip(spec.shape[1:], found.shape[1:], others[node][1:], strict=True)
            )))
            for spec, found, node in zip(self.outputs, self.computed_outputs(), self.output_nodes(), strict=True)
        )  # fmt: skip


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


def _text(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


class _Shapes(fx.Interpreter):
    """Runs the graph on the meta device (no memory, no arithmetic) and notes the shape of every node."""

    def __init__(self, module: fx.GraphModule, batch: int) -> None:
        super().__init__(module)
        self.extra_traceback = False  # it would be written into our own errors
        self.batch = batch
        self.found: dict[fx.Node, tuple[int, ...]] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self.module.get_submodule(target)
        tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        phantoms = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        return torch.func.functional_call(layer, phantoms, args, kwargs)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return torch.empty_like(self.fetch_attr(target), device="meta")

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ModelRefused(f"node {n.name!r} does not fit the shapes that reach it: {reason}") from None
        if n.op != "output":
            shape = tuple(result.shape)
            if math.prod(shape) > MAX_ACTIVATION_ELEMENTS * self.batch:
                size = math.prod(shape) // self.batch
                raise ModelTooLarge(
                    f"node {n.name!r} makes {size} numbers; at most {MAX_ACTIVATION_ELEMENTS} are taken"
                )
            self.found[n] = shape
        return result


def propagate_shapes(module: fx.GraphModule, input_shapes: tuple[tuple[int, ...], ...]) -> None:
    """Writes `node.meta["shape"]` (batch 1) on every node, and proves on a batch of 2 that only dimension 0 follows it.

    Raises `ModelTooLarge` past the cap on activations, `ModelRefused` where shapes do not fit or the batch is not free.
    """
    one, two = (run_shapes(module, input_shapes, batch=batch) for batch in (1, 2))
    for node, shape in one.items():
        if node.op != "get_attr" and (shape[:1] != (1,) or two[node] != (2, *shape[1:])):
            raise ModelRefused(f"node {node.name!r} mixes the batch with other dimensions; its size cannot be freed")
        node.meta["shape"] = shape


def run_shapes(
    module: fx.GraphModule, input_shapes: tuple[tuple[int, ...], ...], *, batch: int
) -> dict[fx.Node, tuple[int, ...]]:
    """The shape of every node's value for a batch of inputs of `input_shapes` (each without the batch)."""
    training = module.training
    module.eval()  # a BatchNorm in training mode refuses one value per channel
    interpreter = _Shapes(module, batch)
    try:
        interpreter.run(*(torch.empty(batch, *shape, device="meta") for shape in input_shapes))
    finally:
        module.train(training)
    return interpreter.found
