"""The report's section about blocks, as Markdown."""

from __future__ import annotations

from core.block_markdown import blocks_markdown
from core.block_report import BlockHistory, BlockRound
from core.blocks.analysis import analysed


def test_blocks_are_counted_not_units() -> None:
    """Three neighbours that make room for one are one unit, and two blocks fewer."""
    gone = BlockRound(
        round=1, scores={"a+b+c": 0.5}, scored_after=0, removed=["a+b+c"], left={"group 1": 2}, params=5,
        accuracy_before=0.9, accuracy_cut=0.5,
    )  # fmt: skip
    history = BlockHistory(saliency="oracle", blocks=dict.fromkeys("abcd", "group 1"), params=10, rounds=[gone])
    told = "\n".join(blocks_markdown([analysed(history, step=0, run="pruned", rounds_kept=1)]))
    assert "saliency oracle: 2 of 4 blocks" in told
    assert "Order of removal: `a+b+c`." in told
