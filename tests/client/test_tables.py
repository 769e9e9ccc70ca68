"""The table of before and after, where something could not be measured."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from billhook.cli import tables
from billhook.results import Report, parse
from tests.client.fake_server import report


def shown(**changes: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(tables.report(parse(Report, {**report(met=True), **changes})))
    return out.getvalue()


def rows(text: str) -> dict[str, list[str]]:
    return {line.split("  ")[0].strip(): line.split() for line in text.splitlines() if line.strip()}


def test_memories_that_can_be_told_apart_have_a_change() -> None:
    assert rows(shown(ratios={"peak_memory_ratio": 0.44}))["peak memory"][-2:] == ["×", "0.440"]


def test_memories_that_cannot_be_told_apart_have_none() -> None:
    note = "too small to measure: 0 bytes of the original in a noise of 0"
    missed = {"name": "peak_memory_ratio", "required": "<= 1", "measured": None, "passed": False, "note": note}
    text = shown(ratios={}, requirements=[missed])
    assert rows(text)["peak memory"][-1] == "-"
    assert f"MISSED  peak_memory_ratio: {note}, required <= 1" in text


def test_a_memory_that_was_not_measured_has_no_row() -> None:
    variants = report(met=True)["variants"]
    variants["pruned"]["memory"] = None
    assert "peak memory" not in shown(variants=variants)


def test_a_target_that_was_missed_is_told_with_the_interval_of_what_was_measured() -> None:
    targets = [
        {"name": "step/0/latency", "target": 0.6, "reached": 0.58, "met": False, "low": 0.55, "high": 0.63},
        {"name": "step/0/params", "target": 0.5, "reached": 0.7, "met": False, "low": None, "high": None},
        {"name": "step/0/macs", "target": 0.5, "reached": 0.4, "met": True},
    ]
    assert (
        "the recipe's target was not met: step/0/latency 0.58 (0.55 to 0.63), asked 0.6, step/0/params 0.7, asked 0.5\n"
    ) in shown(target_met=False, targets=targets)


def test_controls_are_shown_with_their_interval() -> None:
    control = {
        "name": "random", "budget": "the recipe's steps", "cost": {"epochs": 12}, "accuracy_difference": 0.0125,
        "accuracy_difference_low": -0.004, "accuracy_difference_high": 0.0291,
    }  # fmt: skip
    variants = report(met=True)["variants"]
    variants["random"] = variants["pruned"]
    row = rows(shown(variants=variants, controls=[control]))["random"]
    assert row[:2] == ["random", "12"]
    assert row[4:] == ["98.33%", "+1.25", "points", "(-0.40", "to", "+2.91)"]
