"""One row of `bench.coverage`: a network is imported, measured, cut, proved, written and run."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.zoo import Prepared, Row, prepare
from core.errors import BillhookError, ExactnessFailed, ParityFailed
from core.graph.counts import count
from core.graph.cuts import cut
from core.graph.exactness import BOUND, check_cut, relative_error
from core.graph.export import PARITY_BOUND, PARITY_FACTOR, check_parity, write_onnx
from core.graph.groups import ChannelGroups, channel_groups
from core.graph.importers import load
from core.graph.network import Network
from core.graph.operators.convolution import CONVOLUTIONS
from core.job import ModelInput

SHARE = 0.4
HALF = 0.5
MOVED = 1e-4
"""A cut that moves the outputs less than this proves nothing: a wrong channel would not show."""


def measure(row: Row, cache: Path, work: Path) -> dict[str, Any]:
    """The row's numbers. `stage` is "passed", or what failed, with the `error` and the `operator` that it names.

    Args:
        row: what to measure.
        cache: where the exported networks are kept.
        work: a folder for what is written.
    """
    found: dict[str, Any] = {"row": row.name, "stage": "prepare"}
    try:
        prepared = prepare(row, cache)
        found["image"] = list(prepared.inputs[0].shape[1:])
        _measure(row, prepared, work / "cut.onnx", found)
    except (BillhookError, Exception) as error:  # whatever it is, the other rows go on
        message = error.message if isinstance(error, BillhookError) else f"{type(error).__name__}: {error}"
        found["error"] = " ".join(message.split())[:600]
        operator = re.search(r"operator (\S+)", message)
        if operator:
            found["operator"] = operator.group(1).strip("'\"`,:;")
    return found


def _measure(row: Row, prepared: Prepared, path: Path, found: dict[str, Any]) -> None:
    found["stage"] = "import"
    began = time.perf_counter()
    digest = hashlib.sha256(prepared.path.read_bytes()).hexdigest()
    network = load(ModelInput(path=prepared.path, sha256=digest, format=row.format))
    found["import_s"] = round(time.perf_counter() - began, 3)
    counts = count(network)
    found["params"] = counts.params
    found["conv_params"] = sum(
        item.params
        for name, item in counts.layers.items()
        if isinstance(network.module.get_submodule(name), CONVOLUTIONS)
    )
    found["import_bound"], found["import_error"] = import_error(network, prepared, row)
    if not found["import_error"] <= found["import_bound"]:
        raise AssertionError(
            f"the imported network differs from its source by {found['import_error']:.3g}; "
            f"at most {found['import_bound']:.3g} is allowed"
        )

    found["stage"] = "analysis"
    began = time.perf_counter()
    groups = channel_groups(network)
    found["analysis_s"] = round(time.perf_counter() - began, 3)
    free = [group for group in groups.groups if group.cuttable and group.width > 1]
    found["groups"], found["free_groups"] = len(groups.groups), len(free)
    found["free_conv"] = round(free_share(network, groups), 4)
    found["forbidden_by"] = forbidden_by(network, groups)

    found["stage"] = "cut"
    if not free:
        raise AssertionError("no channel is free to go")
    dice = random.Random(row.name)  # SVHN's networks are CIFAR-10's: other cuts of them
    removal = {group.name: sorted(dice.sample(range(group.width), _some(group.width, SHARE))) for group in free}
    smaller, _ = cut(network, removal, groups)
    found["removed"] = round(1 - count(smaller).params / counts.params, 4)
    half = {group.name: list(range(_some(group.width, HALF))) for group in free}
    found["removed_at_half"] = round(1 - count(cut(network, half, groups)[0]).params / counts.params, 4)

    found["stage"] = "exactness"
    found["exactness_bound"] = BOUND
    inputs = tuple(item.float() for item in prepared.inputs)
    try:
        found["exactness_error"] = check_cut(network, removal, smaller, *inputs).error
    except ExactnessFailed as error:
        found["exactness_error"] = _told(error, r"zeroed one by (\S+);")
        raise
    with torch.no_grad():
        wide = [item.double() for item in prepared.inputs]
        found["moved"] = relative_error(
            network.clone().to(torch.float64).logits(*wide), smaller.clone().to(torch.float64).logits(*wide)
        )
    if found["moved"] < MOVED:
        raise AssertionError(f"the cut moves the outputs by {found['moved']:.1g} only: it proves nothing")
    del network, groups

    found["stage"] = "write"
    write_onnx(smaller, path)
    found["stage"] = "parity"
    try:
        check = check_parity(smaller, path, *inputs)
        found["parity_error"], found["parity_bound"] = check.error, check.bound
    except ParityFailed as error:
        found["parity_error"] = _told(error, r"torch by (\S+);")
        found["parity_bound"] = _told(error, r"at most (\S+) is")
        raise
    found["stage"] = "passed"


def import_error(network: Network, prepared: Prepared, row: Row) -> tuple[float, float]:
    """(bound, error) of the imported network against what its makers' code, or ONNX Runtime, computes.

    A `.pt2` file is compared in float64, unless something rounds on the way. Of an ONNX file ONNX Runtime has only
    float32, so that the bound is that of parity; torch's exporter may have folded BatchNorms, but it is compared with
    the module it came from all the same.
    """
    with torch.no_grad():
        runner = network.clone().eval()
        made = _tuple(runner(*(item.float() for item in prepared.inputs)))
        exact = _tuple(runner.to(torch.float64)(*(item.double() for item in prepared.inputs)))
    expected = tuple(item.double() for item in prepared.outputs)
    if row.format == "pt2" and not prepared.rounds:
        return BOUND, relative_error(expected, exact)
    own = relative_error(exact, tuple(item.double() for item in made))
    bound = max(PARITY_BOUND, PARITY_FACTOR * own) if np.isfinite(own) else PARITY_BOUND
    return bound, relative_error(expected, exact)


def _tuple(value: Any) -> tuple[torch.Tensor, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _some(width: int, share: float) -> int:
    """That share of `width`, rounded, at least one and never all."""
    return min(max(1, round(share * width)), width - 1)


def _told(error: BillhookError, pattern: str) -> float:
    number = re.search(pattern, error.message)
    return float(number.group(1)) if number else float("inf")


# --- what is free ----------------------------------------------------------------------------------------------------


def free_share(network: Network, groups: ChannelGroups) -> float:
    """The share of the weights of convolutions whose output channel or input channel may be cut."""
    total = kept = 0.0
    for name, own in groups.analysis.propagation.layers.items():
        layer = network.module.get_submodule(name)
        if isinstance(layer, CONVOLUTIONS):
            weights = layer.get_parameter("weight").numel()
            stays = 1.0
            for ids in own.tensors["weight"]:
                stays *= 1.0 if ids is None else 1.0 - float(_free(groups)[ids.numpy()].mean())
            total += weights
            kept += weights * stays
    return 1 - kept / total if total else 0.0


def _free(groups: ChannelGroups) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Of every id, whether a cut may remove it."""
    analysis = groups.analysis
    cuttable = np.array([group.cuttable and group.width > 1 for group in groups.groups] + [False])
    return np.asarray((cuttable[analysis.group_of] & (analysis.unit_of >= 0))[analysis.classes])


def forbidden_by(network: Network, groups: ChannelGroups) -> list[list[Any]]:
    """[operator, reason, share of the convolutions' parameters in layers whose channels it holds], the most first."""
    parameters = {
        name: network.module.get_submodule(name).get_parameter("weight").numel()
        for name in network.layers()
        if isinstance(network.module.get_submodule(name), CONVOLUTIONS)
    }
    held: dict[tuple[str, str], set[str]] = {}
    for item in groups.frozen:
        held.setdefault((item.operator, item.reason), set()).update(item.layers)
    shares: Counter[tuple[str, str]] = Counter()
    for key, layers in held.items():
        shares[key] = sum(parameters.get(layer, 0) for layer in layers)
    total = sum(parameters.values()) or 1
    return [[*key, round(share / total, 3)] for key, share in shares.most_common(4) if share]
