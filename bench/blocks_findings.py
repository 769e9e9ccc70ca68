"""The thesis' findings, held against the results of `bench.blocks` by rules that are the same for all.

A finding is one or more claims about two rows. Their difference is taken seed by seed (the same trained network); with
its mean m and standard error s over at least `LEAST` seeds

- *less*: confirmed where m > 2 s and m > 0, not confirmed where m < -2 s and m < 0;
- *close*: confirmed where |m| + 2 s is at most the margin, not confirmed where |m| - 2 s is above it.

Everything else is too little to tell. A finding is confirmed where all its claims are, and not confirmed where one is
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.blocks_results import BySeed, Results, correlation_interval, differences, mean_and_error
from bench.blocks_rows import NOISES, SALIENCIES

Verdict = Literal["confirmed", "not confirmed", "too little to tell"]
Metric = Literal["error", "error at half", "cost", "whole cost", "removed", "tau"]
LEAST = 2
MARGIN = 1.0
"""Points of error that two means may lie apart and still be called close."""
UNRELATED = 0.3
"""Kendall's tau that is called no agreement."""


@dataclass(frozen=True)
class Claim:
    """`one` has less of `metric` than `other`, or as much (`close`)."""

    one: str
    other: str
    metric: Metric = "error"
    relation: Literal["less", "close"] = "less"

    def values(self, results: Results, row: str) -> BySeed:
        half = results.study.targets["half"]
        match self.metric:
            case "error":
                return results.error(row)
            case "error at half":
                return results.error(row, half)
            case "cost":
                return results.cost(row)
            case "whole cost":
                return results.whole_cost(row)
            case "removed":
                return results.removed_params(row, half)
            case "tau":
                return results.mean_agreement(row)

    def judged(self, results: Results) -> tuple[Verdict, str]:
        """The verdict, and the numbers in words."""
        found = differences(self.values(results, self.one), self.values(results, self.other))
        verdict = less(found) if self.relation == "less" else close(found, MARGIN)
        sign = "<" if self.relation == "less" else "≈"
        told = f"{self.one} {sign} {self.other}"
        if not found:
            return verdict, f"{told}: nothing to compare"
        mean, error = mean_and_error(found)
        spread = "" if error is None else f" ± {error:.2f}"
        return verdict, f"{told}: {mean:+.2f}{spread} {_UNITS[self.metric]}"


_UNITS: dict[Metric, str] = {
    "error": "points", "error at half": "points", "cost": "million", "whole cost": "million",
    "removed": "% of the parameters", "tau": "of tau",
}  # fmt: skip


def less(found: Sequence[float]) -> Verdict:
    """Whether these differences, other - one, say that one is less."""
    if len(found) < LEAST:
        return "too little to tell"
    mean, error = mean_and_error(found)
    assert error is not None
    if abs(mean) <= 2 * error or mean == 0:
        return "too little to tell"
    return "confirmed" if mean > 0 else "not confirmed"


