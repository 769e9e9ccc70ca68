"""Targets: what must remain at most, held against the original as uploaded (not against the step's own start)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from core.graph.counts import Counts
from core.recipe import FilterNorm, Step, Target
from core.report import TargetResult

ROUNDING = 1e-9
"""0.98 - 0.97 is 0.010000000000000009, and no more than 0.01."""


@dataclass(frozen=True)
class Goal:
    """A step's target and the original's counts and validation accuracy (0-1). A float is a share of the original, an
    integer a count."""

    target: Target
    original: Counts
    accuracy: float | None = None

    def results(self, counts: Counts, *, prefix: str = "") -> list[TargetResult]:
        """Each key of the target: what was asked, what `counts` reach (share or count, as asked), whether it holds."""
        found = []
        for key, wanted in self.target.sizes().items():
            present, original = getattr(counts, key), getattr(self.original, key)
            if isinstance(wanted, int):
                reached, met = float(present), present <= wanted
            else:
                # as the decimal that was written: 0.1 of 30 is 3, not 3.0000000000000004
                reached, met = present / original, present <= Fraction(repr(wanted)) * original
            found.append(TargetResult(name=f"{prefix}{key}", target=wanted, reached=reached, met=met))
        return found

    def guard_result(self, lost: float, *, prefix: str = "") -> list[TargetResult]:
        """What came of `max_accuracy_drop`; `lost`: of the original's validation accuracy."""
        allowed = self.target.max_accuracy_drop
        if allowed is None:
            return []
        met = lost <= allowed + ROUNDING
        return [TargetResult(name=f"{prefix}max_accuracy_drop", target=allowed, reached=lost, met=met)]

    def least(self, result: TargetResult) -> str:
        """What the target could be at least, `result.reached`, in the unit that it was given in."""
        if isinstance(getattr(self.target, result.name), int):
            return f"a count of at least {result.reached:.0f} (an integer is a count; a share is a float, as 0.5)"
        return f"at least {result.reached:.4g}"

    def met(self, counts: Counts) -> bool:
        """Whether all sizes hold."""
        return all(result.met for result in self.results(counts))


def target_results(
    steps: Sequence[Step], original: Counts, last: Counts, *, accuracy: float, accuracies: Sequence[float | None]
) -> list[TargetResult]:
    """What came of the targets of all `steps`, named step/<index>/<key>: sizes by the counts `last` of the network that
    is left, guards by the validation accuracy (0-1) that each step ended with, against the original's `accuracy`."""
    found = []
    for index, (step, own) in enumerate(zip(steps, accuracies, strict=True)):
        if isinstance(step, FilterNorm):
            goal, prefix = Goal(step.target, original), f"step/{index}/"
            lost = 0.0 if own is None else accuracy - own  # none where a step did nothing
            found += [*goal.results(last, prefix=prefix), *goal.guard_result(lost, prefix=prefix)]
    return found
