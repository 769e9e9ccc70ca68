"""What the rounds of steps that remove blocks say, as a picture: SVG, the same bytes for the same rounds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from core.block_report import BlockAnalysis, BlockHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 10.0, 7.0
"""Inches, of each step."""
STYLES: Mapping[str, str] = {"pruned": "-", "random": ":"}


def blocks_svg(analyses: Sequence[BlockAnalysis]) -> bytes:
    """A figure for each step, one below the other, the control random dotted in it: blocks of each group by round
    (section 3.3.5), accuracy against parameters removed (figure 3.13), when each block went, and Kendall's tau by round
    (section 3.3.1). No name of the network is in it."""
    import matplotlib  # it takes a second, and only jobs that remove blocks need it
    from matplotlib.figure import Figure

    steps = [list(runs) for _, runs in groupby(analyses, key=lambda each: each.step)]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "billhook"
        figure = Figure(figsize=(WIDTH, HEIGHT * len(steps)), layout="constrained")
        parts = figure.subfigures(len(steps), 1, squeeze=False)[:, 0]
        for part, runs in zip(parts, steps, strict=True):
            part.suptitle(f"step {runs[0].step}, saliency {runs[0].saliency}")
            (groups, accuracy), (order, taus) = part.subplots(2, 2)
            _draw_groups(groups, runs)
            _draw_accuracy(accuracy, runs)
            _draw_order(order, runs[0])
            _draw_taus(taus, runs[0])
            for axis in (groups.xaxis, groups.yaxis, order.xaxis, order.yaxis, taus.xaxis):
                axis.get_major_locator().set_params(integer=True)
            for axes in (groups, accuracy, order, taus):
                axes.grid(alpha=0.3)
                if axes.get_legend_handles_labels()[0]:
                    axes.legend(fontsize="small")
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return content.getvalue()


def _draw_groups(axes: Axes, runs: Sequence[BlockAnalysis]) -> None:
    axes.set(title="blocks of each group", xlabel="round", ylabel="blocks left")
    groups = list(dict.fromkeys(runs[0].blocks.values()))
    for run in runs:
        for index, group in enumerate(groups):
            left = [list(run.blocks.values()).count(group), *(round.left.get(group, 0) for round in run.rounds)]
            axes.plot(range(len(left)), left, STYLES[run.run], color=f"C{index}", label=_told(group, run))


def _draw_accuracy(axes: Axes, runs: Sequence[BlockAnalysis]) -> None:
    axes.set(
        title="accuracy against parameters removed", xlabel="parameters removed, %", ylabel="validation accuracy, %"
    )
    for index, run in enumerate(runs):
        removed = [100 * (1 - round.params / run.params) for round in run.rounds]
        cut = [_percent(round.accuracy_cut) for round in run.rounds]
        colour = f"C{index}"
        axes.plot([0.0, *removed], [_percent(run.accuracy), *cut], f"o{STYLES[run.run]}", color=colour, mfc="none",
                  label=_told("before fine-tuning", run))  # fmt: skip
        tuned = [
            (x, _percent(round.accuracy_tuned))
            for x, round in zip(removed, run.rounds, strict=True)
            if round.accuracy_tuned is not None
        ]
        if tuned:
            axes.plot(*zip(*tuned, strict=True), "s", color=colour, label=_told("after fine-tuning", run))


def _draw_order(axes: Axes, run: BlockAnalysis) -> None:
    axes.set(title="when each block went", xlabel="block, in execution order", ylabel="place in the order of removal")
    position = {name: place for place, name in enumerate(run.blocks, start=1)}
    axes.set_xlim(0, len(position) + 1)
    for index, group in enumerate(dict.fromkeys(run.blocks.values())):
        points = [
            (position[name], place)
            for place, unit in enumerate(run.order, start=1)
            for name in _blocks_of(unit, run)
            if run.blocks[name] == group
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=f"C{index}", label=group)


def _blocks_of(unit: str, history: BlockHistory) -> list[str]:
    """A block, or with replacement the neighbours a+b."""
    return [unit] if unit in history.blocks else [name for name in unit.split("+") if name in history.blocks]


def _draw_taus(axes: Axes, run: BlockAnalysis) -> None:
    axes.set(title="Kendall's tau of the ranking", xlabel="blocks removed", ylabel="tau", ylim=(-1.05, 1.05))
    for told, points in {
        "against the final one": [(each.removed, each.tau_final) for each in run.rankings],
        "against the one before": [(each.removed, each.tau_previous) for each in run.rankings],
        "against random": [(each.removed, each.tau) for each in run.comparison.agreements] if run.comparison else [],
    }.items():
        known = [(x, tau) for x, tau in points if tau is not None]
        if known:
            axes.plot(*zip(*known, strict=True), "o-", markersize=3, label=told)


def _told(what: str, run: BlockAnalysis) -> str:
    return what if run.run == "pruned" else f"{what}, {run.run}"


def _percent(accuracy: float | None) -> float:
    return float("nan") if accuracy is None else 100 * accuracy
