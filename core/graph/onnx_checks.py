"""Everything that is checked on an uploaded ONNX model before any of it is allocated, folded or run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NoReturn

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from core.errors import Fault, ModelRefused, ModelTooLarge, ModelUnreadable, OperatorUnknown
from core.graph.limits import MAX_FILE_BYTES, MAX_NODES, MAX_RANK, MAX_TENSOR_ELEMENTS
from core.graph.onnx_reading import HOME, described, pointer

OLDEST_OPSET = 9
NEWEST_OPSET = onnx.defs.onnx_opset_version()
MAX_ATTRIBUTE_NUMBERS = 100_000
MAX_FAULTS = 100
"""That are told of one model."""

ITEM_BYTES: dict[int, int] = {
    TensorProto.FLOAT: 4, TensorProto.DOUBLE: 8, TensorProto.INT64: 8, TensorProto.INT32: 4, TensorProto.INT16: 2,
    TensorProto.INT8: 1, TensorProto.UINT8: 1, TensorProto.UINT16: 2, TensorProto.UINT32: 4, TensorProto.UINT64: 8,
    TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2, TensorProto.BOOL: 1,
}  # fmt: skip
_MAGIC = (
    (b"PK", "a zip archive (such as a .pt, .pth or .pt2 file)"),
    (b"\x80", "a pickle"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x89HDF", "an HDF5 file (such as Keras writes)"),
)
RIGHT = "an ONNX model, as torch.onnx.export writes it"


def parse(data: bytes) -> ModelProto:
    """The bytes as a model with a graph. Raises `ModelUnreadable`, `ModelTooLarge`."""
    if not data:
        raise ModelUnreadable(f"the file is empty; it should hold {RIGHT}")
    if len(data) > MAX_FILE_BYTES:
        raise ModelTooLarge(f"the file has {len(data)} bytes; at most {MAX_FILE_BYTES} are taken")
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            raise ModelUnreadable(f"the file is {kind}; it should hold {RIGHT}")
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelUnreadable(f"the file is truncated, damaged or no ONNX model; it should hold {RIGHT}") from None
    if model.ir_version < 3 or not model.opset_import or not model.graph.node or not model.graph.output:
        raise ModelUnreadable(f"the file has no ONNX graph with nodes and outputs in it; it should hold {RIGHT}")
    return model


def check(model: ModelProto, operators: Collection[str], external: Collection[str] = ()) -> int:
    """Refuses what is not taken, by node name. Returns the opset. `operators` are those that are known, `external`
    initialisers whose data were read from the files beside the model.

    Raises `ModelTooLarge` past a cap; `OperatorUnknown` with all nodes of custom domains, control flow and, where an
    output depends on them, unknown operators; `ModelRefused` for data in other files, names used twice, nodes out of
    order or in a cycle.
    """
    opset = _opset(model)
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        raise ModelTooLarge(f"the graph has {len(graph.node)} nodes; at most {MAX_NODES} are taken")
    _check_text(graph)
    for tensor in graph.initializer:
        if tensor.name in external:
            check_size(tensor, f"the initialiser {tensor.name!r}")
        else:
            check_tensor(tensor, f"the initialiser {tensor.name!r}")
    if graph.sparse_initializer:
        raise ModelRefused("the graph has sparse initialisers; only dense ones are taken")
    reached = {name for node in needed(model) for name in node.output}
    unknown: list[tuple[NodeProto, str | None]] = []
    for node in graph.node:
        what = _check_node(node)
        if what is not None or (node.op_type not in operators and reached.intersection(node.output)):
            unknown.append((node, what))
    if unknown:
        _refuse(unknown, operators)
    _check_names(model)
    return opset


LIGHT_ELEMENTS = 256


def check_by_onnx(model: ModelProto) -> None:
    """`onnx.checker`'s word, asked after our own checks have bounded the model. Raises `ModelRefused`.

    Large weights are shown to it as inputs: it would copy them twice, and open the files that external ones lie in.
    """
    try:
        onnx.checker.check_model(_weights_as_inputs(model))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise ModelRefused(f"onnx.checker refuses the model: {reason[0] if reason else 'no reason given'}") from None


def _weights_as_inputs(model: ModelProto) -> ModelProto:
    light = without_weights(model)
    given = {item.name for item in light.graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= LIGHT_ELEMENTS and tensor.data_location != TensorProto.EXTERNAL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in given:
            dims = list(tensor.dims)
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, dims))
    return light


def without_weights(model: ModelProto) -> ModelProto:
    """A copy of all but the initialisers, whose bytes are not touched."""
    light, graph = ModelProto(), GraphProto()
    for source, copied, left_out in ((model, light, "graph"), (model.graph, graph, "initializer")):
        for field, value in source.ListFields():
            if field.name == left_out:
                continue
            if isinstance(value, str | bytes | int | float):
                setattr(copied, field.name, value)
            elif hasattr(value, "extend"):
                getattr(copied, field.name).extend(value)
            else:
                getattr(copied, field.name).CopyFrom(value)
    light.graph.CopyFrom(graph)
    return light


def check_connected(model: ModelProto) -> None:
    """Refuses what is not one piece: an output that depends on no input, an input that no output depends on, and nodes
    that compute with an input and lead to no output. What is left over of constants and shapes is let be. Raises
    `ModelRefused`."""
    used = needed(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {item.name for item in model.graph.input} - weights
    kept = {name for node in used for name in node.output}
    follows = set(inputs)
    dead = None
    for node in model.graph.node:
        if node.op_type not in ("Shape", "Size") and follows.intersection(node.input):
            follows.update(node.output)
            if dead is None and not kept.intersection(node.output):
                dead = node
    for item in model.graph.output:
        if item.name not in follows:
            raise ModelRefused(f"the output {item.name!r} is a constant: it does not depend on any input")
    unread = inputs - {name for node in used for name in node.input} - {item.name for item in model.graph.output}
    if unread:
        raise ModelRefused(f"no output depends on the input {min(unread)!r}")
    if dead is not None:
        raise ModelRefused(f"operator {dead.op_type} at node {described(dead)} leads to no output")


def check_tensor(tensor: TensorProto, what: str) -> None:
    """Rank, elements, place and length of the data of one weight, before it is turned into an array."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise ModelRefused(
            f"{what} keeps its data in another file; upload a zip of the model and that file, or save the model as one "
            "file (external_data=False)"
        )
    elements = check_size(tensor, what)
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != elements * ITEM_BYTES[tensor.data_type]:
            raise ModelRefused(f"{what} has {len(tensor.raw_data)} bytes for {elements} elements")
    else:
        fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        if sum(len(field) for field in fields) != elements:
            raise ModelRefused(f"{what} does not hold the {elements} elements that its shape says")


