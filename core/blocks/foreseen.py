"""How far blocks can be removed, and in how many rounds: before any training."""

from __future__ import annotations

from dataclasses import replace

from core.blocks.candidates import Candidates
from core.errors import Fault, NothingRemoved, TargetUnreachable
from core.graph.bypass import without_blocks
from core.graph.counts import Counts, count
from core.graph.network import Network
from core.targets import Goal, Present


def require_reachable(network: Network, known: Candidates, target: Goal, *, step: int) -> None:
    """Raises `NothingRemoved` where no block may go, `TargetUnreachable` where all of them are not enough."""
    reasons = "; ".join(f"{name} ({reason})" for name, reason in known.frozen.items()) or "none"
    if not known.of(network):
        raise NothingRemoved(f"no residual block of this network may go. Frozen: {reasons}")
    smallest = without_blocks(network, [block.name for block in known.blocks(network)])
    missed = [result for result in target.results(target.present(smallest)) if not result.met]
    if not missed:
        return
    faults = [
        Fault(f"/steps/{step}/target/{result.name}", f"{result.reached:.4g} is the least that can remain",
              target.least(result))
        for result in missed
    ]  # fmt: skip
    least = ", ".join(f"{result.name} {result.reached:.4g} (asked: {result.target:g})" for result in missed)
    message = f"without any of its residual blocks there remain {least}. Frozen: {reasons}"
    raise TargetUnreachable(message, faults=faults)


def planned_rounds(network: Network, known: Candidates, target: Goal, *, per_round: int) -> list[int]:
    """MACs at the start of each round that is expected until `target` holds (or no block may go), and after the last.

    The groups are taken to lose blocks in turn, the last of each first; what `size` asks for is taken to go with the
    parameters, a latency with the MACs. Only the progress and the places of `loops` depend on it.
    """
    counts = count(network)
    present = target.present(network)
    waiting: dict[str, list[Counts]] = {name: [] for name in known.groups}
    filters = {name: layer.channels for name, layer in counts.layers.items() if layer.kind.startswith("Conv")}
    for candidate in known.of(network):
        less = [
            Counts(block.params, block.macs, sum(filters.get(name, 0) for name in block.own), 1, {})
            for block in candidate.blocks
        ]
        waiting[candidate.group].append(less[0])
    order = []
    while any(waiting.values()):
        order += [found.pop() for found in waiting.values() if found]
    macs, size = [counts.macs], present.file_bytes
    for start in range(0, len(order), per_round):
        if target.expected(present):
            break
        for gone in order[start : start + per_round]:
            left = replace(
                present.counts,
                params=present.counts.params - gone.params,
                macs=present.counts.macs - gone.macs,
                filters=present.counts.filters - gone.filters,
                blocks=present.counts.blocks - 1,
            )
            present = Present(left, None if size is None else size * left.params // max(1, counts.params))
            if target.expected(present):
                break
        macs.append(present.counts.macs)
    return macs
