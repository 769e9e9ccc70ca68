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

from core.errors import Fault, ModelRefused, ModelTooLarge, ModelUnreadable, OperatorUnknown
from core.graph.architectures import from_weights
from core.graph.limits import MAX_FILE_BYTES, MAX_FOLDED_ELEMENTS, MAX_RANK, MAX_STATIC_BATCH
from core.graph.network import Network, Origin, TensorSpec
from core.graph.onnx_checks import check, check_by_onnx, check_tensor, parse
from core.graph.onnx_constants import FOLDERS, CannotFold, fold, shape_vector
from core.graph.onnx_reading import HOME, Reading, described
from core.graph.operators import READERS
from core.job import ModelInput, ModelOptions

EXAMPLE_SIZES = (
    32, 64, 128, 224, 256, 299, 28, 8, 16, 24, 48, 56, 96, 112, 144, 160, 192, 240, 288, 320, 384, 416, 448, 480, 512,
)  # fmt: skip
"""Tried in turn for dimensions behind the batch that an ONNX model leaves dynamic: the first that fits."""


def load(model: ModelInput) -> Network:
    """The uploaded model as a Network in eval mode. Raises subclasses of `ModelRefused`; never unpickles."""
    return IMPORTERS[model.format](model.path, model.options)


# --- ONNX ------------------------------------------------------------------------------------------------------------


def read_onnx(path: Path, options: ModelOptions | None = None) -> Network:
    """An ONNX file, opset 9 and up, float32. See `core/graph/operators` for what it may hold."""
    for name in ("architecture", "input_shape"):
        if options is not None and getattr(options, name) is not None:
            fault = Fault(f"/{name}", "an ONNX model says this itself", "nothing; it is for safetensors only")
            raise ModelRefused(f"{name} is not for ONNX models", faults=[fault])
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ModelTooLarge(f"the file has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are taken")
    model = parse(path.read_bytes())
    opset = check(model)
    _refuse_unknown(_needed(model))
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(item) for item in model.graph.input if item.name not in weights)
    outputs = tuple(_spec(item) for item in model.graph.output)
    static_batch = _static_batch(inputs)
    check_by_onnx(model)
    dynamic_space = any(isinstance(size, str) for spec in inputs for size in spec.shape[1:])
    errors: list[ModelRefused] = []
    for size in EXAMPLE_SIZES if dynamic_space else EXAMPLE_SIZES[:1]:
        shapes, others = (
            tuple(tuple(dim if isinstance(dim, int) else chosen for dim in spec.shape[1:]) for spec in inputs)
            for chosen in (size, 2 * size)
        )
        reading = Reading(opset, _uses(model), static_batch, dynamic_space)
        try:
            for spec, shape, other in zip(inputs, shapes, others, strict=True):
                reading.input(spec.name, shape, other)
            module = _read_graph(reading, model)
            return Network(module, inputs, outputs, Origin("onnx", opset, _template(model), static_batch), shapes)
        except ModelRefused as error:
            errors.append(error)
            if len(errors) > 1 and error.message == errors[-2].message:
                break  # whatever the size
    raise errors[0]


def _read_graph(reading: Reading, model: ModelProto) -> fx.GraphModule:
    for tensor in model.graph.initializer:
        reading.constants[tensor.name] = onnx.numpy_helper.to_array(tensor)
    folded = 0
    for node in _needed(model):
        folded += _read_node(reading, node)
        if folded > MAX_FOLDED_ELEMENTS:
            raise ModelTooLarge(
                f"folding constants makes more than {MAX_FOLDED_ELEMENTS} numbers, at node {described(node)}"
            )
    results = []
    for item in model.graph.output:
        if item.name not in reading.activations or reading.activations[item.name].op == "get_attr":
            raise ModelRefused(f"the output {item.name!r} is a constant: it does not depend on any input")
        results.append(reading.activations[item.name])
    reading.graph.output(tuple(results) if len(results) > 1 else results[0])
    return fx.GraphModule(reading.root, reading.graph).eval()


def _read_node(reading: Reading, node: NodeProto) -> int:
    """Adds what `node` computes. Returns the elements that folding it made."""
    constant = all(not name or name in reading.constants for name in node.input)
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
        else:
            vector = shape_vector(reading.activations[name].meta["shape"], reading.dynamic_space)
        reading.constants[node.output[0]] = vector[bounds["start"] : bounds["end"]]
        return 0
    if constant and node.op_type in FOLDERS:
        try:
            value = fold(node, [reading.constants[name] if name else None for name in node.input])
        except CannotFold:
            if node.op_type not in READERS:
                raise reading.unknown(node, "constants that cannot be folded") from None
        else:
            reading.constants[node.output[0]] = value
            return int(value.size) if node.op_type != "Identity" else 0
    if node.op_type not in READERS:
        raise reading.unknown(node, "an activation: it is known on constants only")
    try:
        reading.activations[node.output[0]] = READERS[node.op_type](reading, node)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:  # ATen's word on shapes that do not fit
        raise reading.refused(node, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    return 0


def _refuse_unknown(nodes: list[NodeProto]) -> None:
    """Raises `OperatorUnknown` with every node whose operator is not on the list."""
    known = sorted({*READERS, *FOLDERS, "Constant", "Shape"})
    unknown = [node for node in nodes if node.op_type not in known]
    if not unknown:
        return
    faults = [
        Fault(
            "/graph/node/" + (node.name or node.output[0]).replace("~", "~0").replace("/", "~1"),
            f"unknown operator {node.op_type}",
            f"one of {', '.join(known)}",
        )
        for node in unknown
    ]
    first = f"operator {unknown[0].op_type} at node {described(unknown[0])} is not on the list in {HOME}"
    others = sorted({node.op_type for node in unknown[1:]})
    more = f"; nor are {len(unknown) - 1} more nodes ({', '.join(others)})" if others else ""
    raise OperatorUnknown(first + more, faults=faults)


def _needed(model: ModelProto) -> list[NodeProto]:
    """The nodes that an output depends on, in order."""
    wanted = {item.name for item in model.graph.output}
    found = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            found.append(node)
            wanted.update(node.input)
    return found[::-1]


def _uses(model: ModelProto) -> Counter[str]:
    """How often each value is read, by nodes that matter and by the outputs."""
    reads = Counter(name for node in _needed(model) for name in node.input)
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
        if dim.HasField("dim_value"):
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
    template = ModelProto()
    template.CopyFrom(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [item for item in template.graph.input if item.name not in weights]
    for field in ("node", "initializer", "value_info", "input", "quantization_annotation"):
        template.graph.ClearField(field)
    template.graph.input.extend(inputs)
    template.ClearField("functions")
    template.ClearField("training_info")
    return bytes(template.SerializeToString(deterministic=True))


# --- safetensors -----------------------------------------------------------------------------------------------------


def read_safetensors(path: Path, options: ModelOptions | None = None) -> Network:
    """Weights of an architecture in `core/graph/architectures.py`. `options` must name it and the input's shape."""
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
    network = from_weights(architecture, weights, (shape[1], shape[2]))
    if network.input_shapes[0][0] != shape[0]:
        fault = Fault("/input_shape/0", f"the weights take {network.input_shapes[0][0]} channels, not {shape[0]}")
        raise ModelRefused("input_shape does not fit the weights", faults=[fault])
    return network


IMPORTERS: Mapping[str, Callable[[Path, ModelOptions | None], Network]] = {
    "onnx": read_onnx,
    "safetensors": read_safetensors,
}
