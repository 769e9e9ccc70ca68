"""What a removal of blocks trains besides its fine-tunings: for budgets, progress and dry runs."""

from __future__ import annotations

from collections.abc import Sequence

from core.block_settings import Fade, Soft
from core.training.policies import epochs_due
from core.training_settings import FineTune


def own_trainings(
    fade: Fade | None,
    soft: Soft | None,
    fine_tune: FineTune,
    macs: Sequence[int],
    *,
    done: int,
    rounds: int,
    restored: int,
) -> list[tuple[int, int]]:
    """(epochs, MACs) of the trainings of rounds that are still to come, of which thresholds are not known beforehand.

    macs: of the network at the start of each of them, and after the last. done: rounds done. rounds: planned in all.
    restored: MACs of what a lazy fading puts back next.
    """
    if soft is not None:
        return [(soft.epochs, macs[0])] if len(macs) > 1 else []
    if fade is None:
        return []
    if not fade.lazy:
        return [(fade.epochs, size) for size in macs[:-1]]
    found = []
    for number, size in enumerate(macs[1:], start=1):
        last = number == len(macs) - 1
        if epochs_due(fine_tune, round=done + number, rounds=rounds, lost=None, last=last):
            found.append((fade.epochs, restored))
            restored = size
    return found
