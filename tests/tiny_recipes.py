"""Shipped recipes cut down to seconds, for tests that run them."""

from __future__ import annotations

from typing import Any


def tiny(document: dict[str, Any]) -> dict[str, Any]:
    """The same recipe with the fewest epochs; everything else as shipped."""
    for step in document["steps"]:
        if step["method"] == "train":
            step["epochs"] = 1
            continue
        if step["method"] == "filter_norm":
            step["every_epochs"] = 1
            step["ratio_per_round"] = 0.5
        else:
            for name in ("fade", "soft"):
                _short(step.get(name) or {}, 2)
        _short(step["fine_tune"], 1)
        policy = step["fine_tune"].get("policy", "once")
        if isinstance(policy, dict) and "low" in policy:
            policy["low"] = 1
        step["target"].pop("max_accuracy_drop", None)  # one epoch of fine-tuning does not bring the accuracy back
    for baseline in document.get("baselines", []):
        if isinstance(baseline, dict):
            baseline["scratch"]["budget"] = 1
    return document


def _short(section: dict[str, Any], epochs: int) -> None:
    if section.get("epochs"):
        section["epochs"] = epochs
