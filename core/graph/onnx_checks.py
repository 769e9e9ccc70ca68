"""Everything that is checked on an uploaded ONNX model before any of it is allocated, folded or run."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto

from core.errors import ModelRefused, ModelTooLarge, ModelUnreadable, OperatorUnknown
from core.graph.limits import MAX_FILE_BYTES, MAX_NODES, MAX_RANK, MAX_TENSOR_ELEMENTS
from core.graph.onnx_reading import HOME, described

OLDEST_OPSET = 9
NEWEST_OPSET = onnx.defs.onnx_opset_version()
MAX_ATTRIBUTE_NUMBERS = 100_000

_ITEM_BYTES: dict[int, int] = {
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


def check(model: ModelProto) -> int:
    """Refuses what is not taken, by node name. Returns the opset.

    Raises `ModelTooLarge` past a cap; `OperatorUnknown` for custom domains and control flow; `ModelRefused` for data in
    other files, names used twice, nodes out of order or in a cycle.
    """
    opset = _opset(model)
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        raise ModelTooLarge(f"the graph has {len(graph.node)} nodes; at most {MAX_NODES} are taken")
    for tensor in graph.initializer:
        check_tensor(tensor, f"the initialiser {tensor.name!r}")
    if graph.sparse_initializer:
        raise ModelRefused("the graph has sparse initialisers; only dense ones are taken")
    for node in graph.node:
        _check_node(node)
    _check_names(model)
    return opset


def check_by_onnx(model: ModelProto) -> None:
    """`onnx.checker`'s word, asked after our own checks have bounded the model. Raises `ModelRefused`."""
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise ModelRefused(f"onnx.checker refuses the model: {reason[0] if reason else 'no reason given'}") from None


def check_tensor(tensor: TensorProto, what: str) -> None:
    """Rank, elements, place and length of the data of one weight, before it is turned into an array."""
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise ModelRefused(f"{what} keeps its data in another file; save the model as one file (external_data=False)")
    if len(tensor.dims) > MAX_RANK:
        raise ModelTooLarge(f"{what} has {len(tensor.dims)} dimensions; at most {MAX_RANK} are taken")
    if any(size < 0 for size in tensor.dims):
        raise ModelRefused(f"{what} has a negative dimension")
    elements = math.prod(tensor.dims)
    if elements > MAX_TENSOR_ELEMENTS:
        raise ModelTooLarge(f"{what} has {elements} elements; at most {MAX_TENSOR_ELEMENTS} are taken")
    if tensor.data_type not in _ITEM_BYTES:
        name = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in TensorProto.DataType.values() else "?"
        raise ModelRefused(f"{what} is of type {name}; weights are float32")
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != elements * _ITEM_BYTES[tensor.data_type]:
            raise ModelRefused(f"{what} has {len(tensor.raw_data)} bytes for {elements} elements")
    else:
        fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        if sum(len(field) for field in fields) != elements:
            raise ModelRefused(f"{what} does not hold the {elements} elements that its shape says")


def _opset(model: ModelProto) -> int:
    opsets = {item.domain or "ai.onnx": item.version for item in model.opset_import}
    opset = int(opsets.get("ai.onnx", 0))
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ModelRefused(f"the model is of opset {opset}; {OLDEST_OPSET} to {NEWEST_OPSET} are taken")
    return opset


def _check_node(node: NodeProto) -> None:
    where = f"operator {node.op_type} at node {described(node)}"
    if node.domain not in ("", "ai.onnx"):
        raise OperatorUnknown(f"{where} is of the domain {node.domain!r}, which is not on the list in {HOME}")
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise OperatorUnknown(f"{where} is control flow, which is not on the list in {HOME}")
        if attribute.HasField("sparse_tensor") or attribute.sparse_tensors or attribute.ref_attr_name:
            raise OperatorUnknown(f"{where} has the attribute {attribute.name!r}, which is not on the list in {HOME}")
        if len(attribute.ints) + len(attribute.floats) > MAX_ATTRIBUTE_NUMBERS:
            raise ModelTooLarge(f"{where} has an attribute of more than {MAX_ATTRIBUTE_NUMBERS} numbers")
        for tensor in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]:
            check_tensor(tensor, f"{where}: its attribute {attribute.name!r}")


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
    known = {name for name, maker in makers.items() if not maker.startswith("node ")}
    for node in model.graph.node:
        for name in node.input:
            if name and name not in known:
                late = f"{makers.get(name)} makes later: the graph has a cycle, or its nodes are out of order"
                reason = late if name in makers else "nothing makes"
                raise ModelRefused(f"operator {node.op_type} at node {described(node)} reads {name!r}, which {reason}")
        known.update(name for name in node.output if name)
    for item in model.graph.output:
        if item.name not in known:
            raise ModelRefused(f"nothing makes the output {item.name!r}")
