"""The report as Markdown, for a person. Torch-free; the JSON is the report, this is a rendering of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from core.block_markdown import blocks_markdown
from core.markdown import table as _table
from core.report import Cost, Latency, Report, TargetResult, Variant

_MIB = 2**20
MAX_CLASSES = 20
"""In the table of classes."""


def to_markdown(report: Report) -> str:
    """The whole report: verdict, before and after, requirements, checks, layers, front, cost, environment, method."""
    parts = [
        "# Pruning report",
        _verdict(report),
        *(_warnings(report.warnings)),
        "## Before and after",
        _before_and_after(report),
        "### Latency",
        _latencies(report.variants),
        *_controls(report),
        *_classes(report),
        "## Targets and requirements",
        _targets(report),
        "## Checks",
        _checks(report),
        "## Layers",
        _layers(report),
        *_frozen(report),
        "## Networks visited",
        _front(report),
        *blocks_markdown(report.blocks),
        "## Cost of pruning",
        _cost(report.cost),
        *_checkpoints(report),
        "## How it was measured",
        _method(report),
        "## Inputs and environment",
        _environment(report),
        "## Again",
        f"```\n{report.reproduce}\n```",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _cost(cost: Cost) -> str:
    cells = [f"{cost.epochs} ({cost.epochs_kept})", f"{cost.epoch_params:,} ({cost.epoch_params_kept:,})",
             f"{cost.images:,}", f"{cost.seconds:,.1f}"]  # fmt: skip
    return "In brackets: without the epochs after the best one of each training.\n\n" + _table(
        ["epochs", "epoch-parameters", "images", "seconds"], [cells]
    )


def _checkpoints(report: Report) -> list[str]:
    if not report.checkpoints:
        return []
    rows = [
        [f"`{kept.name}`", f"{kept.step}", f"{kept.epoch}", f"{kept.validation_accuracy:.2%}", f"{kept.bytes:,}"]
        for kept in report.checkpoints
    ]
    return ["## Checkpoints kept", _table(["file", "step", "epoch", "validation accuracy", "bytes"], rows)]


def _verdict(report: Report) -> str:
    ratios, pruned = report.ratios, report.variants["pruned"]
    drop = ratios["accuracy_drop"] * 100
    change = f"{drop:.2f} points lower" if drop > 0 else f"{-drop:.2f} points higher" if drop < 0 else "unchanged"
    shown = f"test accuracy {pruned.test.accuracy:.2%}, {change}"
    if not _classifies(report):
        shown = ", ".join(f"{_MEASURES[name]} on test {value:.4f}" for name, value in pruned.test.measures.items())
    target = "The target is met." if report.target_met else "**The target is missed.**"
    if not report.requirements:
        required = "Nothing was required."
    elif report.requirements_met:
        required = "All requirements are met."
    else:
        missed = [item.name for item in report.requirements if not item.passed]
        required = f"**Requirements missed: {', '.join(missed)}.**"
    params, macs = (f"{ratios[name]:.0%}" if name in ratios else "–" for name in ("params_ratio", "macs_ratio"))
    return (
        f"{params} of the parameters and {macs} of the MACs remain; "
        f"the latency is {ratios['latency_ratio']:.2f} of the original's; "
        f"{shown}. {target} {required}"
        f"{'' if report.drop_in else ' **The file is no drop-in replacement of the upload.**'}"
    )


def _warnings(warnings: Sequence[str]) -> list[str]:
    return ["\n".join(f"> **Note:** {warning}" for warning in warnings)] if warnings else []


_MEASURES = {"top_5": "top-5 accuracy", "ssim": "SSIM", "l1": "L1", "relative_error": "relative error",
             "cosine": "cosine"}  # fmt: skip
_ACCURACIES = {"reconstruction": "mean SSIM", "imitation": "1 − relative error"}
_Row = tuple[str, Callable[[Variant], float | None], Callable[[float], str]]


def _classifies(report: Report) -> bool:
    return bool(report.recipe.get("task", "classification") == "classification")


def _scores(report: Report) -> list[_Row]:
    """What the task measures: of a classifier accuracies in per cent, of others numbers."""
    splits = (("test", "test"), ("validation", "validation"), ("train", "training"))
    measures = report.variants["original"].test.measures
    if not _classifies(report):
        return [_measure(f"{told} {_MEASURES[name]}", split, name) for name in measures for split, told in splits]
    accuracies = [_score(f"{told} accuracy", split, "accuracy", "{:.2%}") for split, told in splits]
    others = [_measure(f"test {_MEASURES[name]}", "test", name, "{:.2%}") for name in measures]
    return accuracies + others + [_score(f"{told} loss, nats", split, "loss", "{:.4f}") for split, told in splits[:2]]


def _score(told: str, split: str, name: str, form: str) -> _Row:
    return told, lambda variant: getattr(getattr(variant, split), name), form.format


def _measure(told: str, split: str, name: str, form: str = "{:.4f}") -> _Row:
    return told, lambda variant: getattr(variant, split).measures.get(name), form.format


def _before_and_after(report: Report) -> str:
    original, pruned = report.variants["original"], report.variants["pruned"]
    rows: list[_Row] = [
        *_scores(report),
        ("parameters", lambda v: v.params, lambda n: f"{n:,.0f}"),
        ("MACs", lambda v: v.macs, lambda n: f"{n:,.0f}"),
        ("filters", lambda v: v.filters, lambda n: f"{n:,.0f}"),
        *([("residual blocks", lambda v: v.blocks, lambda n: f"{n:,.0f}")] if original.blocks else []),
        ("opset", lambda v: v.opset, lambda n: f"{n:.0f}"),
        ("file, bytes", lambda v: v.file_bytes, lambda n: f"{n:,.0f}"),
        ("latency p50, ms", lambda v: v.latency[0].latency_ms_p50, lambda n: f"{n:.3f}"),
        ("peak memory, MiB", lambda v: v.memory.peak_memory_bytes / _MIB if v.memory else None, lambda n: f"{n:.2f}"),
    ]
    cells = []
    for name, value, text in rows:
        before, after = value(original), value(pruned)
        known = not name.startswith("peak memory") or "peak_memory_ratio" in report.ratios
        change = "–"
        if before is not None and after is not None and known:
            if name.endswith("accuracy"):
                change = f"{(after - before) * 100:+.2f} points"
            elif before and name != "opset":
                change = f"{after / before:.3f}"
        cells.append([name, *("–" if number is None else text(number) for number in (before, after)), change])
    return _table(["", "original", "pruned", "pruned / original"], cells)


def _latencies(variants: Mapping[str, Variant]) -> str:
    cells = []
    for index in range(len(variants["original"].latency)):
        for name, variant in variants.items():
            latency = variant.latency[index]
            cells.append([_setting(latency), name, *_figures(latency)])
    heads = ["setting", "", "p50, ms", "p90, ms", "p99, ms", "mean ± std, ms", "samples", "stable"]
    return _table(heads, cells)


def _controls(report: Report) -> list[str]:
    """The pruned network beside its controls."""
    if not report.controls:
        return []
    rows = []
    differences = {
        item.name: f"{100 * item.accuracy_difference:+.2f} ({100 * item.accuracy_difference_low:+.2f} to "
        f"{100 * item.accuracy_difference_high:+.2f})"
        for item in report.controls
    }
    costs = {"pruned": report.cost, **{item.name: item.cost for item in report.controls}}
    budgets = {"pruned": "the recipe", **{item.name: item.budget for item in report.controls}}
    for name in ("original", "pruned", *differences):
        variant = report.variants[name]
        cost = costs.get(name)
        gap = 100 * (variant.train.accuracy - variant.validation.accuracy)
        rows.append(
            [
                name,
                budgets.get(name, "–"),
                f"{cost.epochs}" if cost else "–",
                f"{cost.epoch_params:,}" if cost else "–",
                f"{variant.params:,}",
                f"{variant.macs:,}",
                f"{variant.train.accuracy:.2%}",
                f"{variant.validation.accuracy:.2%}",
                f"{gap:+.2f}",
                f"{variant.test.accuracy:.2%}",
                differences.get(name, "–"),
            ]
        )
    heads = ["", "training", "epochs", "epoch-parameters", "parameters", "MACs", "training accuracy",
             "validation accuracy", "gap, points", "test accuracy", "pruned − it, points (95 %)"]  # fmt: skip
    method = "Agresti & Min 2005" if _classifies(report) else "of the bootstrap"
    note = (
        "`unpruned`: the original, trained on as long as the pruned network was. `random`: the same steps with units "
        "chosen by chance. `scratch`: the pruned network's structure, trained from random weights. `scratch_standard`: "
        "the original's structure with as many blocks, shared out equally, likewise. All on the same "
        f"data. The interval ({method}) is of the test images, of one training of each: another seed moves the "
        "figures, too."
    )
    if not _classifies(report):
        note += f" Accuracy is {_ACCURACIES[report.recipe['task']]} here."
    return ["## Controls", note + "\n\n" + _table(heads, rows)]


def _classes(report: Report) -> list[str]:
    """Each class before and after, those that lost most first."""
    if report.confusion is None:
        return []
    names, counts = report.confusion.classes, report.confusion.counts
    before, after = counts["original"], counts["pruned"]
    found = []
    for label, name in enumerate(names):
        images, old, new = sum(before[label]), before[label][label], after[label][label]
        wrong = max((number, other) for other, number in enumerate([*after[label], -1]) if other != label)
        taken = f"{names[wrong[1]]} ({wrong[0]})" if wrong[0] > 0 else "–"
        if images:
            found.append((new - old, label, [name, f"{images:,}", f"{old / images:.2%}", f"{new / images:.2%}", taken]))
    heads = ["class", "test images", "right, original", "right, pruned", "pruned takes it most often for"]
    shown = [cells for _, _, cells in sorted(found)[:MAX_CLASSES]]
    note = f"Those that lost most first{f', {MAX_CLASSES} of {len(found)}' if len(found) > MAX_CLASSES else ''}."
    return ["## Classes", note + " report.json has the whole matrix.\n\n" + _table(heads, shown)]


def _setting(latency: Latency) -> str:
    threads = "thread" if latency.threads == 1 else "threads"
    return f"{latency.device}, batch {latency.batch_size}, {latency.threads} {threads}"


def _figures(latency: Latency) -> list[str]:
    return [
        f"{latency.latency_ms_p50:.3f}",
        f"{latency.latency_ms_p90:.3f}",
        f"{latency.latency_ms_p99:.3f}",
        f"{latency.latency_ms_mean:.3f} ± {latency.latency_ms_std:.3f}",
        f"{len(latency.samples_ms)}",
        "yes" if latency.stable else "**no**",
    ]


def _targets(report: Report) -> str:
    rows = [
        [f"target {target.name}", f"at most {target.target:g}", _reached(target), _mark(target.met)]
        for target in report.targets
    ]
    rows += [
        [
            f"requirement {item.name}",
            item.required,
            item.note or "–" if item.measured is None else f"{item.measured:.6g}",
            _mark(item.passed),
        ]
        for item in report.requirements
    ]
    return _table(["", "asked", "measured", "met"], rows)


def _reached(target: TargetResult) -> str:
    if target.low is None or target.high is None:
        return f"{target.reached:.6g}"
    return f"{target.reached:.4g} ({target.low:.4g} to {target.high:.4g}, 95 %)"


def _checks(report: Report) -> str:
    rows = [
        [check.name, f"{check.error:.3g}", f"{check.bound:.3g}", f"{check.images}", _mark(check.passed)]
        for check in report.checks
    ]
    note = (
        "Exactness: the cut network against the uncut one with the removed channels zeroed, in float64. Parity: ONNX "
        "Runtime against torch. The error is the greatest absolute difference over the greatest absolute output."
    )
    return note + "\n\n" + _table(["check", "error", "bound", "images", "passed"], rows)


def _layers(report: Report) -> str:
    def pair(before: float | None, after: float | None, form: str) -> str:
        if before is None or after is None:
            return "–"
        same = format(before, form) == format(after, form)
        return format(before, form) if same else f"{before:{form}} → {after:{form}}"

    rows = [
        [
            f"`{layer.name}`",
            layer.kind,
            pair(layer.channels_before, layer.channels_after, ","),
            pair(layer.params_before, layer.params_after, ","),
            pair(layer.macs_before, layer.macs_after, ","),
            pair(layer.latency_ms_before, layer.latency_ms_after, ".4f"),
        ]
        for layer in report.layers
    ]
    return _table(["layer", "kind", "channels", "parameters", "MACs", "ms (profiled)"], rows)


def _frozen(report: Report) -> list[str]:
    if not report.frozen:
        return []
    rows = [
        [", ".join(f"`{name}`" for name in item.layers), item.reason, item.operator, f"`{item.node}`"]
        for item in report.frozen
    ]
    return ["### Not cut", _table(["layers", "reason", "operator", "node"], rows)]


def _front(report: Report) -> str:
    """Accuracy is what the task takes for it. Bytes and latency are there where a target asks for them."""
    has_bytes = any(point.file_bytes is not None for point in report.front)
    has_latency = any(point.latency is not None for point in report.front)
    has_blocks = any(point.blocks for point in report.front)
    rows = []
    for point in report.front:
        row = [f"{point.step}", f"{point.round}", f"{point.params:,}", f"{point.macs:,}", f"{point.filters:,}"]
        if has_blocks:
            row.append(f"{point.blocks}")
        if has_bytes:
            row.append("–" if point.file_bytes is None else f"{point.file_bytes:,}")
        if has_latency:
            told = point.latency
            row.append("–" if told is None else f"{told.ratio:.3f} ({told.low:.3f} to {told.high:.3f})")
        rows.append([*row, "–" if point.validation_accuracy is None else f"{point.validation_accuracy:.2%}"])
    heads = ["step", "round", "parameters", "MACs", "filters"] + ["blocks"] * has_blocks
    heads += ["file, bytes"] * has_bytes + ["latency ratio (95 %)"] * has_latency
    last = "validation accuracy"
    if not _classifies(report):
        last = f"validation, {_ACCURACIES[report.recipe['task']]}"
    return _table([*heads, last], rows)


def _method(report: Report) -> str:
    latency = report.variants["pruned"].latency[0]
    items = [
        f"Accuracy and loss: the ONNX files in {latency.runtime}, on {report.variants['pruned'].validation.images:,} "
        f"validation and {report.variants['pruned'].test.images:,} test images.",
        "Latency: samples of all networks taken in turns in one process, repeated until the medians of three "
        "windows in a row agree within 10 %, else marked unstable; the raw samples are in report.json.",
        "Peak memory: resident bytes of a fresh process at its peak, over those of an empty session; medians of "
        "several processes. Where it is below the noise, the spread of the processes, no ratio is given.",
        f"MACs: one multiply-accumulate counts 1, at a batch of one. Counted: {', '.join(report.macs_counted)}. "
        f"Not counted: {', '.join(report.macs_not_counted)}.",
        "Milliseconds per layer: ONNX Runtime's profile, with what it fused into the layer. Shares, not a latency.",
    ]
    return "\n".join(f"- {item}" for item in items)


def _environment(report: Report) -> str:
    model = report.inputs.get("model", {})
    rows = [["model, sha256", f"`{model.get('sha256', '–')}`"]]
    if "weights" in report.inputs:
        rows.append(["weights, sha256", f"`{report.inputs['weights'].get('sha256', '–')}`"])
    for dataset in report.inputs.get("datasets", []):
        rows.append([f"dataset ({dataset.get('format', '–')}), sha256", f"`{dataset.get('sha256') or 'built in'}`"])
    for key, value in report.environment.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        rows.append([key.replace("_", " "), "–" if value is None else f"{value}"])
    return _table(["", ""], rows)


def _mark(passed: bool) -> str:
    return "yes" if passed else "**no**"