def check_size(tensor: TensorProto, what: str) -> int:
    """Rank, elements and type of one weight. Returns the number of elements."""
    if len(tensor.dims) > MAX_RANK:
        raise ModelTooLarge(f"{what} has {len(tensor.dims)} dimensions; at most {MAX_RANK} are taken")
    if any(size < 0 for size in tensor.dims):
        raise ModelRefused(f"{what} has a negative dimension")
    elements: int = math.prod(tensor.dims)
    if elements > MAX_TENSOR_ELEMENTS:
        raise ModelTooLarge(f"{what} has {elements} elements; at most {MAX_TENSOR_ELEMENTS} are taken")
    if tensor.data_type not in ITEM_BYTES:
        name = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in TensorProto.DataType.values() else "?"
        raise ModelRefused(f"{what} is of type {name}; weights are float32")
    return elements


def _opset(model: ModelProto) -> int:
    opsets = {item.domain or "ai.onnx": item.version for item in model.opset_import}
    opset = int(opsets.get("ai.onnx", 0))
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ModelRefused(f"the model is of opset {opset}; {OLDEST_OPSET} to {NEWEST_OPSET} are taken")
    return opset


def _check_text(graph: GraphProto) -> None:
    """protobuf hands out a name that is not UTF-8 as bytes, which nothing behind this expects."""
    for node in graph.node:
        names = (
            node.op_type,
            node.domain,
            node.name,
            *node.input,
            *node.output,
            *(item.name for item in node.attribute),
        )
        if not all(isinstance(name, str) for name in names):
            raise ModelUnreadable(f"a name at node {node.name!r} is no UTF-8 text")
    tensors = (*graph.initializer, *graph.input, *graph.output, *graph.value_info)
    dimensions = (dim.dim_param for item in (*graph.input, *graph.output) for dim in item.type.tensor_type.shape.dim)
    for name in (*(item.name for item in tensors), *dimensions):
        if not isinstance(name, str):
            raise ModelUnreadable(f"the name {name!r} is no UTF-8 text")


