"""Removing filters in rounds: what may go, what goes in a round, how far it can go, how long that will take."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache
from typing import Any, Literal

from core.errors import Fault, NothingRemoved, PruningError
from core.graph.counts import count
from core.graph.cuts import cut
from core.graph.groups import ChannelGroup, channel_groups
from core.graph.network import Network
from core.graph.operators.convolution import CONVOLUTIONS
from core.targets import Goal, Present, unreachable
from core.widths import Chunk, chunks, least_width, removal_of, share_of, simulated_widths, take, unit_multiple

Scope = Literal["local", "global"]

# --- which filters ----------------------------------------------------------------------------------------------------


def filter_groups(network: Network) -> list[ChannelGroup]:
    """The groups that may be cut and hold a convolution's filters. Groups of linear layers alone are left alone."""
    layers = network.layers()
    return [
        group
        for group in channel_groups(network).groups
        if group.cuttable and any(isinstance(layers[producer.layer], CONVOLUTIONS) for producer in group.producers)
    ]


def select(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Sequence[float]],
    *,
    scope: Scope,
    ratio: float,
    channel_multiple: int,
    carried: Mapping[str, Fraction],
) -> tuple[list[Chunk], dict[str, Fraction]]:
    """Algorithm 2, PruneAllConv2DLayers: what goes in this round, weakest first, and what is left over for the next.

    `scores` and, for `scope: local`, `carried` are per group name; for `scope: global`, `carried` has the one key "".
    Across groups, local scope orders chunks by their score relative to their group's mean (raw norms of different
    layers are not comparable, and it does not compare them otherwise); global scope by the score itself, as it ranks.
    """
    found = {
        group.name: chunks(group.name, scores[group.name], unit_multiple(group, channel_multiple), group.always_kept)
        for group in groups
    }
    if scope == "global":
        pool = sorted((chunk for own in found.values() for chunk in own), key=lambda chunk: chunk.score)
        owed = carried.get("", Fraction(0)) + share_of(sum(group.width for group in groups), ratio)
        taken, left = take(pool, owed)
        return taken, {"": left}
    relative: list[tuple[float, Chunk]] = []
    left_over = {}
    for group in groups:
        owed = carried.get(group.name, Fraction(0)) + share_of(group.width, ratio)
        taken, left_over[group.name] = take(found[group.name], owed)
        mean = sum(scores[group.name]) / group.width
        relative += [(chunk.score / mean if mean > 0 else 0.0, chunk) for chunk in taken]
    return [chunk for _, chunk in sorted(relative, key=lambda item: item[0])], left_over


def weakest(scores: Mapping[str, Sequence[float]], numbers: Mapping[str, int]) -> list[Chunk]:
    """So many units of each group, those with the least scores, ties by index. Raises `PruningError` where a group is
    not there: a step in front of this one may have removed other blocks."""
    missing = [name for name in numbers if name not in scores]
    if missing:
        raise PruningError(f"there are no channel groups {', '.join(missing)} to remove from: their blocks are gone")
    found = []
    for name, number in numbers.items():
        order = sorted(range(len(scores[name])), key=lambda unit: (scores[name][unit], unit))
        found.append(Chunk(name, tuple(order[:number]), 0.0))
    return found


def cut_no_more_than_needed(
    network: Network, chosen: list[Chunk], target: Goal | None
) -> tuple[dict[str, list[int]], Network, dict[str, Any]]:
    """Removes the shortest beginning of `chosen` with which `target` holds; all of it where it does not hold even then,
    where there is none, and where it asks for a latency, which would have to be measured of each.

    Returns what was removed, the smaller network and the plan entry.
    """

    def met(number: int) -> bool:
        return target is not None and target.met(target.present(cut(network, removal_of(chosen[:number]))[0]))

    smaller, entry = cut(network, removal_of(chosen))
    if target is not None and len(chosen) > 1 and target.met(target.present(smaller)):
        fewer = 1 + bisect_left(range(1, len(chosen)), True, key=met)
        if fewer < len(chosen):
            chosen = chosen[:fewer]
            smaller, entry = cut(network, removal_of(chosen))
    return removal_of(chosen), smaller, entry


# --- before any training ----------------------------------------------------------------------------------------------


def require_reachable(network: Network, target: Goal, *, channel_multiple: int, step: int) -> None:
    """Raises `NothingRemoved` where nothing may go, `TargetUnreachable` where all that may go is not enough."""
    groups = filter_groups(network)
    frozen = channel_groups(network).frozen
    reasons = "; ".join(f"{', '.join(item.layers)} ({item.reason}: {item.operator} {item.node})" for item in frozen)
    if not groups:
        raise NothingRemoved(f"no convolution of this network may be cut. Frozen: {reasons or 'nothing'}")
    widths = {group.name: least_of(group, channel_multiple) for group in groups}
    removal = {group.name: list(range(group.width - widths[group.name])) for group in groups}
    removal = {name: units for name, units in removal.items() if units}
    if not removal:
        message = f"no layer is wide enough to lose channels and keep a multiple of {channel_multiple}"
        described = ", ".join(f"{group.name} has {group.width}" for group in groups)
        fault = Fault("/export/channel_multiple", f"{message}: {described}", "a smaller channel_multiple")
        raise NothingRemoved(message, faults=[fault])
    missed = [result for result in target.results(target.present(cut(network, removal)[0])) if not result.met]
    if not missed:
        return
    told = f"with every layer at its least width (channel_multiple {channel_multiple})"
    raise unreachable(target, missed, told, reasons or "nothing", step=step)


def planned_rounds(network: Network, target: Goal, *, ratio: float, channel_multiple: int) -> list[int]:
    """MACs at the start of each round that is expected until `target` holds (or widths are least), and after the last.

    Widths are simulated with local scope (which the scores do not enter); the last round, which takes only what the
    target needs, is taken to go half of its way; counts in between are on a straight line; a share of the latency is
    taken for one of the MACs. Only the progress and the places of `loops` depend on it.
    """
    groups = filter_groups(network)
    widths = {group.name: group.width for group in groups}
    multiples = {group.name: (unit_multiple(group, channel_multiple), group.always_kept) for group in groups}

    @cache
    def after(rounds: int) -> Present:
        left = simulated_widths(widths, multiples, ratio, rounds)
        removal = {name: list(range(widths[name] - left[name])) for name in left if left[name] < widths[name]}
        return target.present(cut(network, removal)[0] if removal else network)

    if target.expected(target.present(network)):
        return [count(network).macs]
    most, least = 1, {group.name: least_of(group, channel_multiple) for group in groups}
    while not target.expected(after(most)) and simulated_widths(widths, multiples, ratio, most) != least:
        most *= 2
    rounds = 1 + bisect_left(range(1, most), True, key=lambda number: target.expected(after(number)))
    first, last = count(network).macs, (after(rounds - 1).counts.macs + after(rounds).counts.macs) // 2
    return [first + (last - first) * number // rounds for number in range(rounds + 1)]


def is_at_least(network: Network, channel_multiple: int) -> bool:
    """Whether every layer has its least width, so that no round removes anything more."""
    return all(group.width == least_of(group, channel_multiple) for group in filter_groups(network))


def least_of(group: ChannelGroup, channel_multiple: int) -> int:
    """The smallest width that the group may be left with."""
    return least_width(group.width, unit_multiple(group, channel_multiple), group.always_kept)
