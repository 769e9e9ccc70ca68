"""The report's section about steps that remove blocks, as Markdown. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from core.block_report import BlockAnalysis, BlockComparison
from core.markdown import table


def blocks_markdown(analyses: Sequence[BlockAnalysis]) -> list[str]:
    """Paragraphs; none where no step removes blocks."""
    if not analyses:
        return []
    note = (
        "`blocks.svg` shows this, and report.json has every score and ranking. A ranking is what was removed, in "
        "order, then the rest by score; tau is Kendall's tau-b of two of them: 1 for the same order, -1 for the "
        "opposite."
    )
    found = ["## Blocks removed", note]
    for analysis in analyses:
        found += [f"### Step {analysis.step}, {_run(analysis)}", _sentences(analysis), _rounds(analysis)]
        if analysis.comparison is not None and analysis.comparison.agreements:
            found += [comparison_markdown(analysis.comparison)]
    return found


def _run(analysis: BlockAnalysis) -> str:
    control = "the control random" if analysis.run == "random" else f"saliency {analysis.saliency}"
    left = sum(analysis.rounds[-1].left.values()) if analysis.rounds else len(analysis.blocks)  # a unit may be several
    return f"{control}: {len(analysis.blocks) - left} of {len(analysis.blocks)} blocks"


def _sentences(analysis: BlockAnalysis) -> str:
    told = [f"Order of removal: {', '.join(f'`{unit}`' for unit in analysis.order)}."]
    undone = len(analysis.rounds) - analysis.rounds_kept
    if undone:
        told.append(f"The last {undone} round(s) were taken back by max_accuracy_drop.")
    if any(round.scored_after < round.round - 1 for round in analysis.rounds):
        told.append("Rounds whose scores are older say so: they went by the scores of an earlier, larger network.")
    if analysis.correlation is not None:
        told.append(
            f"Validation accuracy before and after the {analysis.fine_tunings} whole fine-tunings: Pearson's "
            f"correlation {analysis.correlation:.2f}."
        )
    return " ".join(told)


def _rounds(analysis: BlockAnalysis) -> str:
    groups = list(dict.fromkeys(analysis.blocks.values()))
    rows = []
    for round, ranking in zip(analysis.rounds, analysis.rankings, strict=False):
        removed = ", ".join(f"`{unit}`" for unit in round.removed)
        old = "" if round.scored_after == round.round - 1 else f" (scored after round {round.scored_after})"
        rows.append(
            [
                f"{round.round}", f"{removed}{old}", *(f"{round.left.get(group, 0)}" for group in groups),
                f"{1 - round.params / analysis.params:.2%}", _share(round.accuracy_before), _share(round.accuracy_cut),
                _share(round.accuracy_tuned), f"{round.epochs}" if round.epochs else "–", _tau(ranking.tau_final),
            ]
        )  # fmt: skip
    heads = ["round", "removed", *groups, "parameters removed", "validation accuracy before", "without it",
             "fine-tuned", "epochs", "tau to the final ranking"]  # fmt: skip
    return table(heads, rows)


def comparison_markdown(comparison: BlockComparison) -> str:
    """A table, a row for each number of blocks removed."""
    rows = [
        [f"{each.removed}", _share(each.overlap), _tau(each.tau), _tau(each.tau_order)]
        for each in comparison.agreements
    ]
    heads = ["blocks removed", "the same ones", "tau of the rankings", "tau of the order of removal"]
    return f"Against {comparison.with_run}:\n\n" + table(heads, rows)


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"


def _tau(tau: float | None) -> str:
    return "–" if tau is None else f"{tau:.2f}"
