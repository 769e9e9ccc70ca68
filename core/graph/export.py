"""The way out: ONNX that takes the place of the upload, and the proof that ONNX Runtime computes what torch does.

Drop-in: the same opset, names, types, static and dynamic dimensions, producer, metadata and doc strings as the upload.
torch's own exporter cannot do that (asked for opset 9 to 17 it writes 18), so each operator has its own writer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor

from core.errors import Fault, ParityFailed, RecipeInvalid
from core.graph.exactness import relative_error
from core.graph.external_data import save, saved_bytes
from core.graph.network import Network, TensorSpec
from core.graph.onnx_checks import NEWEST_OPSET, OLDEST_OPSET
from core.graph.onnx_writing import Writing
from core.graph.operators import form_of
from core.graph.tensors import to_numpy
from core.report import Check

PARITY_BOUND = 1e-5
PARITY_FACTOR = 10


def write_onnx(
    network: Network, path: Path, *, opset: int | None = None, external_data_bytes: int | None = None
) -> None:
    """Writes `network` to `path`; `opset` None keeps the upload's. Equal networks make files of equal bytes.

    Weights of more than `external_data_bytes` in all go to a file beside it, called `path` and ".data"; None: where
    they are more than one file can hold (2 GiB).

    Raises `RecipeInvalid` for an opset out of range or one that cannot hold an operator, which it names.
    """
    save(to_onnx(network, opset=opset), path, above_bytes=external_data_bytes)


def onnx_bytes(network: Network, name: str, *, opset: int | None = None, external_data_bytes: int | None = None) -> int:
    """How many bytes `write_onnx` would write to a path of that `name`, weights beside it included."""
    return saved_bytes(to_onnx(network, opset=opset), name, above_bytes=external_data_bytes)


def to_onnx(network: Network, *, opset: int | None = None) -> ModelProto:
    """As `write_onnx`, in memory and unchecked."""
    opset = network.origin.opset if opset is None else opset
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        message = f"opset {opset} cannot be written"
        raise RecipeInvalid(message, faults=[Fault("/export/opset", message, f"{OLDEST_OPSET} to {NEWEST_OPSET}")])
    model = _template(network, opset)
    reserved = {item.name for item in (*model.graph.input, *model.graph.output)}
    writing = Writing(network.module, opset, reserved, network.second_shapes())
    inputs = network.module.graph.find_nodes(op="placeholder")
    for node, spec in zip(inputs, network.inputs, strict=True):
        writing.bind(node, spec.name)
    results = list(zip(network.output_nodes(), network.outputs, strict=True))
    for node, spec in results:
        if not writing.bound(node) and node.op != "get_attr":
            writing.bind(node, spec.name)
    for node in network.module.graph.nodes:
        if node.op in ("call_module", "call_function"):
            form = form_of(network.module, node)
            assert form is not None, f"{node.target} came into the graph without being on the list"
            form.write(writing, node)
    for node, spec in results:
        if writing.value(node) != spec.name:  # an input, or a value that is an output under another name already
            writing.nodes.append(helper.make_node("Identity", [writing.value(node)], [spec.name], name=spec.name))
    model.graph.node.extend(writing.nodes)
    model.graph.initializer.extend(writing.initializers)
    return model


def _template(network: Network, opset: int) -> ModelProto:
    """The model without nodes and weights: the upload's, or one of our own for a network that was not ONNX."""
    if network.origin.template is None:
        inputs = [helper.make_tensor_value_info(*_described(spec)) for spec in network.inputs]
        outputs = [helper.make_tensor_value_info(*_described(spec)) for spec in network.outputs]
        model = helper.make_model(helper.make_graph([], "network", inputs, outputs), producer_name="billhook")
        model.ir_version = _ir_version(opset)
    else:
        model = ModelProto()
        model.ParseFromString(network.origin.template)
        newest = _ir_version(opset)
        # before version 4 weights had to be inputs too
        model.ir_version = newest if opset != network.origin.opset else max(model.ir_version, 4)
    model.ClearField("opset_import")  # domains that no node uses are left out
    model.opset_import.append(helper.make_opsetid("", opset))
    return model


