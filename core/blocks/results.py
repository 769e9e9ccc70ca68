"""What a job tells of the blocks that it removed: the report's section, events, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.block_report import BlockAnalysis
from core.blocks.analysis import analyses
from core.blocks.plots import blocks_svg
from core.controls import Control
from core.events import Emit
from core.outcome import Done
from core.state import write_atomically

PICTURE = "blocks.svg"


def tell_blocks(done: Done, controls: Sequence[Control], out: Path, emit: Emit) -> list[BlockAnalysis]:
    """Of each step that removed blocks, and of the control random, with which it is compared. Writes `blocks.svg` into
    `out` where there was such a step, and emits `measure/blocks/step/<i>` for each comparison."""
    random = next((control.done for control in controls if control.name == "random"), None)
    kept = [len(removed) for removed in done.removed]
    found = analyses(done.blocks, kept, [] if random is None else random.blocks)
    for analysis in found:
        if analysis.comparison is not None:
            emit(f"measure/blocks/step/{analysis.step}", **analysis.comparison.model_dump())
    if found:
        write_atomically(out / PICTURE, blocks_svg(found))
    return found
