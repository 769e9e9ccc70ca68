"""The proof that a cut is exact: zero what is removed in the uncut network, and compare with the cut one in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from core.errors import ExactnessFailed
from core.graph.cuts import Removal, removed_ids
from core.graph.groups import channel_groups
from core.graph.ids import Booleans, Propagation
from core.graph.network import Network
from core.graph.operators import FORMS
from core.graph.operators.form import LayerCut
from core.report import Check

BOUND = 1e-9


def check_cut(network: Network, removal: Removal, cut_network: Network, *inputs: Tensor) -> Check:
    """Compares `cut_network` with `network` whose consumers read zero from every removed channel.

    Where removed channels meet others in a normalisation (LayerNorm, GroupNorm of one group), zeroing is not cutting:
    the reference is the norm over the channels that are kept.

    Both run in eval mode, in float64, on copies, in front of a final Softmax (a saturated one hides errors). `inputs`
    are real inputs, (batch, ...), moved to the network's device. The error is max |a - b| / max |a| of the worst
    output; it must not exceed 1e-9.

    Raises `ExactnessFailed` where it does, where an output is not finite, or where all are 0 (nothing is proved).
    """
    reference = network.clone().to(torch.float64).eval()
    as_if_cut(reference, removal)
    return check_against(reference, cut_network, *inputs)


def check_against(reference: Network, changed: Network, *inputs: Tensor) -> Check:
    """Compares `changed` with `reference`, what it must compute, as `check_cut` does."""
    reference = reference.clone().to(torch.float64).eval()
    smaller = changed.clone().to(torch.float64).eval()
    with torch.no_grad():
        device = next((parameter.device for parameter in reference.parameters()), torch.device("cpu"))
        wide = [item.to(device, torch.float64) for item in inputs]
        error = relative_error(reference.logits(*wide), smaller.logits(*wide))
    check = Check(
        name="exactness", error=error, bound=BOUND, images=int(inputs[0].shape[0]), passed=bool(error <= BOUND)
    )
    if not check.passed:
        raise ExactnessFailed(
            f"the cut network differs from the zeroed one by {error:.3g}; at most {BOUND:.0e} is allowed"
        )
    return check


def as_if_cut(network: Network, removal: Removal) -> None:
    """Sets to 0, in place, every weight that reads a channel in `removal`, and makes norms go over what is kept.

    Raises `CutRefused` as `cut` does.
    """
    groups = channel_groups(network)
    as_if_removed(network, groups.analysis.propagation, removed_ids(groups, removal))


def as_if_removed(network: Network, propagation: Propagation, removed: Booleans) -> None:
    """As `as_if_cut`, for the ids of a propagation of `network`, or of one that it is a copy of."""
    for name, own in propagation.layers.items():
        layer = network.module.get_submodule(name)
        form = FORMS[type(layer)]
        if own.reads is not None:
            tensor, dim = own.reads
            weight, ids = layer.get_parameter(tensor), own.tensors[tensor][dim]
            assert ids is not None
            places = torch.from_numpy(removed[ids.numpy()])
            with torch.no_grad():
                weight.index_fill_(dim, places.nonzero().flatten().to(weight.device), 0)
        elif form.reference is not None and removed[own.output.numpy()].any():
            path, _, attribute = name.rpartition(".")
            reference = form.reference(layer, LayerCut(own, removed))
            setattr(network.module.get_submodule(path), attribute, reference)
        # what a carrier or a removed group makes is removed as well: it is zeroed where it is consumed


def relative_error(reference: Tensor | tuple[Tensor, ...], other: Tensor | tuple[Tensor, ...]) -> float:
    """max |a - b| / max |a| of the output that is worst: each is measured by its own scale.

    Infinite where a number is not finite, shapes differ, an output that should be 0 everywhere is not, or all are 0.
    """
    ours = [item.detach() for item in (reference if isinstance(reference, tuple | list) else (reference,))]
    theirs = [item.detach() for item in (other if isinstance(other, tuple | list) else (other,))]
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return float("inf")
    if not all(bool(torch.isfinite(item).all()) for item in (*ours, *theirs)):
        return float("inf")
    errors = []
    for a, b in zip(ours, theirs, strict=True):
        scale, difference = float(a.abs().max()), float((a - b).abs().max())
        if scale > 0 or difference > 0:
            errors.append(difference / scale if scale > 0 else float("inf"))
    return max(errors, default=float("inf"))