def _described(spec: TensorSpec) -> tuple[str, int, tuple[int | str, ...]]:
    return spec.name, TensorProto.FLOAT, spec.shape


def _ir_version(opset: int) -> int:
    """The oldest file format that goes with an opset: runtimes refuse one that is newer than they are."""
    return int(helper.find_min_ir_version_for([helper.make_opsetid("", opset)], ignore_unknown=True))


# --- parity ----------------------------------------------------------------------------------------------------------


def check_parity(network: Network, path: Path, *inputs: Tensor) -> Check:
    """Runs the file in ONNX Runtime (CPU) and compares with `network` in torch, on real `inputs`, (batch, ...).

    The error is max |a - b| / max |a| of the worst output. The bound is the larger of 1e-5 and ten times the network's
    own error from float32 to float64. Raises `ParityFailed` past it.
    """
    expected = _outputs(network, inputs, torch.float32)
    exact = _outputs(network, inputs, torch.float64)
    own = relative_error(exact, tuple(item.to(torch.float64) for item in expected))
    bound = max(PARITY_BOUND, PARITY_FACTOR * own) if np.isfinite(own) else PARITY_BOUND
    found = run_onnx(path, network.origin.static_batch, *inputs)
    error = relative_error(expected, found)
    check = Check(name="parity", error=error, bound=bound, images=int(inputs[0].shape[0]), passed=bool(error <= bound))
    if not check.passed:
        raise ParityFailed(f"ONNX Runtime differs from torch by {error:.3g}; at most {bound:.3g} is allowed")
    return check


def run_onnx(
    path: Path, static_batch: int | None, *inputs: Tensor, processor_layouts: bool = True
) -> tuple[Tensor, ...]:
    """All outputs of the file in ONNX Runtime on the CPU. A static batch is fed in pieces, the last one filled up.

    `processor_layouts`: with the memory layouts that the runtime chooses for this processor, as it is deployed; without
    them it rounds less.

    Raises `ParityFailed` where it cannot open or run the file, such as one of an opset that is newer than it is.
    """
    import onnxruntime  # costs half a second: only where a file is run

    options = onnxruntime.SessionOptions()  # type: ignore[attr-defined]
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    if not processor_layouts:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # type: ignore[attr-defined]
    try:
        # by path: its weights may lie in a file beside it
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
    except Exception as error:  # the runtime's own classes have no root but this
        raise _cannot("open", path, error) from None
    names = [item.name for item in session.get_inputs()]
    total = int(inputs[0].shape[0])
    step = static_batch or total
    pieces: list[list[Any]] = []
    for start in range(0, total, step):
        parts = [to_numpy(item[start : start + step]) for item in inputs]
        count = len(parts[0])
        if count < step:
            parts = [np.concatenate([part, np.zeros((step - count, *part.shape[1:]), part.dtype)]) for part in parts]
        try:
            results = session.run(None, dict(zip(names, parts, strict=True)))
        except Exception as error:
            raise _cannot("run", path, error) from None
        pieces.append([np.asarray(result)[:count] for result in results])
    return tuple(torch.from_numpy(np.concatenate(results)) for results in zip(*pieces, strict=True))


def _cannot(do: str, path: Path, error: Exception) -> ParityFailed:
    reason = " ".join(str(error).replace(str(path), path.name).split())[:500]
    return ParityFailed(f"ONNX Runtime cannot {do} the model: {reason}")


def _outputs(network: Network, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """On the CPU, wherever the network is: a GPU's convolutions may round to fewer digits than float32 has."""
    runner = network.clone().to("cpu").to(dtype).eval()
    with torch.no_grad():
        results = runner(*(item.to("cpu", dtype) for item in inputs))
    return tuple(results) if isinstance(results, tuple | list) else (results,)
