"""What `billhook prune --dry-run` prints for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from billhook.cli.tables import duration, size
from billhook.dry_run_results import DryRunReport, Estimate, Foreseen, LayerCut


def dry_run(report: DryRunReport) -> RenderableType:
    """Layers before and after, totals, and below them what is required, what it would cost, what cannot be known."""
    lines = [_requirement(each) for each in report.requirements]
    if not report.target_met:
        missed = [each for each in report.raw.get("targets", []) if not each.get("met", True)]
        told = ", ".join(f"{each['name']} {each['reached']:.4g}, asked {each['target']:g}" for each in missed)
        lines.append(f"the recipe's target would not be met{': ' if told else ''}{told}")
    lines += [
        f"step {each.step} removes, in this order: {', '.join(each.blocks)}" for each in report.steps if each.blocks
    ]
    lines += _cost(report.estimate)
    lines += [f"assumed: {each}" for each in report.assumptions]
    lines += [f"warning: {each}" for each in report.warnings]
    tables = [each for each in (_layers(report), _totals(report)) if each is not None]
    parts: list[RenderableType] = []
    for table in tables:
        parts += [table, Text("")]
    return Group(*parts, Text("\n".join(lines)))


def _layers(report: DryRunReport) -> Table | None:
    """Each layer that changes, all steps together."""
    first: dict[str, LayerCut] = {}
    last: dict[str, LayerCut] = {}
    for step in report.steps:
        for layer in step.layers:
            first.setdefault(layer.name, layer)
            last[layer.name] = layer
    if not first:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("layer", "kind", "channels", "weights", "parameters", "MACs"):
        table.add_column(column, justify="left" if column in ("layer", "kind") else "right", overflow="fold")
    for name, before in first.items():
        after = last[name]
        table.add_row(
            Text(name), before.kind, _change(before.channels_before, after.channels_after),
            f"{_shape(before.weight_before)} → {_shape(after.weight_after)}",
            _change(before.params_before, after.params_after), _change(before.macs_before, after.macs_after),
        )  # fmt: skip
    return table


def _shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes)) or "-"


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"


def _totals(report: DryRunReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("original", "pruned", "change"):
        table.add_column(column, justify="right")
    old, new = report.original, report.pruned
    for name, label in (("params", "parameters"), ("macs", "MACs"), ("filters", "filters")):
        row = (f"{getattr(old, name):,}", f"{getattr(new, name):,}")
        table.add_row(label, *row, _ratio(report, name))
    if old.blocks:
        table.add_row("residual blocks", f"{old.blocks:,}", f"{new.blocks:,}", f"× {new.blocks / old.blocks:.3f}")
    table.add_row("file", size(old.file_bytes), size(new.file_bytes), _ratio(report, "file_bytes"))
    if report.latency is not None:
        found = report.latency
        table.add_row(
            "latency, cpu, 1 thread", f"{found.original_ms:.3f} ms", f"{found.candidate_ms:.3f} ms",
            f"× {found.ratio:.3f} ({found.low:.3f} to {found.high:.3f})",
        )  # fmt: skip
    return table


def _ratio(report: DryRunReport, name: str) -> str:
    ratio = report.ratios.get(f"{name}_ratio")
    return "-" if ratio is None else f"× {ratio:.3f}"


def _requirement(requirement: Foreseen) -> str:
    verdict = {True: "holds  ", False: "MISSED ", None: "unknown"}[requirement.holds]
    value = "" if requirement.value is None else f"{requirement.value:.4g}, "
    note = "" if requirement.note is None else f" ({requirement.note})"
    return f"{verdict} {requirement.name}: {value}required {requirement.required}{note}"


def _cost(estimate: Estimate) -> list[str]:
    epochs = _range(f"{estimate.epochs}", f"{estimate.epochs_low}", f"{estimate.epochs_high}")
    lines = [f"cost: {epochs} epochs, {estimate.images:,} images, {estimate.epoch_params:,} epoch-parameters"]
    if len(estimate.spending) > 1:
        lines += [f"  {each.part}: {each.epochs} epochs, {each.images:,} images" for each in estimate.spending]
    if estimate.estimated_seconds is None:
        return [*lines, "time: not known here"]
    ends = (estimate.estimated_seconds_low, estimate.estimated_seconds_high)
    told = _range(duration(estimate.estimated_seconds), *(duration(end) for end in ends))
    return [*lines, f"time: about {told} on {estimate.device} with {estimate.threads} thread(s)"]


def _range(middle: str, low: str, high: str) -> str:
    return middle if low == middle == high else f"{middle} ({low} to {high})"
