"""Taking candidates out of a network, each with its proof."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from core.blocks.candidates import Candidate
from core.graph.blocks import find_blocks
from core.graph.bypass import bypass, check_bypass, without_blocks
from core.graph.network import Network
from core.report import Check
from core.targets import Goal
from core.training.vicinity import changed_layers


@dataclass(frozen=True)
class Removed:
    """What is left. `entries`: of the plan; `wound`: layers that were changed or are gone, for local training."""

    network: Network
    entries: list[dict[str, Any]]
    checks: list[Check]
    wound: list[str]


def remove(network: Network, chosen: Sequence[Candidate], images: Tensor, *, name: str) -> Removed:
    """`network` without the blocks of `chosen`, one after the other; `network` stays as it is.

    images: real inputs, (B, ...). Raises `ExactnessFailed`, `CutRefused`.
    """
    smaller = network
    entries, checks = [], []
    for candidate in chosen:
        for block in candidate.blocks:
            (present,) = (each for each in find_blocks(smaller) if each.own == block.own)
            next_one, entry = bypass(smaller, present.name)
            check = check_bypass(smaller, entry, next_one, images)
            entries.append(entry)
            checks.append(check.model_copy(update={"name": f"exactness/{name}/{candidate.name}"}))
            smaller = next_one
    return Removed(smaller, entries, checks, changed_layers(network, smaller))


def no_more_than_needed(network: Network, chosen: Sequence[Candidate], target: Goal) -> list[Candidate]:
    """The shortest beginning of `chosen` with which `target` holds; all of it where it does not hold even then."""

    def met(number: int) -> bool:
        names = [block.name for candidate in chosen[:number] for block in candidate.blocks]
        return target.met(target.present(without_blocks(network, names)))

    if len(chosen) < 2 or not met(len(chosen)):
        return list(chosen)
    return list(chosen[: 1 + bisect_left(range(1, len(chosen)), True, key=met)])
