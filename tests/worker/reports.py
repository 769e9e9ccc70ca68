"""A report and summaries as `core` writes them, with little in them. `RESULTS` is what a list of jobs shows of it."""

from __future__ import annotations

from typing import Any

_SCORE = {"images": 360, "accuracy": 0.5, "loss": {"$float": "nan"}}
_VARIANT = {
    "validation": _SCORE, "test": _SCORE, "train": _SCORE, "params": 10, "macs": 10, "filters": 1, "blocks": 0,
    "file_bytes": 9, "sha256": "0" * 64, "latency": [], "memory": None, "opset": 17,
}  # fmt: skip
REPORT: dict[str, Any] = {
    "variants": {"original": _VARIANT, "pruned": _VARIANT}, "ratios": {"macs_ratio": 0.5}, "target_met": True,
    "targets": [], "requirements": [], "requirements_met": True, "checks": [], "layers": [], "frozen": [], "front": [],
    "cost": {}, "macs_counted": [], "macs_not_counted": [], "inputs": {}, "recipe": {}, "environment": {},
    "reproduce": "billhook prune",
}  # fmt: skip
RESULTS = {
    "ratios": {"macs_ratio": 0.5}, "accuracy": {"original": 0.5, "pruned": 0.5}, "target_met": True,
    "drop_in": True, "requirements_met": True,
}  # fmt: skip
_TOTALS = {
    "params": 1, "macs": 1, "filters": 1, "layers": 0, "groups": 0, "cuttable_groups": 0, "residual_blocks": 0,
    "branch_blocks": 0, "plain_layers": 0, "bypassable": 0, "frozen": 0, "free_params": 0, "free_params_share": 0.0,
    "conv_params": 1, "free_conv_params_share": 0.0,
}  # fmt: skip
GRAPH: dict[str, Any] = {"version": 1, "totals": _TOTALS, "layers": [], "groups": [], "blocks": [], "frozen": []}
MODEL_SUMMARY: dict[str, Any] = {
    "sha256": "0" * 64, "params": 1, "macs": 1, "inputs": [{"name": "x", "shape": ["N", 1, 8, 8]}],
    "outputs": [{"name": "y", "shape": ["N", 10]}], "graph": _TOTALS,
}  # fmt: skip
DATASET_SUMMARY: dict[str, Any] = {
    "images": 2, "classes": ["a", "b"], "image_shape": [1, 8, 8],
    "splits": {"train": {"images": 2, "per_class": {"a": 1, "b": 1}}},
}  # fmt: skip
_SIZE = {"params": 10, "macs": 10, "filters": 1, "blocks": 0, "file_bytes": 9}
DRY_RUN: dict[str, Any] = {
    "version": 1, "original": _SIZE, "pruned": {**_SIZE, "params": 5}, "ratios": {"params_ratio": 0.5},
    "latency": {"ratio": 0.5, "low": 0.4, "high": 0.6, "windows": 6, "original_ms": 2.0, "candidate_ms": 1.0},
    "steps": [{"step": 0, "method": "filter_norm", "rounds": 2, "blocks": [],
               "after": {**_SIZE, "params": 5}, "layers": [
        {"name": "conv1", "kind": "Conv2d", "channels_before": 16, "channels_after": 8, "weight_before": [16, 1, 3, 3],
         "weight_after": [8, 1, 3, 3], "params_before": 144, "params_after": 72, "macs_before": 9216,
         "macs_after": 4608}]}],
    "targets": [{"name": "step/0/params", "target": 0.5, "reached": 0.5, "met": True, "low": None, "high": None}],
    "target_met": True,
    "requirements": [{"name": "params_ratio", "required": "<= 0.5", "value": 0.5, "holds": True, "note": None}],
    "requirements_met": True,
    "estimate": {
        "epochs": 4, "epochs_low": 4, "epochs_high": 4, "images": 8, "epoch_params": 40, "spending": [
            {"part": "steps", "epochs": 4, "images": 8, "epoch_params": 40, "estimated_seconds": 60.0}],
        "estimated_seconds": 90.0, "estimated_seconds_low": 80.0, "estimated_seconds_high": 120.0,
        "training_seconds_per_image_original": 0.2, "training_seconds_per_image_pruned": 0.1, "device": "cpu",
        "threads": 1},
    "recipe": {"version": 1}, "assumptions": ["Nothing was trained."], "warnings": ["the test split is small"],
}  # fmt: skip
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63600000000200"
    "0148afa4710000000049454e44ae426082"
)
"""One black pixel."""
