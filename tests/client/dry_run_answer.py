"""What a server answers to a dry run."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]


def dry_run(*, met: bool | None) -> Document:
    """What a dry run answers; `met`: what is required."""
    sizes = [{"params": params, "macs": 10 * params, "filters": 64, "file_bytes": 4 * params}
             for params in (272474, 120000)]  # fmt: skip

    def layer(before: int, after: int) -> Document:
        shapes = {"weight_before": [before, 1, 3, 3], "weight_after": [after, 1, 3, 3]}
        counts = {"params_before": 9 * before, "params_after": 9 * after, "macs_before": 900 * before,
                  "macs_after": 900 * after}  # fmt: skip
        return {"name": "conv1", "kind": "Conv2d", "channels_before": before, "channels_after": after,
                **shapes, **counts}  # fmt: skip

    cuts = [{"step": index, "method": "filter_norm", "rounds": 2, "after": sizes[1], "layers": [layer(*widths)]}
            for index, widths in enumerate(((32, 16), (16, 8)))]  # fmt: skip
    spending = [{"part": part, "epochs": epochs, "images": 1000 * epochs, "epoch_params": 5 * epochs,
                 "estimated_seconds": 50.0} for part, epochs in (("steps", 7), ("random", 5))]  # fmt: skip
    return {
        "version": 1, "original": sizes[0], "pruned": sizes[1],
        "ratios": {"params_ratio": 0.44, "macs_ratio": 0.44, "filters_ratio": 1.0, "file_bytes_ratio": 0.44},
        "latency": {"ratio": 0.5, "low": 0.45, "high": 0.55, "windows": 6, "original_ms": 2.0, "candidate_ms": 1.0},
        "steps": cuts, "target_met": met is not False,
        "targets": [{"name": "step/1/macs", "target": 0.4, "reached": 0.44, "met": met is not False}],
        "requirements": [
            {"name": "params_ratio", "required": "<= 0.5", "value": 0.44, "holds": met,
             "note": None if met is not None else "too close to call"},
            {"name": "accuracy_drop", "required": "<= 0.01", "value": None, "holds": None, "note": "only the job"}],
        "requirements_met": met,
        "estimate": {
            "epochs": 12, "epochs_low": 9, "epochs_high": 12, "images": 12000, "epoch_params": 60,
            "spending": spending, "estimated_seconds": 90.0, "estimated_seconds_low": 80.0,
            "estimated_seconds_high": 125.0, "device": "cpu", "threads": 2},
        "recipe": {"version": 1}, "assumptions": ["Nothing was trained."],
        "warnings": ["the validation split is small"],
    }  # fmt: skip
