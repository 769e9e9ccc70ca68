"""What is kept of a round."""

from __future__ import annotations

from core.block_report import BlockHistory
from core.blocks.candidates import Candidate, lowest
from core.blocks.history import note_round


def test_of_equal_scores_the_one_that_goes_is_the_first_of_the_ranking() -> None:
    """The oracle tells them apart by the loss: by the order of its scores."""
    standing = [Candidate((), (name,), "group 1") for name in ("a", "b", "c")]
    scores = {"c": 0.1, "a": 0.1, "gone": 0.2, "b": 0.3}
    history = BlockHistory()
    removed = [candidate.name for candidate in lowest(scores, standing, 1)]
    told = note_round(
        history, standing, scores=scores, round=1, scored_after=0, removed=removed, left={}, params=1,
        accuracy_before=1.0, accuracy_cut=0.9,
    )  # fmt: skip
    assert removed == ["c"]
    assert told["ranking"] == ["c", "a", "b"]
    assert list(history.rounds[0].scores) == ["c", "a", "b"]
