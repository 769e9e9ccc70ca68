"""Milliseconds per layer of an ONNX file, from ONNX Runtime's own profile.

ONNX Runtime fuses: BatchNorm, Relu and residual additions disappear into the convolution before them, whose time then
includes theirs. A fused node is found by its name where it kept one, else (`<value>_nchwc`, blocked layouts) by the
value it makes, going back from there to the node with weights. What cannot be traced to exactly one layer is left out;
reorderings between layouts belong to no layer. Profiling slows a run: these are shares of a latency, not a latency.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import onnx

from core.measure.sessions import Floats, bound_run, in_own_thread, open_session, require_batch

WARM_UP_RUNS = 5
RUNS = 30
_SUFFIX = "_kernel_time"
_BLOCKED = "_nchwc"


def layer_milliseconds(
    path: Path, inputs: Floats, layers: Iterable[str], *, threads: int = 1, runs: int = RUNS
) -> dict[str, float | None]:
    """Median milliseconds of each of `layers` on `inputs` (B, ...), on the CPU; None where no node is that layer's.

    A layer is named as its weights (`layer.weight`) or as its node (`layer`, or `/a/b/Conv` for `a.b`) in the file.
    """
    times = node_milliseconds(path, inputs, threads=threads, runs=runs)
    # structure and names only: the weights stay on disk where they are external
    graph = onnx.load(path, load_external_data=False).graph
    found: dict[str, float] = {}
    for node, milliseconds in _weighted_times(graph, times).items():
        for name in _layer_names(graph.node[node]):
            found.setdefault(name, milliseconds)
    return {layer: found.get(layer) for layer in layers}


@in_own_thread
def node_milliseconds(path: Path, inputs: Floats, *, threads: int = 1, runs: int = RUNS) -> dict[str, float]:
    """Median milliseconds of each node that ONNX Runtime really runs, by its name there."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(path, threads=threads, profile_prefix=Path(folder) / "profile")
        require_batch(session, len(inputs))
        run = bound_run(session, inputs, "cpu")
        for _ in range(WARM_UP_RUNS + runs):
            run()
        events = json.loads(Path(session.end_profiling()).read_text())
    microseconds: dict[str, list[int]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            microseconds[event["name"].removesuffix(_SUFFIX)].append(event["dur"])
    return {name: statistics.median(values[WARM_UP_RUNS:]) / 1e3 for name, values in microseconds.items()}


def _weighted_times(graph: onnx.GraphProto, times: dict[str, float]) -> dict[int, float]:
    """Milliseconds by position of the node with weights that they belong to."""
    constants = {tensor.name for tensor in graph.initializer if len(tensor.dims) >= 2}
    for node in graph.node:
        if node.op_type == "Constant" and any(len(attribute.t.dims) >= 2 for attribute in node.attribute):
            constants.update(node.output)
    weighted = {number for number, node in enumerate(graph.node) if constants & set(node.input)}
    by_name = {node.name: number for number, node in enumerate(graph.node) if node.name}
    makers = {value: number for number, node in enumerate(graph.node) for value in node.output}
    result: dict[int, float] = {}
    blocked: dict[str, float] = {}
    for name, milliseconds in times.items():
        if name in by_name:
            if by_name[name] in weighted:
                result[by_name[name]] = milliseconds
        elif name.removesuffix(_BLOCKED) in makers:
            blocked[name.removesuffix(_BLOCKED)] = milliseconds
    ran = set(blocked) | {value for name in times if name in by_name for value in graph.node[by_name[name]].output}
    for value, milliseconds in blocked.items():
        origins = _origins(graph, value, makers, weighted, ran) - result.keys()
        if len(origins) == 1:
            result[origins.pop()] = milliseconds
    return result


def _origins(graph: onnx.GraphProto, value: str, makers: dict[str, int], weighted: set[int], ran: set[str]) -> set[int]:
    """Nodes with weights from which `value` comes, without passing what another node that ran has made."""
    found: set[int] = set()
    seen: set[str] = set()
    queue = [value]
    while queue:
        here = queue.pop()
        if here in seen or here not in makers or (here in ran and here != value):
            continue
        seen.add(here)
        if makers[here] in weighted:
            found.add(makers[here])
        else:
            queue.extend(graph.node[makers[here]].input)
    return found


def _layer_names(node: onnx.NodeProto) -> list[str]:
    """What the layer of a node may be called, the surest first."""
    names = [name.removesuffix(".weight") for name in node.input[1:2] if name.endswith(".weight")]
    dotted = node.name.strip("/").replace("/", ".")
    return [*names, node.name, dotted, dotted.removesuffix(f".{node.op_type}")]
