"""How alike two jobs chose the blocks that they removed, from their reports.

    python -m core.blocks.compare A/report.json B/report.json [--json]

Of each step that removed blocks in both, at each number of blocks removed: the share that both have removed, Kendall's
tau of the rankings, and that of the order of removal alone (Velici 2022, sections 3.3.1 and 3.4). Blocks are known by
their names: the jobs are to be of one network, or of one architecture (as the six trainings of figure 3.15).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from core.block_markdown import comparison_markdown
from core.block_report import BlockAnalysis, BlockComparison
from core.blocks.analysis import compared
from core.events import jsonable

_ANALYSES = TypeAdapter(list[BlockAnalysis])


def compare(one: Sequence[BlockAnalysis], other: Sequence[BlockAnalysis], *, called: str) -> dict[int, BlockComparison]:
    """By the step's index, of the steps that removed blocks in both runs; `called`: the other run's name. Raises
    `ValueError` where no step did, or no block is in both."""
    theirs = {analysis.step: analysis for analysis in other if analysis.run == "pruned"}
    both = [(ours, theirs[ours.step]) for ours in one if ours.run == "pruned" and ours.step in theirs]
    if not both:
        raise ValueError("there is no step that removes blocks in both reports")
    for ours, their in both:
        if ours.blocks.keys().isdisjoint(their.blocks):
            raise ValueError(f"no block of step {ours.step} is in both reports: these are other networks")
    return {ours.step: compared(ours, their, with_run=called) for ours, their in both}


def read(path: Path) -> list[BlockAnalysis]:
    """The section about blocks of a report.json. Raises `ValueError` where there is none."""
    try:
        document = json.loads(path.read_bytes(), object_hook=_float_again)
        return _ANALYSES.validate_python(document["blocks"])
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no report with a section about blocks: {type(error).__name__}") from None


def _float_again(found: dict[str, object]) -> object:
    """NaN and infinities, as `jsonable` writes them."""
    return float(str(found["$float"])) if found.keys() == {"$float"} else found


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 where the reports cannot be compared, with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m core.blocks.compare", description="compare two jobs' blocks")
    parser.add_argument("one", type=Path, help="a job's report.json")
    parser.add_argument("other", type=Path, help="another's")
    parser.add_argument("--json", action="store_true", help="print JSON, not Markdown")
    given = parser.parse_args(arguments)
    try:
        found = compare(read(given.one), read(given.other), called=str(given.other))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if given.json:
        document = {step: comparison.model_dump(mode="json") for step, comparison in found.items()}
        sys.stdout.write(json.dumps(jsonable(document), indent=1, allow_nan=False) + "\n")
    else:
        for step, comparison in found.items():
            sys.stdout.write(f"## Step {step}\n\n{comparison_markdown(comparison)}\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
