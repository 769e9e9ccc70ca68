"""The ways in. None of them unpickles; each raises a `ModelRefused` that says what is wrong and what would be right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, ValueInfoProto
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import fx

from core.errors import Fault, ModelRefused, ModelTooLarge, ModelUnreadable
from core.graph.architectures import from_weights
from core.graph.external_data import Array, read_upload
from core.graph.limits import MAX_FOLDED_ELEMENTS, MAX_RANK, MAX_STATIC_BATCH
from core.graph.network import Network, Origin, TensorSpec, other_shapes
from core.graph.onnx_checks import check, check_by_onnx, check_connected, check_tensor, needed, without_weights
from core.graph.onnx_constants import FOLDERS, CannotFold, fold_all, plain, shape_vector, work
from core.graph.onnx_meeting import met
from core.graph.onnx_reading import Reading, described
from core.graph.onnx_spreads import Spread, fold_spread
from core.graph.onnx_turned import LIFTED, lifted
from core.graph.operators import READERS
from core.graph.operators.cast import as_cast
from core.graph.operators.reshape_reading import sizes_of
from core.graph.pt2_reading import read_pt2
from core.graph.raising import raise_norms
from core.graph.strided import replace_as_strided
from core.graph.timm_names import from_timm_weights
from core.job import TIMM, ModelInput, ModelOptions

EXAMPLE_SIZES = (
    32, 64, 128, 224, 256, 299, 28, 8, 16, 24, 48, 56, 96, 112, 144, 160, 192, 240, 288, 320, 384, 416, 448, 480, 512,
)  # fmt: skip
"""Tried in turn for dimensions behind the batch that an ONNX model leaves dynamic: the first that fits."""

OPERATORS = frozenset({*READERS, *FOLDERS, "Constant", "Shape"})
"""That are known: all others are refused by name."""

_WHOLE_TYPES = tuple(map(np.dtype, (np.float32, np.float64, np.int64, np.int32, np.bool_, object)))


def load(model: ModelInput) -> Network:
    """The uploaded model as a Network in eval mode. Raises subclasses of `ModelRefused`; never unpickles."""
    return IMPORTERS[model.format](model.path, model.options)


# --- ONNX ------------------------------------------------------------------------------------------------------------


def read_onnx(path: Path, options: ModelOptions | None = None) -> Network:
    """An ONNX file, opset 9 and up, float32. See `core/graph/operators` for what it may hold."""
    _refuse_options(options, "an ONNX model")
    model, external = read_upload(path)
    opset = check(model, OPERATORS, external)
    check_connected(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(item) for item in model.graph.input if item.name not in weights)
    outputs = tuple(_spec(item) for item in model.graph.output)
    static_batch = _static_batch(inputs)
    check_by_onnx(model)
    replace_as_strided(model, static_batch)
    dynamic_space = any(isinstance(size, str) for spec in inputs for size in spec.shape[1:])
    errors: list[ModelRefused] = []
    for size in EXAMPLE_SIZES if dynamic_space else EXAMPLE_SIZES[:1]:
        shapes = tuple(tuple(dim if isinstance(dim, int) else size for dim in spec.shape[1:]) for spec in inputs)
        others = other_shapes(inputs, shapes)
        reading = Reading(opset, _uses(model), static_batch, dynamic_space)
        try:
            for spec, shape, other in zip(inputs, shapes, others, strict=True):
                reading.input(spec.name, shape, other)
            module = _read_graph(reading, model, external)
            return Network(module, inputs, outputs, Origin("onnx", opset, _template(model), static_batch), shapes)
        except ModelRefused as error:
            errors.append(error)
            if len(errors) > 1 and error.message == errors[-2].message:
                break  # whatever the size
    raise errors[0]


def _read_graph(reading: Reading, model: ModelProto, external: Mapping[str, Array]) -> fx.GraphModule:
    for tensor in model.graph.initializer:
        given = external.get(tensor.name)
        reading.constants[tensor.name] = onnx.numpy_helper.to_array(tensor) if given is None else given
    folded = 0
    for node in needed(model):
        try:
            folded += _read_node(reading, node)
        except ModelTooLarge as error:
            raise ModelTooLarge(f"operator {node.op_type} at node {described(node)}: {error.message}") from None
        if folded > MAX_FOLDED_ELEMENTS:
            raise ModelTooLarge(
                f"folding constants makes more than {MAX_FOLDED_ELEMENTS} numbers, at node {described(node)}"
            )
    results = []
    for item in model.graph.output:
        if item.name in reading.turned:
            message = f"the batch is not dimension 0 of the output {item.name!r}"
            raise ModelRefused(message, faults=[Fault("/graph/output", message, "the batch in front of every output")])
        if item.name not in reading.activations or reading.activations[item.name].op == "get_attr":
            raise ModelRefused(f"the output {item.name!r} is a constant: it does not depend on any input")
        results.append(reading.activations[item.name])
    reading.graph.output(tuple(results) if len(results) > 1 else results[0])
    raise_norms(reading)
    return fx.GraphModule(reading.root, reading.graph).eval()


def _read_node(reading: Reading, node: NodeProto) -> int:
    """Adds what `node` computes. Returns the elements that folding it made."""
    for name in node.input:
        if name and not any(
            name in known for known in (reading.constants, reading.spreads, reading.activations, reading.turned)
        ):
            what = f"the input {name!r}, which is more than the first output of an operator that is read by that alone"
            raise reading.unknown(node, what)
    if node.op_type == "CastLike":  # a Cast, which may be of constants
        node = as_cast(reading, node)
    known = all(not name or name in reading.constants or name in reading.spreads for name in node.input)
    constant = known and not any(name in reading.spreads for name in node.input)
    tensors = [item.t for item in node.attribute if item.name == "value"]
    if node.op_type == "Constant" and tensors:
        check_tensor(tensors[0], f"the Constant {described(node)}")
        reading.constants[node.output[0]] = onnx.numpy_helper.to_array(tensors[0])
        return 0
    if node.op_type == "Shape":
        bounds = reading.attributes(node, start=0, end=None)
        name = node.input[0]
        if name in reading.constants:
            vector = np.array(reading.constants[name].shape, dtype=np.int64)
        elif name in reading.spreads:
            vector = np.array([*reading.spreads[name].sizes, None], dtype=object)[:-1]
        else:
            vector = shape_vector(sizes_of(reading, reading.moved(node, 0)))
        reading.constants[node.output[0]] = plain(vector[bounds["start"] : bounds["end"]])
        return 0
    if constant and node.op_type == "Cast":
        _refuse_small_weights(reading, node)
    if constant and node.op_type in FOLDERS:
        try:
            given = [reading.constants[name] if name else None for name in node.input]
            values = fold_all(node, given, reading.opset)
        except CannotFold:
            if (made := _fold_spread(reading, node)) is not None:
                return made
            if any(name and reading.constants[name].dtype == object for name in node.input):
                what = "open sizes of an input, computed with in a way that is not exact for all images"
                raise reading.unknown(node, what) from None
            if node.op_type not in READERS:
                raise reading.unknown(node, "constants that cannot be folded") from None
        else:
            reading.constants.update(zip(node.output, values, strict=False))
            return work(node, given, values)
    if known and not constant and (made := _fold_spread(reading, node)) is not None:
        return made
    if node.op_type not in READERS:
        raise reading.unknown(node, "an activation: it is known on constants only")
    if constant:  # as an activation it would have no batch in front
        raise reading.unknown(node, "constants only, which cannot be folded")
    try:
        reader = READERS[node.op_type]
        turned = node.op_type in LIFTED and any(name in reading.turned for name in node.input)
        found = lifted(reading, node, reader) if turned else reader(reading, met(reading, node))
        reading.bind(node.output[0], found)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:  # ATen's word on shapes that do not fit
        raise reading.refused(node, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    return 0


def _fold_spread(reading: Reading, node: NodeProto) -> int | None:
    """What a node makes of constants as long as open sizes. Returns the numbers made; None where it is not folded."""
    given = [reading.spreads.get(name, reading.constants.get(name)) if name else None for name in node.input]
    try:
        results = fold_spread(node, given, reading.opset)
    except CannotFold:
        return None
    for name, result in zip(node.output, results, strict=False):
        if isinstance(result, Spread):
            reading.spreads[name] = result
        else:
            reading.constants[name] = result
    return sum(result.work if isinstance(result, Spread) else result.size for result in results)


def _refuse_small_weights(reading: Reading, node: NodeProto) -> None:
    """Weights of fewer bits that the model itself casts: written as float32 the file would be larger, not smaller."""
    array = reading.constants[node.input[0]]
    if array.size > 1 and array.dtype not in _WHOLE_TYPES:
        raise reading.unknown(node, f"weights of type {array.dtype} ({node.input[0]!r}); only float32 is taken")


def _uses(model: ModelProto) -> Counter[str]:
    """How often each value is read, by nodes that matter and by the outputs."""
    reads = Counter(name for node in needed(model) for name in node.input)
    reads.update(item.name for item in model.graph.output)
    return reads


def _spec(item: ValueInfoProto) -> TensorSpec:
    kind = item.type.tensor_type
    if not item.type.HasField("tensor_type") or kind.elem_type != onnx.TensorProto.FLOAT:
        raise ModelRefused(f"{item.name!r} is not a float32 tensor; inputs and outputs are float32")
    if not kind.HasField("shape"):
        raise ModelRefused(f"{item.name!r} has no shape: its rank must be known")
    if not 1 <= len(kind.shape.dim) <= MAX_RANK:
        raise ModelRefused(f"{item.name!r} has {len(kind.shape.dim)} dimensions; 1 to {MAX_RANK}, the batch in front")
    sizes: list[int | str] = []
    for index, dim in enumerate(kind.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value != -1:  # Paddle's way to say that it is not known
            if not 1 <= dim.dim_value < 2**31:
                raise ModelTooLarge(f"{item.name!r} has a dimension of {dim.dim_value}; 1 to {2**31 - 1} are taken")
            sizes.append(dim.dim_value)
        else:
            sizes.append(dim.dim_param or ("batch" if index == 0 else f"dim_{index}"))
    return TensorSpec(item.name, "float32", tuple(sizes))


def _static_batch(inputs: tuple[TensorSpec, ...]) -> int | None:
    if not inputs:
        raise ModelRefused("the model has no input")
    if any(len(spec.shape) < 2 for spec in inputs):
        raise ModelRefused("an input has no dimension behind the batch")
    batches = {spec.shape[0] if isinstance(spec.shape[0], int) else None for spec in inputs}
    if len(batches) > 1:
        raise ModelRefused("the inputs disagree about dimension 0, the batch")
    batch = batches.pop()
    if batch is not None and batch > MAX_STATIC_BATCH:
        raise ModelTooLarge(f"a static batch of {batch}; at most {MAX_STATIC_BATCH} is taken")
    return batch


def _template(model: ModelProto) -> bytes:
    """The model without nodes, weights and intermediate shapes."""
    template = without_weights(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [item for item in template.graph.input if item.name not in weights]
    for field in ("node", "value_info", "input", "quantization_annotation"):
        template.graph.ClearField(field)
    template.graph.input.extend(inputs)
    template.ClearField("functions")
    template.ClearField("training_info")
    return bytes(template.SerializeToString(deterministic=True))


# --- .pt2 ------------------------------------------------------------------------------------------------------------


def read_exported(path: Path, options: ModelOptions | None = None) -> Network:
    """What `torch.export.save` writes, float32. See `core/graph/aten.py` for what it may hold."""
    _refuse_options(options, "a .pt2 archive")
    return read_pt2(path)


def _refuse_options(options: ModelOptions | None, what: str) -> None:
    for name in ("architecture", "input_shape"):
        if options is not None and getattr(options, name) is not None:
            fault = Fault(f"/{name}", f"{what} says this itself", "nothing; it is for safetensors only")
            raise ModelRefused(f"{name} is not for {what.partition(' ')[2]}s", faults=[fault])


# --- safetensors -----------------------------------------------------------------------------------------------------


def read_safetensors(path: Path, options: ModelOptions | None = None) -> Network:
    """Weights of an architecture in `core/graph/architectures`, or of timm's. `options` must name it and the input's
    shape."""
    architecture = options.architecture if options is not None else None
    shape = options.input_shape if options is not None else None
    wanted = {"architecture": (architecture, "resnet20"), "input_shape": (shape, "3,32,32")}
    faults = [
        Fault(f"/{name}", "a safetensors file holds weights only: this must be given", f"for example {example}")
        for name, (value, example) in wanted.items()
        if value is None
    ]
    if architecture is None or shape is None:
        raise ModelRefused("a safetensors model needs its architecture and input_shape", faults=faults)
    if path.stat().st_size == 0:
        raise ModelUnreadable("the file is empty; it should hold safetensors weights")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, OverflowError, MemoryError):
        raise ModelUnreadable("the file is truncated, damaged or no safetensors file") from None
    make = from_timm_weights if architecture.startswith(TIMM) else from_weights
    network = make(architecture, weights, (shape[1], shape[2]))
    if network.input_shapes[0][0] != shape[0]:
        fault = Fault("/input_shape/0", f"the weights take {network.input_shapes[0][0]} channels, not {shape[0]}")
        raise ModelRefused("input_shape does not fit the weights", faults=[fault])
    return network


IMPORTERS: Mapping[str, Callable[[Path, ModelOptions | None], Network]] = {
    "onnx": read_onnx,
    "pt2": read_exported,
    "safetensors": read_safetensors,
}