def _check_node(node: NodeProto) -> str | None:
    """What is not on the list at this node, or None. Raises `ModelTooLarge`, `ModelRefused`."""
    if node.domain not in ("", "ai.onnx"):
        return f"is of the domain {node.domain!r}"
    where = f"operator {node.op_type} at node {described(node)}"
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            return "is control flow"
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors or attribute.ref_attr_name:
            return f"has the attribute {attribute.name!r}"
        if len(attribute.ints) + len(attribute.floats) > MAX_ATTRIBUTE_NUMBERS:
            raise ModelTooLarge(f"{where} has an attribute of more than {MAX_ATTRIBUTE_NUMBERS} numbers")
        for tensor in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]:
            check_tensor(tensor, f"{where}: its attribute {attribute.name!r}")
    return None


def _refuse(unknown: Sequence[tuple[NodeProto, str | None]], operators: Collection[str]) -> NoReturn:
    """Raises `OperatorUnknown` with all of them, the faults of the first `MAX_FAULTS`. What is wrong is None where the
    operator is not known."""
    first_of_name = next((index for index, (_, what) in enumerate(unknown) if what is None), None)
    faults = [
        Fault(
            pointer(node),
            f"unknown operator {node.op_type}" if what is None else f"operator {node.op_type} {what}",
            "operators of ONNX itself, without graphs inside" if what is not None
            else f"one of {', '.join(sorted(operators))}" if index == first_of_name
            else "one of the same",
        )
        for index, (node, what) in enumerate(unknown[:MAX_FAULTS])
    ]  # fmt: skip
    node, what = unknown[0]
    others = sorted({other.op_type for other, _ in unknown[1:]})
    more = f"; nor are {len(unknown) - 1} more nodes ({', '.join(others)})" if others else ""
    reason = f"{what}, which is" if what is not None else "is"
    raise OperatorUnknown(
        f"operator {node.op_type} at node {described(node)} {reason} not on the list in {HOME}{more}", faults=faults
    )


def needed(model: ModelProto) -> list[NodeProto]:
    """The nodes that an output depends on, in order."""
    wanted = {item.name for item in model.graph.output}
    found = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            found.append(node)
            wanted.update(node.input)
    return found[::-1]


def _made(model: ModelProto) -> Iterator[tuple[str, str]]:
    """(name, by what) of every value that the graph starts with or a node makes."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for item in model.graph.input:
        if item.name not in weights:
            yield item.name, "an input"
    for tensor in model.graph.initializer:
        yield tensor.name, "an initialiser"
    for node in model.graph.node:
        for name in node.output:
            if name:
                yield name, f"node {described(node)}"


def _check_names(model: ModelProto) -> None:
    """Every name is made once, before it is read."""
    makers: dict[str, str] = {}
    for name, maker in _made(model):
        if name in makers:
            raise ModelRefused(f"the name {name!r} is used twice: by {makers[name]} and by {maker}")
        makers[name] = maker
    called = Counter(node.name for node in model.graph.node if node.name)
    twice = [name for name, times in called.items() if times > 1]
    if twice:  # runtimes refuse them
        raise ModelRefused(f"{called[twice[0]]} nodes are called {twice[0]!r}")
    known = {name for name, maker in makers.items() if not maker.startswith("node ")}
    for node in model.graph.node:
        for name in node.input:
            if name and name not in known:
                late = f"{makers.get(name)} makes later: the graph has a cycle, or its nodes are out of order"
                reason = late if name in makers else "nothing makes"
                raise ModelRefused(f"operator {node.op_type} at node {described(node)} reads {name!r}, which {reason}")
        known.update(name for name in node.output if name)
    outputs = Counter(item.name for item in model.graph.output)
    for name, times in outputs.items():
        if name not in known:
            raise ModelRefused(f"nothing makes the output {name!r}")
        if times > 1:
            raise ModelRefused(f"the output {name!r} is there twice")
