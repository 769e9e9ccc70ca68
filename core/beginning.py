"""What the steps of a recipe begin with: the upload's structure, with the weights that `weights` says and, where the
recipe wants one, a new classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from core.errors import Fault, RecipeInvalid
from core.events import Emit
from core.graph.export import check_parity
from core.graph.external_data import unpack
from core.graph.head import HeadRefused, with_new_head
from core.graph.importers import load
from core.graph.initialise import reinitialised
from core.graph.network import Network
from core.graph.weights import with_weights
from core.job import JobInputs
from core.recipe import Recipe
from core.report import Check
from core.training.seeds import derived_seed


@dataclass
class Beginning:
    """`plan`: replayable on the original; the weights of a model are not in it, only its sha256."""

    network: Network
    plan: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def begin(
    inputs: JobInputs, original: Network, images: Tensor, workdir: Path, emit: Emit, *, classes: int
) -> Beginning:
    """The network that the recipe of `inputs` begins with; `original` stays as it is. images: real inputs, (B, ...);
    classes: of the dataset, for a new classifier.

    Raises `RecipeInvalid` where the model of `weights` is another network or no classifier is found, whatever that
    model's import is refused for, and `ParityFailed` where ONNX Runtime reads something else out of its file.
    """
    begun = _with_weights(inputs, original, images, workdir, emit)
    if inputs.recipe.head == "replace":
        begun.network, entry = new_head(begun.network, inputs.recipe, classes)
        begun.plan.append(entry)
        emit("import/head", **entry)
    return begun


def new_head(network: Network, recipe: Recipe, classes: int) -> tuple[Network, dict[str, Any]]:
    """`network` with a classifier for `classes` classes, and the plan entry. Raises `RecipeInvalid`."""
    try:
        return with_new_head(network, classes, seed=derived_seed(recipe.seed, "head"))
    except HeadRefused as error:
        faults = [Fault("/head", fault.message, "keep") for fault in error.faults]
        raise RecipeInvalid(f"head: replace cannot be done: {error.message}", faults=faults) from None


def _with_weights(inputs: JobInputs, original: Network, images: Tensor, workdir: Path, emit: Emit) -> Beginning:
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
