"""A report and summaries as `core` writes them, with little in them. `RESULTS` is what a list of jobs shows of it."""

from __future__ import annotations

from typing import Any

_SCORE = {"images": 360, "accuracy": 0.5, "loss": {"$float": "nan"}}
_VARIANT = {
    "validation": _SCORE, "test": _SCORE, "train": _SCORE, "params": 10, "macs": 10, "filters": 1,
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
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63600000000200"
    "0148afa4710000000049454e44ae426082"
)
"""One black pixel."""
