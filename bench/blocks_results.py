"""Results of `bench.blocks`: a file for each row and seed, and what is computed of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from bench.blocks_rows import Row, Study
from core.block_report import BlockHistory
from core.blocks.analysis import kendall_tau, order_of, pearson, places_after
from core.state import write_atomically

BySeed = dict[int, float]
REFERENCE = "none/oracle"
"""What rankings are held against."""


@dataclass
class Results:
    """What there is: `found[row name][seed]`, done or failed, each of the row as it is now."""

    study: Study
    folder: Path
    found: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)

    def read(self, rows: Iterable[Row], seeds: Iterable[int]) -> None:
        """Takes in the files of these rows; those that were made of another recipe are left aside."""
        for row in rows:
            for seed in seeds:
                path = self.path(row.name, seed)
                if path.exists() and (result := json.loads(path.read_text()))["signature"] == row.signature(self.study):
                    self.found.setdefault(row.name, {})[seed] = result

    def add(self, result: Mapping[str, Any]) -> None:
        """Keeps a result, on disk too."""
        path = self.path(result["row"], result["seed"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
        self.found.setdefault(result["row"], {})[result["seed"]] = dict(result)

    def path(self, row: str, seed: int) -> Path:
        return self.folder / f"{row.replace('/', '--')}.{seed}.json"

    def status(self, row: str, seed: int) -> str | None:
        """done, failed, or None where there is nothing."""
        result = self.found.get(row, {}).get(seed)
        return None if result is None else str(result["status"])

    def done(self, row: str) -> dict[int, dict[str, Any]]:
        """Results of a row by seed, without failed ones."""
        return {seed: result for seed, result in self.found.get(row, {}).items() if result["status"] == "done"}

    def errors(self, row: str) -> dict[str, list[int]]:
        """What the failed ones of a row were told, with their seeds."""
        told: dict[str, list[int]] = {}
        for seed, result in sorted(self.found.get(row, {}).items()):
            if result["status"] == "failed":
                told.setdefault(result["error"], []).append(seed)
        return told

    def by_seed(self, row: str, value: Callable[[dict[str, Any]], float | None]) -> BySeed:
        """`value` of each result of the row that has it."""
        values = {seed: value(result) for seed, result in sorted(self.done(row).items())}
        return {seed: number for seed, number in values.items() if number is not None}

    # --- what is told of a row, by seed ---

    def error(self, row: str, blocks: int | None = None) -> BySeed:
        """Error on test, %, in the end or where that many blocks were left: after the fine-tuning that followed."""
        if blocks is None:
            return self.by_seed(row, lambda result: 100 * result["test_error"])
        return self.by_seed(row, lambda result: _error_at(result, blocks))

    def loss(self, row: str) -> BySeed:
        """Error in the end less the original's, points."""
        return self.by_seed(row, lambda result: 100 * (result["test_error"] - result["original_test_error"]))

    def cost(self, row: str) -> BySeed:
        """Epoch-parameters up to the best epochs, millions (section 3.5.1), all of them together."""
        return self.by_seed(row, lambda result: result["cost"]["epoch_params_kept"] / 1e6)

    def whole_cost(self, row: str) -> BySeed:
        """Epoch-parameters of all epochs, millions."""
        return self.by_seed(row, lambda result: result["cost"]["epoch_params"] / 1e6)

    def removed_params(self, row: str, blocks: int) -> BySeed:
        """% of the parameters that were gone where that many blocks were left."""

        def share(result: dict[str, Any]) -> float | None:
            rounds = zip(history(result).rounds, result["rounds"], strict=True)
            there = [told.params for told, each in rounds if each["blocks"] == blocks]
            params = there[0] if there else result["params"] if result["blocks"] == blocks else None
            return None if params is None else 100 * (1 - params / result["original_params"])

        return self.by_seed(row, share)

    def agreement(self, row: str, step: int, reference: str = REFERENCE) -> BySeed:
        """Kendall's tau of the rankings after `step` rounds with those of `reference`, of the same seed."""
        theirs = self.done(reference)

        def tau(result: dict[str, Any]) -> float | None:
            other = theirs.get(result["seed"])
            if other is None or min(len(result["rounds"]), len(other["rounds"])) <= step:
                return None
            return kendall_tau(*(places_after(history(run), step) for run in (result, other)))

        return self.by_seed(row, tau)

    def mean_agreement(self, row: str) -> BySeed:
        """The same, mean over the rounds up to half of the blocks."""
        steps = range(self.study.blocks - self.study.targets["half"])
        found = [self.agreement(row, step) for step in steps]
        seeds = set.intersection(*(set(each) for each in found))
        return {seed: statistics.fmean(each[seed] for each in found) for seed in sorted(seeds)}

    def between_networks(self, row: str = REFERENCE) -> list[float]:
        """Kendall's tau of the orders in which different networks lose their blocks, of each pair; what is left shares
        the last place (figure 3.15)."""
        runs = [history(result) for _, result in sorted(self.done(row).items())]
        orders = [{name: len(run.blocks) for name in run.blocks} for run in runs]
        for order, run in zip(orders, runs, strict=True):
            order |= {name: place for place, name in enumerate(order_of(run))}
        found = [kendall_tau(one, other) for one, other in combinations(orders, 2)]
        return [tau for tau in found if tau is not None]

    def before_and_after(self) -> list[tuple[float, float]]:
        """Validation accuracy, 0-1, in front of and behind every whole fine-tuning (section 3.3.3)."""
        return [
            (each.accuracy_cut, each.accuracy_tuned)
            for row in self.found
            for result in self.done(row).values()
            for each in history(result).rounds
            if each.whole and each.accuracy_cut is not None and each.accuracy_tuned is not None
        ]


def history(result: Mapping[str, Any]) -> BlockHistory:
    """What the run did, round by round."""
    return BlockHistory(**(result["history"] or {}))


def correlation_interval(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float] | None:
    """Pearson's correlation and its 95 % interval by Fisher's transformation; None where it has no value."""
    found = pearson(pairs)
    if found is None or len(pairs) < 4:
        return None
    middle, half = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, found))), 1.96 / math.sqrt(len(pairs) - 3)
    return found, math.tanh(middle - half), math.tanh(middle + half)


def _error_at(result: dict[str, Any], blocks: int) -> float | None:
    for each in result["rounds"]:
        if each["blocks"] == blocks:
            found = each["test_error"] if each["tuned_error"] is None else each["tuned_error"]
            return None if found is None else 100 * float(found)
    return 100 * float(result["test_error"]) if result["blocks"] == blocks else None


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error; None for one value alone."""
    mean = statistics.fmean(values)
    return mean, statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def differences(one: BySeed, other: BySeed) -> list[float]:
    """`other` less `one`, of each seed that has both."""
    return [other[seed] - one[seed] for seed in sorted(one.keys() & other.keys())]
