"""What the commands print for people: tables of records, and the one of before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from billhook.keys import Key
from billhook.results import Dataset, Job, Model, RecipeInfo, Report, RequirementResult, Worker


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == "id", overflow="fold")
    return table


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """Seconds as 0:07, 12:34 or 3:00:00."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def moment(time: datetime | None) -> str:
    """A time in this machine's zone."""
    return "-" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def models(items: Iterable[Model]) -> Table:
    table = _table("id", "state", "file", "format", "size", "uploaded")
    for each in items:
        table.add_row(
            each.id, each.state, each.filename or "-", each.format or "-", size(each.bytes), moment(each.created_at)
        )
    return table


def datasets(items: Iterable[Dataset]) -> Table:
    table = _table("id", "state", "data", "format", "size", "added")
    for each in items:
        source = each.filename or each.uri or "-"
        table.add_row(each.id, each.state, source, each.format or "-", size(each.bytes), moment(each.created_at))
    return table


def jobs(items: Iterable[Job]) -> Table:
    table = _table("id", "state", "stage", "done", "name", "tags", "created")
    for each in items:
        table.add_row(
            each.id, each.state, each.stage or "-", percent(each.progress), each.name or "-",
            ", ".join(each.tags) or "-", moment(each.created_at),
        )  # fmt: skip
    return table


def keys(items: Iterable[Key]) -> Table:
    table = _table("id", "state", "name", "owner", "scopes", "ends", "last used")
    for each in items:
        ends = "never" if each.expires_at is None else moment(each.expires_at)
        table.add_row(
            each.id, each.state, each.name, each.owner, ", ".join(each.scopes) or "-", ends, moment(each.last_used_at)
        )
    return table


def recipes(items: Iterable[RecipeInfo]) -> Table:
    table = _table("name", "what it does")
    for each in items:
        table.add_row(each.name, each.description or "-")
    return table


def workers(items: Iterable[Worker]) -> Table:
    table = _table("name", "host", "serves", "device", "state", "works on", "version", "seen")
    for each in items:
        table.add_row(
            each.name, each.host, ", ".join(each.queues), each.device or "-", each.state,
            each.works_on or ("busy" if each.busy else "-"), each.version or "-", moment(each.seen_at),
        )  # fmt: skip
    return table


FIRST = ("id", "name", "filename", "uri", "state", "stage", "progress", "eta_seconds", "error", "refusal", "results")
"""Of a record, what somebody looks for."""


def record(document: Mapping[str, Any], *, without: Sequence[str] = ()) -> Text:
    """A model, a dataset or a job: as `fields`, what one looks for first, and not the fields `without`."""
    names = [name for name in FIRST if name in document] + [name for name in document if name not in FIRST]
    return fields({name: document[name] for name in names if name not in without})


def fields(document: Mapping[str, Any]) -> Text:
    """Names and values, nested ones indented. Empty ones are left out."""
    return Text("\n".join(_lines(document)))


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        lines: list[str] = []
        for name, item in value.items():
            nested = _lines(item)
            if len(nested) == 1 and not isinstance(item, Mapping):
                lines.append(f"{name}: {nested[0]}")
            elif nested:
                lines += [f"{name}:", *(f"  {line}" for line in nested)]
        return lines
    if isinstance(value, Sequence) and not isinstance(value, str):
        if all(not isinstance(item, (Mapping, list)) for item in value):
            return [", ".join(_scalar(item) for item in value)] if value else []
        items = [_lines(item) for item in value]
        return [f"{'- ' if first else '  '}{line}" for item in items for first, line in _marked(item)]
    return [] if value is None else _scalar(value).splitlines()


