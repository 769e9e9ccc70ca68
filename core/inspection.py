"""What an upload is, as JSON: a model's inputs, outputs and counts, a dataset's splits and classes."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch

from core.data.contact_sheet import write_contact_sheet
from core.data.datasets import load_dataset
from core.devices import torch_settings
from core.graph.description import describe
from core.graph.importers import load
from core.graph.network import TensorSpec
from core.job import DatasetCheck, ModelInput
from core.state import write_atomically


def inspect_model(model: ModelInput, out: Path | None = None) -> dict[str, Any]:
    """What an upload is, as JSON: inputs, outputs, and the counts of its graph. Raises `ModelRefused`.

    The whole description of the graph, a `core.graph_report.NetworkGraph`, goes to `out/graph.json` where there is an
    `out`.
    """
    network = load(model)
    described = describe(network)
    totals = described.totals
    if out is not None:
        write_atomically(out / "graph.json", described.model_dump_json().encode())
    return {
        "sha256": model.sha256,
        "format": model.format,
        "opset": network.origin.opset,
        "inputs": [tensor_json(item) for item in network.inputs],
        "outputs": [tensor_json(item) for item in network.known_outputs()],
        "input_shapes": [list(shape) for shape in network.input_shapes],
        "params": totals.params,
        "macs": totals.macs,
        "filters": totals.filters,
        "layers": totals.layers,
        "graph": totals.model_dump(),
    }


def inspect_dataset(check: DatasetCheck, workdir: Path | None = None) -> dict[str, Any]:
    """Counts per split and class, shape, classes, hashes, as JSON. Raises `DatasetRefused`.

    Images that do not fit memory go to `workdir/images` meanwhile, a contact sheet to `workdir/out/contact_sheet.png`.
    A dataset of which no sheet can be made is as good as any other: the warnings say so.
    """
    with torch_settings(torch.device("cpu"), check.threads):
        loaded = load_dataset(check.dataset, check.room, None if workdir is None else workdir / "images")
        summary = loaded.summary()
        if workdir is not None:
            try:
                write_contact_sheet(loaded, workdir / "out")
            except Exception as error:
                traceback.print_exc()  # for the worker's log
                summary["warnings"].append(f"no contact sheet could be made: an unexpected {type(error).__name__}")
        return summary


def tensor_json(spec: TensorSpec) -> dict[str, Any]:
    """An input or output, as JSON."""
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
