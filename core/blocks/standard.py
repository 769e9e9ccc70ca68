"""The standard structure of a size: as many blocks, the groups as equal as can be.

Velici 2022, sections 3.2 and 3.5, compares pruned networks with the standard ResNets of as many blocks, which have the
same number in each group.
"""

from __future__ import annotations

from typing import Any

from core.blocks.candidates import Candidate, Candidates
from core.errors import NothingRemoved
from core.graph.bypass import bypass
from core.graph.counts import count
from core.graph.network import Network


def standard(original: Network, blocks: int) -> tuple[Network, list[dict[str, Any]]]:
    """`original` with only `blocks` residual blocks, weights as they are, and the plan that leads to it.

    Of the group that has most blocks left, the first of several, the last one goes, until so many are left; one that
    changes shapes goes only where no other is left in any group.

    Raises `NothingRemoved` where so few cannot be had.
    """
    known = Candidates(original)
    network, plan = original.clone(), []
    while (there := count(network).blocks) > blocks:
        found = known.of(network)
        others = [candidate for candidate in found if not _changes_shapes(candidate)] or found
        if not others:
            raise NothingRemoved(f"the standard structure has {there} blocks at least, not {blocks}: no other may go")
        left = known.left(network)
        largest = max((group for group in left if any(each.group == group for each in others)), key=left.__getitem__)
        last = [candidate for candidate in others if candidate.group == largest][-1]
        network, entry = bypass(network, last.blocks[0].name)
        plan.append(entry)
    return network, plan


def _changes_shapes(candidate: Candidate) -> bool:
    return any(block.input_shape != block.output_shape for block in candidate.blocks)
