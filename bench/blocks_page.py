"""The page of `bench.blocks`: tables of what there is, beside the thesis' numbers, what is missing and what failed."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.blocks_findings import LEAST, MARGIN, UNRELATED, judged
from bench.blocks_results import BySeed, Results, mean_and_error
from bench.blocks_rows import SALIENCIES, Row, Study
from bench.blocks_thesis import Line, Section, sections

NOTHING = "–"
HEADING = """# Blocks: the thesis' comparisons

Made by `{command}`; every round of every run is in `{raw}`. **ResNet-{depth}, {images}, {epochs} epochs where the
thesis (Velici 2022, chapters 3 and 4: ResNet-110, CIFAR-10) has 50{small}.** The networks that are pruned were
trained for {original} epochs, not 500. *Half*: {half} of {blocks} blocks are left, in the thesis 27 of 54; *most* gone:
{most} are, in the thesis 9. Errors are on {test} test images. Unlike the thesis' networks, ours have their BatchNorm
statistics measured afresh after each removal. Costs are million epoch-parameters up to the best epoch of each
fine-tuning (section 3.5.1). Mean ± standard error of {seeds} networks, trained from different random weights.
{machine}.

"""
RULES = f"""Differences are taken network by network; m is their mean, s its standard error; {LEAST} networks are needed
at least. *Less* (<) is confirmed where m > 2 s, not confirmed where m < -2 s. *Close* (≈) is confirmed where |m| + 2 s
is at most {MARGIN:g} point, not confirmed where |m| - 2 s is above. Unrelated orders: the same, with a tau of
{UNRELATED:g}. A finding of several claims is confirmed where all are, and not confirmed where one is not. Everything
else is too little to tell.
"""


def page(results: Results, rows: Sequence[Row], seeds: Sequence[int], *, command: str, raw: str) -> str:
    """The whole page. `command`: that made it, and goes on where something is missing."""
    study = results.study
    parts = [
        HEADING.format(
            command=command,
            raw=raw,
            depth=study.depth,
            images=f"{'all ' if study.is_whole else ''}{study.images:,} images of Fashion-MNIST",
            small="" if study.is_whole else ": small, so that a CPU can do it",
            epochs=study.epochs,
            original=study.original_epochs,
            half=study.targets["half"],
            most=study.targets["most"],
            blocks=study.blocks,
            test=f"{min(study.images, 10_000):,}",
            seeds=len(seeds),
            machine=machine(study),
        ),
        missing(results, rows, seeds, command),
        failures(results, rows),
        f"The networks before pruning: {_number(originals(results))} % error.\n",
        "## Findings\n",
        RULES,
        findings_table(results),
        "## Without fine-tuning, error after each block removed\n",
        "Figure 3.7, section 3.3.2: the oracle best, random and weights mean worst.\n",
        untuned_table(results),
        "## Agreement with the oracle\n",
        "Kendall's tau of the rankings with the oracle's, after so many rounds (figures 3.6, 3.8 and 3.16); 1: the "
        "same, 0: unrelated. The thesis' numbers are in the figures alone.\n",
        agreement_table(results),
        *(part for section in sections(study) for part in section_parts(results, section)),
    ]
    return "\n".join(part for part in parts if part)


def machine(study: Study) -> str:
    chip = platform.processor() or platform.machine()
    if study.device.startswith("cuda") and torch.cuda.is_available():
        chip = torch.cuda.get_device_name(torch.device(study.device))
    return f"{chip}, {os.cpu_count()} cores, torch {torch.__version__}"


def missing(results: Results, rows: Sequence[Row], seeds: Sequence[int], command: str) -> str:
    """Which rows have not been run on all networks, and how to go on."""
    found = []
    for row in rows:
        lacking = [seed for seed in seeds if results.status(row.name, seed) is None]
        if lacking:
            found.append(row.name if len(lacking) == len(seeds) else f"{row.name} ({_seeds(lacking)})")
    if not found:
        return ""
    return f"**Not complete**: {len(found)} of {len(rows)} rows are missing; `{command}` goes on. {', '.join(found)}.\n"


def failures(results: Results, rows: Sequence[Row]) -> str:
    """Rows that raised, with what they said."""
    lines = [
        f"- {row.name} ({_seeds(seeds)}): {error.splitlines()[0] if error else error}"
        for row in rows
        for error, seeds in results.errors(row.name).items()
    ]
    return "\n".join(["**Failed**:", "", *lines, ""]) if lines else ""


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {', '.join(map(str, seeds))}"


def originals(results: Results) -> BySeed:
    """Error on test of the trained networks, %."""
    found: BySeed = {}
    for row in results.found:
        found |= results.by_seed(row, lambda result: 100 * result["original_test_error"])
    return found


def findings_table(results: Results) -> str:
    cells = [[told, source, f"**{verdict}**", numbers] for told, source, verdict, numbers in judged(results)]
    return _table(["the thesis found", "section", "here", "differences, other - one"], cells)


def untuned_table(results: Results) -> str:
    study = results.study
    left = range(study.blocks - 1, study.targets["most"] - 1, -1)
    cells = []
    for name in (*SALIENCIES, "oracle-every-2", "oracle-every-4", "oracle-once"):
        errors = [_number(results.error(f"none/{name}", blocks)) for blocks in left]
        gone = _number(results.removed_params(f"none/{name}", study.targets["half"]), ".0f")
        cells.append(
            [f"`{name}`" if name in SALIENCIES else name.replace("-", ", ", 1).replace("-", " "), *errors, gone]
        )
    heads = ["", *(f"{study.blocks - blocks} gone" for blocks in left), "% of parameters gone at half"]
    return _table(heads, cells)


def agreement_table(results: Results) -> str:
    study = results.study
    steps = range(study.blocks - study.targets["half"])
    names = {f"none/{name}": f"`{name}`" for name in SALIENCIES if name != "oracle"}
    names |= {f"none/oracle-{name}": f"oracle, {name.replace('-', ' ')}" for name in ("every-2", "every-4", "once")}
    names |= {f"checkpoint-{epoch}/half": f"oracle, after {epoch} epochs of training" for epoch in study.checkpoints}
    cells = [[told, *(_number(results.agreement(row, step)) for step in steps)] for row, told in names.items()]
    return _table(["", *(f"{step} gone" for step in steps)], cells)


def section_parts(results: Results, section: Section) -> list[str]:
    heads = [
        "",
        "half: error, %",
        "cost",
        "parameters gone, %",
        "thesis, half",
        "most: error, %",
        "cost",
        "thesis, most",
    ]
    cells = [_cells(results, line) for line in section.lines]
    if all(line.most is None for line in section.lines):
        heads, cells = heads[:5], [row[:5] for row in cells]
    return [f"## {section.heading}\n", f"{section.told}\n", _table(heads, cells)]


def _cells(results: Results, line: Line) -> list[str]:
    half, most = (results.study.targets[name] for name in ("half", "most"))
    found = [line.told]
    for row, blocks, thesis in ((line.half, half, line.thesis_half), (line.most, most, line.thesis_most)):
        if row is None:
            found += [NOTHING, NOTHING]
        else:
            control = row.startswith("scratch-")  # the pruned network's rounds are not its own
            error = results.error(row) if control else results.error(row, blocks)
            cost = results.cost(row) if blocks == _left(results, row) else {}
            found += [_number(error), _number(cost, ".1f")]
        if blocks == half and row is not None:
            found.append(_number(results.removed_params(row, half), ".0f"))
        elif blocks == half:
            found.append(NOTHING)
        found.append(thesis)
    return found


def _left(results: Results, row: str) -> int | None:
    """Blocks that the row ends with: what it cost is told there."""
    ends = {result["blocks"] for result in results.done(row).values()}
    return ends.pop() if len(ends) == 1 else None


def _number(values: BySeed, form: str = ".2f") -> str:
    if not values:
        return NOTHING
    mean, error = mean_and_error(list(values.values()))
    return f"{mean:{form}}" if error is None else f"{mean:{form}} ± {error:{form}}"


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
