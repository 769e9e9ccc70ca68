"""Targets: what must remain at most, held against the original as uploaded (not against the step's own start)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from core.errors import Fault, TargetUnreachable
from core.graph.counts import Counts, count
from core.graph.network import Network
from core.outcome import Done
from core.report import LatencyRatio, TargetResult
from core.step_settings import Step, Train
from core.target_settings import Target

ROUNDING = 1e-9
"""0.98 - 0.97 is 0.010000000000000009, and no more than 0.01."""


class Exports(Protocol):
    """What a network is as a file (`core.exports.Exports`)."""

    @property
    def original_bytes(self) -> int:
        """Of the original's own export."""

    def bytes(self, network: Network) -> int:
        """Of the file that `network` would be exported as, exactly."""

    def latency(self, network: Network) -> LatencyRatio:
        """Against the original, measured now: another time it is another number."""


@dataclass(frozen=True)
class Present:
    """What a network has: counts, and where a target asks for them, bytes of its file and what its latency measured."""

    counts: Counts
    file_bytes: int | None = None
    latency: LatencyRatio | None = None


@dataclass(frozen=True)
class Goal:
    """A step's target and the original's counts and validation accuracy (0-1). A float is a share of the original, an
    integer a count. `exports` is needed for `size` and `latency`."""

    target: Target
    original: Counts
    accuracy: float | None = None
    exports: Exports | None = None

    def present(self, network: Network, latency: LatencyRatio | None = None) -> Present:
        """What `network` has of what is asked for. Its latency is as it was measured, not measured here."""
        size = None if self.target.size is None else self._exports.bytes(network)
        return Present(count(network), size, latency)

    def measured_latency(self, network: Network) -> LatencyRatio | None:
        """Measured now, where the target asks for it. That of a network as large as the original is not in question."""
        counts = count(network)
        whole = (counts.params, counts.macs) == (self.original.params, self.original.macs)
        return None if self.target.latency is None or whole else self._exports.latency(network)

    def results(self, present: Present, *, prefix: str = "") -> list[TargetResult]:
        """Each key of the target: what was asked, what there is (share or count, as asked), whether it holds. A latency
        that was not measured is left out; one that was holds where the upper end of its interval does."""
        found = []
        for key, wanted in self.target.sizes().items():
            has, original = self._pair(key, present)
            if isinstance(wanted, int):
                reached, met = float(has), has <= wanted
            elif not original:  # residual blocks of a network without any: there is nothing to take a share of
                reached, met = 1.0, False
            else:
                # as the decimal that was written: 0.1 of 30 is 3, not 3.0000000000000004
                reached, met = has / original, has <= Fraction(repr(wanted)) * original
            found.append(TargetResult(name=f"{prefix}{key}", target=wanted, reached=reached, met=met))
        share, latency = self.target.latency, present.latency
        if share is not None and latency is not None:
            found.append(
                TargetResult(name=f"{prefix}latency", target=share, reached=latency.ratio, met=latency.high <= share,
                             low=latency.low, high=latency.high)
            )  # fmt: skip
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
            what = "a number of bytes" if result.name == "size" else "a count"
            return f"{what} of at least {result.reached:.0f} (an integer is a count; a share is a float, as 0.5)"
        return f"at least {result.reached:.4g}"

    def met(self, present: Present) -> bool:
        """Whether all keys hold. A latency that was not measured does not."""
        known = self.target.latency is None or present.latency is not None
        return known and all(result.met for result in self.results(present))

    def expected(self, present: Present) -> bool:
        """Whether all keys may hold, with the share of MACs for that of the latency: for plans alone."""
        share = self.target.latency
        likely = share is None or present.counts.macs <= share * self.original.macs
        return likely and all(result.met for result in self.results(Present(present.counts, present.file_bytes)))

    @property
    def _exports(self) -> Exports:
        if self.exports is None:
            raise ValueError("size and latency need exports")
        return self.exports

    def _pair(self, key: str, present: Present) -> tuple[int, int]:
        """What `present` has of `key`, and what the original has."""
        if key != "size":
            return getattr(present.counts, key), getattr(self.original, key)
        assert present.file_bytes is not None
        return present.file_bytes, self._exports.original_bytes


def unreachable(goal: Goal, missed: Sequence[TargetResult], told: str, reasons: str, *, step: int) -> TargetUnreachable:
    """What is raised where all that may go is not enough. told: where it all is gone; reasons: what is frozen."""
    faults = [
        Fault(f"/steps/{step}/target/{result.name}", f"{result.reached:.4g} is the least that can remain",
              goal.least(result))
        for result in missed
    ]  # fmt: skip
    least = ", ".join(f"{result.name} {result.reached:.4g} (asked: {result.target:g})" for result in missed)
    return TargetUnreachable(f"{told} there remain {least}. Frozen: {reasons}", faults=faults)


def target_results(
    steps: Sequence[Step], done: Done, *, original: Counts, exports: Exports, accuracy: float
) -> list[TargetResult]:
    """What came of the targets of all `steps`, named step/<index>/<key>: sizes by the network that is left, guards by
    the validation accuracy (0-1) that each step ended with, against the original's `accuracy`, latencies by what each
    step measured of the network that it ended with."""
    found = []
    for index, (step, own, latency) in enumerate(zip(steps, done.accuracies, done.latencies, strict=True)):
        if not isinstance(step, Train):
            goal, prefix = Goal(step.target, original, exports=exports), f"step/{index}/"
            found += goal.results(goal.present(done.network, latency), prefix=prefix)
            lost = 0.0 if own is None else accuracy - own  # none where a step did nothing
            found += goal.guard_result(lost, prefix=prefix)
    return found


def latency_doubts(results: Sequence[TargetResult], ratio: float) -> list[str]:
    """A warning for each target of latency that was met when its step ended, and is not by `ratio`, the one measured in
    the end on the files."""
    return [
        f"{result.name.replace('/', ' ', 1)} {result.target:g} was met when it was decided, at {result.reached:.4g} "
        f"({result.low:.4g} to {result.high:.4g}); measured again in the end it is {ratio:.4g}"
        for result in results
        if result.name.endswith("/latency") and result.met and ratio > result.target
    ]
