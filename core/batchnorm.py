"""The recipe's `batchnorm: insert`: what is done before the steps and after them, each proved on real images.

Before: an identity BatchNorm behind every layer that has none. After: those folded back, so that the exported file
holds the same operators as the upload. In between, methods recalibrate their statistics after each cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from core.errors import CutRefused, ExactnessFailed, Fault, RecipeInvalid
from core.graph.batch_norm import insert, insert_with
from core.graph.batch_norm_folding import fold, foldable
from core.graph.exactness import BOUND, relative_error
from core.graph.network import Network
from core.report import Check


def with_batch_norm(
    network: Network, batches: Iterable[Tensor], images: Tensor
) -> tuple[Network, dict[str, Any], Check]:
    """`network` with BatchNorms inserted by statistics of `batches`, the plan entry, and the proof on `images`.

    What is proved is the insertion done over again on a copy in float64: stored in float32, γ is rounded.

    Raises `RecipeInvalid` where no layer can have one, `ExactnessFailed` where the outputs change.
    """
    try:
        larger, entry = insert(network, batches)
    except CutRefused as error:
        raise RecipeInvalid(
            "batchnorm: insert has nothing to do",
            faults=[Fault("/batchnorm", error.message, "keep")],
        ) from None
    norms = {layer: larger.layers()[name] for layer, name in entry["layers"].items()}
    statistics = {
        layer: (norm.get_buffer("running_mean"), norm.get_buffer("running_var")) for layer, norm in norms.items()
    }
    wide = _wide(network)
    check = _compared("exactness/batchnorm/insert", wide, insert_with(wide, entry["layers"], statistics)[0], images)
    return larger, entry, check


def without_batch_norm(
    network: Network, inserted: Mapping[str, Any], images: Tensor
) -> tuple[Network, list[dict[str, Any]], list[Check], list[str]]:
    """`network` with the BatchNorms of the plan entry `inserted` folded, as far as they are still there.

    Returns the network, the plan entries (none or one), the proofs, and a warning for each that had to stay.

    Raises `ExactnessFailed` where the outputs change.
    """
    names = set(inserted["layers"].values()) & network.layers().keys()
    ready = [name for name in foldable(network)[0] if name in names]
    warnings = [
        f"the inserted BatchNorm {name} stays in the file: {reason}"
        for name, reason in foldable(network)[1].items()
        if name in names
    ]
    if not ready:
        return network, [], [], warnings
    wide = _wide(network)
    check = _compared("exactness/batchnorm/fold", wide, fold(wide, ready)[0], images)
    smaller, entry = fold(network, ready)
    return smaller, [entry], [check], warnings


def _wide(network: Network) -> Network:
    return network.clone().to("cpu").to(torch.float64).eval()


def _compared(name: str, before: Network, after: Network, images: Tensor) -> Check:
    wide = images.to("cpu", torch.float64)
    with torch.no_grad():
        error = relative_error(before.logits(wide), after.logits(wide))
    check = Check(name=name, error=error, bound=BOUND, images=int(images.shape[0]), passed=bool(error <= BOUND))
    if not check.passed:
        raise ExactnessFailed(f"{name}: the outputs change by {error:.3g}; at most {BOUND:.0e} is allowed")
    return check
