"""Taking candidates out of a network, each with its proof."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from core.block_settings import Replace
from core.blocks.candidates import Candidate
from core.errors import CutRefused
from core.graph.blocks import find_blocks
from core.graph.bypass import bypass, check_bypass, without_blocks
from core.graph.network import Network
from core.graph.replacing import check_replacement, replace_blocks
from core.report import Check
from core.targets import Goal
from core.training.seeds import derived_seed
from core.training.vicinity import changed_layers


@dataclass(frozen=True)
class Removed:
    """What is left. `entries`: of the plan; `wound`: layers that were changed, are gone or began anew, for local
    training."""

    network: Network
    entries: list[dict[str, Any]]
    checks: list[Check]
    wound: list[str]


def remove(
    network: Network,
    chosen: Sequence[Candidate],
    images: Tensor,
    *,
    name: str,
    replace: Replace | None = None,
    seed: int = 0,
) -> Removed:
    """`network` without the blocks of `chosen`, one after the other, or with one block for all of each; `network` stays
    as it is.

    images: real inputs, (B, ...). seed: of new weights. Raises `ExactnessFailed`, `CutRefused`.
    """
    smaller = network
    entries, checks = [], []
    wound: list[str] = []
    for candidate in chosen:
        for blocks in [candidate.blocks] if replace else [(block,) for block in candidate.blocks]:
            present = {block.own: block.name for block in find_blocks(smaller)}
            names = [present[block.own] for block in blocks]
            if replace is None:
                next_one, entry = bypass(smaller, names[0])
                check = check_bypass(smaller, entry, next_one, images)
            else:
                own = derived_seed(seed, f"{name}/{candidate.name}")
                next_one, entry = replace_blocks(smaller, names, seed=own, weights=replace.weights)
                check = check_replacement(smaller, entry, next_one, images)
                wound += blocks[0].own
            entries.append(entry)
            checks.append(check.model_copy(update={"name": f"exactness/{name}/{candidate.name}"}))
            smaller = next_one
    return Removed(smaller, entries, checks, [*changed_layers(network, smaller), *wound])


def together(network: Network, chosen: Sequence[Candidate]) -> list[Candidate]:
    """The longest beginning of `chosen` that may go at once: each of them may by itself, but something must be left."""
    for number in range(len(chosen), 1, -1):
        try:
            without_blocks(network, [block.name for candidate in chosen[:number] for block in candidate.going])
        except CutRefused:
            continue
        return list(chosen[:number])
    return list(chosen[:1])


def no_more_than_needed(network: Network, chosen: Sequence[Candidate], target: Goal) -> list[Candidate]:
    """The shortest beginning of `chosen` with which `target` holds; all of it where it does not hold even then."""

    def met(number: int) -> bool:
        names = [block.name for candidate in chosen[:number] for block in candidate.going]
        return target.met(target.present(without_blocks(network, names)))

    if len(chosen) < 2 or not met(len(chosen)):
        return list(chosen)
    return list(chosen[: 1 + bisect_left(range(1, len(chosen)), True, key=met)])