def close(found: Sequence[float], margin: float) -> Verdict:
    """Whether these differences say that the two are no more than `margin` apart."""
    if len(found) < LEAST:
        return "too little to tell"
    mean, error = mean_and_error(found)
    assert error is not None
    if abs(mean) + 2 * error <= margin:
        return "confirmed"
    return "not confirmed" if abs(mean) - 2 * error > margin else "too little to tell"


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Of the claims of one finding."""
    if "not confirmed" in verdicts:
        return "not confirmed"
    return "confirmed" if set(verdicts) == {"confirmed"} else "too little to tell"


@dataclass(frozen=True)
class Finding:
    """What the thesis found, and where."""

    told: str
    source: str
    claims: tuple[Claim, ...]


def less_than(one: str, *others: str, metric: Metric = "error") -> tuple[Claim, ...]:
    return tuple(Claim(one, other, metric) for other in others)


def close_to(one: str, *others: str, metric: Metric = "error") -> tuple[Claim, ...]:
    return tuple(Claim(one, other, metric, "close") for other in others)


def findings(results: Results) -> list[Finding]:
    """All of them, in the thesis' order."""
    zero, first, few, middle, last = _checkpoints(results)
    tuned = [f"loops-4/{name}/half" for name in SALIENCIES if name not in ("oracle", "block_gradient_max")]
    return [
        Finding("Without fine-tuning the oracle chooses best, and random worst", "3.3.2, figure 3.7; chapter 6",
                less_than("none/oracle", *(f"none/{name}" for name in SALIENCIES[1:]), metric="error at half")
                + less_than("none/activation_change", "none/random", metric="error at half")),
        Finding("Scores that look at data choose better than the weights", "3.3.2, figure 3.7",
                less_than("none/oracle", "none/weights_mean", metric="error at half")
                + less_than("none/activation_change", "none/weights_mean", metric="error at half")),
        Finding("Scoring every two or four rounds costs little accuracy", "3.3, figure 3.5",
                close_to("none/oracle", "none/oracle-every-2", "none/oracle-every-4", metric="error at half")),
        Finding("The longer scores are kept, the higher the error", "3.3, figure 3.5",
                less_than("none/oracle", "none/oracle-once", metric="error at half")),
        Finding("The longer scores are kept, the less they agree with the oracle", "3.3.1, figure 3.6",
                less_than("none/oracle-once", "none/oracle-every-2", metric="tau")),
        Finding("Activations agree more with the oracle than weights do", "3.3.2, figure 3.8",
                less_than("none/weights_mean", "none/activation_change", "none/activation_mean", metric="tau")),
        Finding("With fine-tuning all saliencies are close together, random among them", "3.3.4, figure 3.11",
                close_to("loops-4/oracle/half", *tuned)),
        Finding("Bad choices exist: the largest gradients first", "3.3.4, figure 3.12",
                less_than("loops-4/oracle/half", "loops-4/block_gradient_max/half")
                + less_than("loops-4/random/half", "loops-4/block_gradient_max/half")),
        Finding("The oracle keeps more parameters than activation change and weights mean", "3.3.5, figure 3.13",
                less_than("none/oracle", "none/activation_change", "none/weights_mean", metric="removed")),
        Finding("The later the checkpoint, the more its ranking agrees with the trained network's", "3.4, figure 3.16",
                less_than(f"checkpoint-{zero}/half", f"checkpoint-{middle}/half", metric="tau")
                + less_than(f"checkpoint-{first}/half", f"checkpoint-{last}/half", metric="tau")),
        Finding("More fine-tunings make a better network", "3.5.3, table 3.3",
                less_than("loops-4/oracle/half", "once/half") + less_than("loops-4/oracle/most", "once/most")),
        Finding("One long fine-tuning is better than four that have half its epochs together", "3.5.3, figure 3.20",
                less_than("once-long/half", "loops-4/oracle/half")),
        Finding("A standard structure trained from scratch beats the pruned network", "3.5.2, figure 3.17",
                less_than("scratch-standard/half", "once-long/half")
                + less_than("scratch-standard/most", "once-long/most")),
        Finding("The structures that pruning finds train worse from scratch than standard ones", "3.5.2, figure 3.17",
                less_than("scratch-standard/half", "scratch-same/half")
                + less_than("scratch-standard/most", "scratch-same/most")),
        Finding("Pruned networks beat the same structure from scratch", "3.5.2, figure 3.17",
                less_than("once-long/half", "scratch-same/half") + less_than("once-long/most", "scratch-same/most")),
        Finding("A threshold of 0.1 costs less than four fine-tunings where half goes", "3.5.5, table 4.1",
                less_than("threshold-0.1/half", "loops-4/oracle/half", metric="cost")),
        Finding("Where most goes, it is better than four fine-tunings", "3.5.5, table 4.1",
                less_than("threshold-0.1/most", "loops-4/oracle/most")),
        Finding("A smaller threshold costs more", "3.5.5, table 3.6",
                less_than("threshold-0.1/half", "threshold-0.01/half", metric="whole cost")
                + less_than("threshold-0.1/most", "threshold-0.01/most", metric="whole cost")),
        Finding("A schedule from a large rate is better than a small constant rate", "3.6.1, figure 3.25",
                less_than("every-2/most", "every-2-constant-rate/most")),
        Finding("Noise on the weights changes little", "3.6.2, figure 3.27",
                close_to("loops-4/block_gradient/half", *(f"noise-{eta}/half" for eta in NOISES))),
        Finding("Freezing the classifier is no improvement", "3.9",
                close_to("loops-4/oracle/half", "freeze-classifier/half")),
        Finding("Without fine-tuning it does not matter whether blocks are scored on the validation or the pruning "
                "split", "3.7, figure 3.28",
                close_to("none/oracle", "none/oracle-pruning-split", metric="error at half")),
        Finding("With it, the pruning split is worse, for lack of training images", "3.7, figure 3.29",
                less_than("loops-4/oracle/half", "pruning-split/half")),
        Finding("Trained on as well, it is no worse than the validation split", "3.7, figure 3.30",
                close_to("loops-4/oracle/half", "pruning-split-trained-on/half")),
        Finding("One epoch after each round makes a better network than one fine-tuning alone", "4.1, table 4.1",
                less_than("low-1/half", "once/half") + less_than("low-1/most", "once/most")),
        Finding("It costs less than four fine-tunings", "4.1, table 4.1",
                less_than("low-1/half", "loops-4/oracle/half", metric="cost")
                + less_than("low-1/most", "loops-4/oracle/most", metric="cost")),
        Finding("One or three epochs after each round make little difference", "4.1, table 4.1",
                close_to("low-1/half", "low-3/half") + close_to("low-1/most", "low-3/most")),
        Finding("Fading is no better than fine-tuning as long", "4.2, tables 4.2 and 4.3",
                close_to("every/most", "fade-short/most", "fade-half/most")
                + close_to("threshold-0.01/most", "fade-lazy/most")),
        Finding("Equalised groups are worse without fine-tuning", "4.3, figure 4.5a",
                less_than("none/oracle", "none/oracle-equalised", metric="error at half")),
        Finding("With it, they are as good as a free choice", "4.3, figure 4.5b",
                close_to("fade-short/most", "equalised/most")),
        Finding("One epoch of training makes a far better start than random weights", "4.4, table 4.5",
                less_than(f"checkpoint-{first}/half", f"checkpoint-{zero}/half")
                + less_than(f"checkpoint-{first}/most", f"checkpoint-{zero}/most")),
        Finding("Early checkpoints with one budget are as good as a trained network fine-tuned briefly, or better",
                "4.4, table 4.5", less_than(f"checkpoint-{few}/half", "once/half")
                + less_than(f"checkpoint-{few}/most", "once/most")),
        Finding("Replacement by random blocks is about as good as removal", "4.5 and 4.6, figure 4.7",
                close_to("low-1/half", "replace-random/half")),
    ]  # fmt: skip


