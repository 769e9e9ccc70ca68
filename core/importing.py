"""Model and dataset of a job, read and held against each other."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from core.data.datasets import Dataset, load_dataset
from core.data.fit import check_fits
from core.graph.export import to_onnx
from core.graph.importers import load
from core.graph.network import Network, grouped_cuts
from core.job import JobInputs


def read_inputs(inputs: JobInputs, images: Path) -> tuple[Network, Dataset]:
    """The upload as the recipe wants it cut, and the dataset as the upload wants it; images that do not fit memory go
    to the folder `images`.

    Raises `ModelRefused`, `DatasetRefused` with every fault, or `RecipeInvalid` where the network does not fit the
    opset.
    """
    recipe = inputs.recipe
    fitting = partial(
        check_fits, task=recipe.task, new_head=recipe.head == "replace", wants_pruning=recipe.uses_pruning_split
    )
    network = load(inputs.model)
    dataset = load_dataset(inputs.datasets[0], inputs.room, images)
    dataset = fitting(dataset, network.inputs, network.known_outputs())
    if network.input_shapes[0] != dataset.input_shape:
        # the upload leaves height or width open: counts and latency are those at the dataset's size
        network = Network(network.module, network.inputs, network.outputs, network.origin, (dataset.input_shape,))
        dataset = fitting(dataset, network.inputs, network.computed_outputs())
    network.grouped = grouped_cuts(network.module, recipe.export.grouped)
    to_onnx(network, opset=recipe.export.opset)  # an opset that cannot hold the network is refused at once
    return network, dataset
