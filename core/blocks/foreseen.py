"""How far blocks can be removed, and in how many rounds: before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from core.blocks.candidates import Candidates
from core.errors import CutRefused, NothingRemoved
from core.graph.blocks import Block
from core.graph.bypass import without_blocks
from core.graph.counts import Counts, count
from core.graph.network import Network
from core.targets import Goal, Present, unreachable

ALL_AT_ONCE = 1_000_000
"""More blocks than any network has."""


def require_reachable(network: Network, known: Candidates, target: Goal, *, step: int) -> None:
    """Raises `NothingRemoved` where no block may go, `TargetUnreachable` where all of them are not enough."""
    reasons = "; ".join(f"{name} ({reason})" for name, reason in known.frozen.items()) or "none"
    if not known.of(network):
        raise NothingRemoved(f"no residual block of this network may go. Frozen: {reasons}")
    smallest = _smallest(network, known)
    missed = [result for result in target.results(target.present(smallest)) if not result.met]
    if not missed:
        return
    without = "without any of its residual blocks"
    if known.neighbours > 1:
        without = f"with {known.neighbours} neighbouring blocks replaced by one as often as there are so many"
    raise unreachable(target, missed, without, reasons, step=step)


def planned_rounds(
    network: Network, known: Candidates, target: Goal, *, per_round: int, equalise: bool = False
) -> list[int]:
    """MACs at the start of each round that is expected until `target` holds (or no block may go), and after the last.

    The groups are taken to lose blocks in turn, the last of each first, and of neighbours those behind the first; with
    `equalise` each round's are of one group. What `size` asks for is taken to go with the parameters, a latency with
    the MACs. Only the progress and the places of `loops` depend on it.
    """
    counts = count(network)
    present = target.present(network)
    waiting: dict[str, list[Counts]] = {name: [] for name in known.groups}
    filters = {name: layer.channels for name, layer in counts.layers.items() if layer.kind.startswith("Conv")}
    for group, chains in known.chains(network).items():
        for chain in chains:
            fewer, removals = _replacements(len(chain), known.neighbours)
            ends = range(len(chain) - fewer * removals, len(chain), fewer)
            waiting[group] += [_sum(chain[start : start + fewer], filters) for start in ends]
    at_once = per_round if equalise else 1
    order = []
    while any(waiting.values()):
        for found in waiting.values():
            if found:
                order.append([found.pop() for _ in range(min(at_once, len(found)))])
    in_order = [gone for several in order for gone in several]
    rounds = order if equalise else [in_order[at : at + per_round] for at in range(0, len(in_order), per_round)]
    macs, size = [counts.macs], present.file_bytes
    for round in rounds:
        if target.expected(present):
            break
        for gone in round:
            left = replace(
                present.counts,
                params=present.counts.params - gone.params,
                macs=present.counts.macs - gone.macs,
                filters=present.counts.filters - gone.filters,
                blocks=present.counts.blocks - gone.blocks,
            )
            present = Present(left, None if size is None else size * left.params // max(1, counts.params))
            if target.expected(present):
                break
        macs.append(present.counts.macs)
    return macs


def _replacements(length: int, neighbours: int) -> tuple[int, int]:
    """How many blocks go at once of a chain of `length`, and how often: all blocks one by one, or of so many neighbours
    all but the first, until there are fewer of them left."""
    return (1, length) if neighbours == 1 else (neighbours - 1, (length - 1) // (neighbours - 1))


def _smallest(network: Network, known: Candidates) -> Network:
    """Where everything goes that may; in a network of such blocks alone the one with fewest parameters stays."""
    going = _at_most(network, known)
    try:
        return without_blocks(network, [block.name for block in going])
    except CutRefused:
        stays = min(going, key=lambda block: block.params)
        return without_blocks(network, [block.name for block in going if block is not stays])


def _at_most(network: Network, known: Candidates) -> list[Block]:
    """The blocks that go where everything goes that may. The first of a chain always stands for its neighbours; of the
    others, of which some may be left, the largest are taken to go."""
    found = []
    for chains in known.chains(network).values():
        for chain in chains:
            fewer, removals = _replacements(len(chain), known.neighbours)
            others = chain if known.neighbours == 1 else sorted(chain[1:], key=lambda block: -block.params)
            found += others[: fewer * removals]
    return found


def _sum(blocks: Sequence[Block], filters: Mapping[str, int]) -> Counts:
    """What goes with all of `blocks`."""
    return Counts(
        sum(block.params for block in blocks),
        sum(block.macs for block in blocks),
        sum(filters.get(name, 0) for block in blocks for name in block.own),
        len(blocks),
        {},
    )