def _checkpoints(results: Results) -> tuple[int, int, int, int, int]:
    """Epochs: none, one, few, half, nearly all."""
    zero, first, few, middle, last = results.study.checkpoints
    return zero, first, few, middle, last


def judged(results: Results) -> list[tuple[str, str, Verdict, str]]:
    """Of each finding: what it says, where, the verdict, the numbers."""
    found = []
    for finding in findings(results):
        verdicts, told = zip(*(claim.judged(results) for claim in finding.claims), strict=True)
        found.append((finding.told, finding.source, together(verdicts), "; ".join(told)))
    return [*found, _unrelated(results), _correlated(results)]


def _unrelated(results: Results) -> tuple[str, str, Verdict, str]:
    taus = results.between_networks()
    told = "Different trained networks lose their blocks in unrelated orders"
    if not taus:
        return told, "3.4, figure 3.15", "too little to tell", "nothing to compare"
    mean, error = mean_and_error(taus)
    spread = "" if error is None else f" ± {error:.2f}"
    return told, "3.4, figure 3.15", close(taus, UNRELATED), f"tau of {len(taus)} pairs: {mean:.2f}{spread}"


def _correlated(results: Results) -> tuple[str, str, Verdict, str]:
    """Weakly: an interval above 0 and below 0.9."""
    told, source = "Accuracy before and after a fine-tuning are correlated, but not strongly", "3.3.3, figure 3.10"
    pairs = results.before_and_after()
    interval = correlation_interval(pairs)
    if interval is None:
        return told, source, "too little to tell", "nothing to compare"
    found, low, high = interval
    verdict: Verdict = "confirmed" if low > 0 and high < 0.9 else "too little to tell"
    if high <= 0 or low >= 0.9:
        verdict = "not confirmed"
    numbers = f"r = {found:.2f} ({low:.2f} to {high:.2f}) over {len(pairs)} fine-tunings; thesis: 0.59"
    return told, source, verdict, numbers