def _scalar(value: Any) -> str:
    """As YAML and JSON write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _marked(lines: list[str]) -> list[tuple[bool, str]]:
    return [(number == 0, line) for number, line in enumerate(lines)]


# --- before and after ------------------------------------------------------------------------------------------------


def report(report: Report) -> RenderableType:
    """The table of before and after, and below it what was required and what the report warns of."""
    before, after = report.variants.get("original", {}), report.variants.get("pruned", {})
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("original", "pruned", "change"):
        table.add_column(column, justify="right")
    for split in ("test", "validation"):
        for label, old, new in _scores(report, before, after, split):
            if old is not None and new is not None:
                table.add_row(label, f"{old:.2%}", f"{new:.2%}", f"{100 * (new - old):+.2f} points")
    sizes = (("params", "parameters"), ("macs", "MACs"), ("filters", "filters"), ("blocks", "residual blocks"))
    for name, label in sizes if _at(before, "blocks") else sizes[:3]:
        _row(table, label, _at(before, name), _at(after, name), "{:,}".format)
    _row(table, "file", _at(before, "file_bytes"), _at(after, "file_bytes"), size)
    for old, new in _latencies(before, after):
        label = f"latency, {old['device']}, batch {old['batch_size']}, {old['threads']} thread(s), p50"
        if not (old.get("stable", True) and new.get("stable", True)):
            label += ", unstable"
        _row(table, label, old.get("latency_ms_p50"), new.get("latency_ms_p50"), "{:.3f} ms".format)
    old, new = (_at(each, "memory", "peak_memory_bytes") for each in (before, after))
    _row(table, "peak memory", old, new, size, told="peak_memory_ratio" in report.ratios)

    parts: list[RenderableType] = [table]
    if controls := report.raw.get("controls"):
        parts += [Text(""), _controls(report, controls)]
    lines = [
        f"{'met   ' if each.passed else 'MISSED'}  {each.name}: {_measured(each)}, required {each.required}"
        for each in report.requirements
    ]
    if not report.target_met:
        missed = [target for target in report.raw.get("targets", []) if not target.get("met", True)]
        told = ", ".join(f"{each['name']} {_reached(each)}, asked {each['target']:g}" for each in missed)
        lines.append(f"the recipe's target was not met{': ' if told else ''}{told}")
    lines += [f"warning: {warning}" for warning in report.raw.get("warnings", [])]
    if lines:
        parts.append(Text("\n" + "\n".join(lines)))
    return Group(*parts)


MEASURES = {"top_5": "top-5 accuracy", "ssim": "SSIM", "l1": "L1", "relative_error": "relative error"}


def _scores(report: Report, before: Any, after: Any, split: str) -> list[tuple[str, Any, Any]]:
    """What the task measures: of a classifier its accuracy first, else only what is measured in its place."""
    classifies = _at(report.raw, "recipe", "task") in (None, "classification")
    found = [(f"accuracy, {split}", *(_at(each, split, "accuracy") for each in (before, after)))] if classifies else []
    for name in _at(before, split, "measures") or {}:
        values = (_at(each, split, "measures", name) for each in (before, after))
        found.append((f"{MEASURES.get(name, name)}, {split}", *values))
    return found


def _reached(target: Mapping[str, Any]) -> str:
    """With its interval, where it was measured."""
    low, high = target.get("low"), target.get("high")
    return f"{target['reached']:.4g}" + ("" if low is None or high is None else f" ({low:.4g} to {high:.4g})")


def _controls(report: Report, controls: Sequence[Mapping[str, Any]]) -> Table:
    """What the pruned network is held against; differences with their 95 % interval."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("control", "epochs", "parameters", "MACs", "accuracy, test", "pruned is better by"):
        table.add_column(column, justify="left" if column == "control" else "right")
    for control in controls:
        accuracy = _at(report.variants, control["name"], "test", "accuracy")
        middle, low, high = (100 * control[f"accuracy_difference{end}"] for end in ("", "_low", "_high"))
        table.add_row(
            str(control["name"]),
            str(_at(control, "cost", "epochs")),
            *(_count(_at(report.variants, control["name"], name)) for name in ("params", "macs")),
            "-" if accuracy is None else f"{accuracy:.2%}",
            f"{middle:+.2f} points ({low:+.2f} to {high:+.2f})",
        )
    return table


def _count(number: Any) -> str:
    return "-" if number is None else f"{number:,}"


def _row(table: Table, label: str, old: Any, new: Any, form: Any, *, told: bool = True) -> None:
    """`told`: whether the two can be told apart, so that there is a change to speak of."""
    if old is not None and new is not None:
        table.add_row(label, form(old), form(new), f"× {new / old:.3f}" if old and told else "-")


def _at(document: Any, *path: str) -> Any:
    for name in path:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document


def _latencies(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    def setting(each: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(each.get(name) for name in ("device", "runtime", "batch_size", "threads"))

    pruned = {setting(each): each for each in after.get("latency") or []}
    return [(each, pruned[setting(each)]) for each in before.get("latency") or [] if setting(each) in pruned]


def _measured(result: RequirementResult) -> str:
    return result.note or "unknown" if result.measured is None else f"{result.measured:.4g}"
