"""What a model is made of, for people: tables of its layers, channel groups, blocks, and of what is frozen and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from billhook.cli import tables
from billhook.results import Graph, GraphBlock, GraphBranch, Model

SHOWN_NAMES = 3
"""Of a long list of layers."""
SIZES = {"params": "parameters", "macs": "MACs", "filters": "filters"}
KINDS = {"residual_blocks": "residual blocks", "branch_blocks": "blocks of branches", "plain_layers": "plain layers"}
BLOCK_COLUMNS = (
    "block", "kind", "input", "output", "params", "MACs", "shortcut", "alike", "inside", "can be bypassed",
)  # fmt: skip


def model(found: Model, whole: Graph) -> RenderableType:
    """The record, and below it all tables."""
    return Group(record(found, whole.totals), Text(""), graph(whole, tuple(SECTIONS)))


def record(found: Model, counts: Mapping[str, Any] | None = None) -> RenderableType:
    """The record, with the counts of its graph (`counts`, or those of the summary) in two lines."""
    summary = dict(found.summary or {})
    counts = counts or summary.get("graph")
    summary.pop("graph", None)
    shown = tables.record({**found.raw, "summary": summary or None})
    return Group(shown, Text(""), totals(counts)) if counts else shown


def totals(counts: Mapping[str, Any]) -> Text:
    """The counts, in two lines."""
    free, free_conv = (_percent(counts.get(f"free_{name}_share")) for name in ("params", "conv_params"))
    sizes = [f"{counts.get(name, 0):,} {label}" for name, label in SIZES.items()]
    kinds = [f"{counts.get(name, 0):,} {label}" for name, label in KINDS.items()]
    lines = [
        f"{', '.join(sizes)}; free to go: {free} of the parameters, {free_conv} of those of convolutions",
        f"{counts.get('cuttable_groups', 0):,} of {counts.get('groups', 0):,} channel groups can be cut; "
        f"{', '.join(kinds)}",
    ]
    return Text("\n".join(lines))


def graph(whole: Graph, sections: Sequence[str]) -> RenderableType:
    """The tables of `sections`, each under its title."""
    parts: list[RenderableType] = []
    for name in sections:
        title, table = SECTIONS[name]
        parts += [Text("")] if parts else []
        parts += [Text(title, style="bold underline"), table(whole)]
    return Group(*parts)


def layers(whole: Graph) -> Table:
    table = _table("layer", "kind", "input", "output", "params", "MACs", "channel group", "")
    for each in whole.layers:
        table.add_row(
            each.name, each.kind, shape(each.input_shape), shape(each.output_shape), f"{each.params:,}",
            f"{each.macs:,}", names(each.groups), "frozen" if each.frozen else "",
        )  # fmt: skip
    return table


def groups(whole: Graph) -> Table:
    table = _table("channel group", "units", "of channels", "can be cut", "layers")
    for each in whole.groups:
        kept = f", {each.always_kept} more stay" if each.always_kept else ""
        parts = {"made by": each.producers, "carried by": each.carriers, "read by": each.consumers}
        table.add_row(
            each.name, str(each.width), str(each.unit_channels), f"yes{kept}" if each.cuttable else "frozen",
            "\n".join(f"{title} {names(layers)}" for title, layers in parts.items() if layers),
        )  # fmt: skip
    return table


def blocks(whole: Graph) -> Table:
    table = _table(*BLOCK_COLUMNS)
    for each in whole.blocks:
        table.add_row(
            each.name, each.kind, shape(each.input_shape), shape(each.output_shape), f"{each.params:,}",
            f"{each.macs:,}", each.shortcut or "-", each.alike if each.alike != each.name else "-",
            each.inside or "-", _bypass(each),
        )  # fmt: skip
        for branch in each.branches:
            table.add_row(
                f"  {branch.name}", "branch", "", "", f"{branch.params:,}", f"{branch.macs:,}", "", "", "",
                _bypass(branch),
            )  # fmt: skip
    return table


def frozen(whole: Graph) -> Table:
    table = _table("operator", "node", "reason", "layers")
    for each in whole.frozen:
        table.add_row(each.operator, each.node, each.reason, names(each.layers))
    return table


SECTIONS: Mapping[str, tuple[str, Callable[[Graph], Table]]] = {
    "layers": ("Layers", layers),
    "groups": ("Channel groups: what is removed together", groups),
    "blocks": ("Blocks, branches and plain layers", blocks),
    "frozen": ("Frozen: what may not be removed, and why", frozen),
}


def shape(sizes: Sequence[int]) -> str:
    return "×".join(str(size) for size in sizes)


def names(found: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(found[:SHOWN_NAMES])
    return f"{shown} and {len(found) - SHOWN_NAMES} more" if len(found) > SHOWN_NAMES else shown or "-"


def _bypass(each: GraphBlock | GraphBranch) -> str:
    return "yes" if each.bypassable else f"no: {each.reason}"


def _percent(share: float | None) -> str:
    """Never 100 % where a little is missing."""
    return "-" if share is None else f"{int(1000 * share) / 10:g} %"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in NUMBERS else "left", overflow="fold")
    return table


NUMBERS = frozenset({"params", "MACs", "units", "of channels"})
