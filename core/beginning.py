"""What the steps of a recipe begin with: the upload's structure, with the weights that `weights` says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from core.events import Emit
from core.graph.export import check_parity
from core.graph.external_data import unpack
from core.graph.importers import load
from core.graph.initialise import reinitialised
from core.graph.network import Network
from core.graph.weights import with_weights
from core.job import JobInputs
from core.report import Check
from core.training.seeds import derived_seed


@dataclass
class Beginning:
    """`plan`: replayable on the original; the weights of a model are not in it, only its sha256."""

    network: Network
    plan: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def begin(inputs: JobInputs, original: Network, images: Tensor, workdir: Path, emit: Emit) -> Beginning:
    """The network that the recipe of `inputs` begins with; `original` stays as it is. images: real inputs, (B, ...).

    Raises `RecipeInvalid` where the model of `weights` is another network, whatever its import is refused for, and
    `ParityFailed` where ONNX Runtime reads something else out of its file.
    """
    if inputs.weights is not None:
        network, check = with_weights(original, load(inputs.weights), images)
        checks = [check]
        if inputs.weights.format == "onnx":
            parity = check_parity(network, unpack(inputs.weights.path, workdir / "weights"), images)
            checks.append(parity.model_copy(update={"name": "parity/weights"}))
        emit("import/weights", sha256=inputs.weights.sha256, exactness=check.error)
        return Beginning(network, [{"op": "weights", "sha256": inputs.weights.sha256}], checks)
    if inputs.recipe.weights == "random":
        network, entry, kept = reinitialised(original, seed=derived_seed(inputs.recipe.seed, "weights"))
        told = f"parameters of no layer keep their values, weights: random or not: {', '.join(kept)}"
        return Beginning(network, [entry], warnings=[told] if kept else [])
    return Beginning(original)
