"""Keeping what a step that removes blocks does, round by round, for its analysis (`core.blocks.analysis`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.block_report import BlockHistory, BlockRound
from core.blocks.analysis import kendall_tau, order_of, places_after, ranked
from core.blocks.candidates import Candidate
from core.training.port import FitResult


def note_round(
    history: BlockHistory, standing: Sequence[Candidate], *, scores: Mapping[str, float], **told: Any
) -> dict[str, Any]:
    """Adds a round. Returns the ranking that it went by, for the event.

    standing: what could go in front of it. scores: by name, of others too. told: the other fields of `BlockRound`.
    """
    there = {candidate.name for candidate in standing}
    own = {
        name: score for name, score in scores.items() if name in there
    }  # in their order: of equal ones the first goes
    history.rounds.append(BlockRound(scores=own, **told))
    done = len(history.rounds) - 1
    places = places_after(history, done)
    tau = kendall_tau(places_after(history, done - 1), places) if done else None
    return {"ranking": ranked(places), "removed": len(order_of(history, done)), "tau_previous": tau}


def note_fine_tuning(history: BlockHistory, fit: FitResult, *, whole: bool) -> None:
    """Notes the fine-tuning that has followed the last round, if there was a round."""
    if not history.rounds or fit.score is None:
        return
    last = history.rounds[-1]
    history.rounds[-1] = last.model_copy(
        update={
            "accuracy_tuned": fit.score.accuracy,
            "epochs": last.epochs + fit.cost.epochs,
            "whole": last.whole or whole,
        }
    )
