"""What the fake server answers where it makes nothing up."""

from __future__ import annotations

from typing import Any

WHEN = "2026-11-21T06:00:00Z"
GRAPH: dict[str, Any] = {
    "version": 1,
    "totals": {"params": 272474, "macs": 40813184, "filters": 784, "layers": 1, "groups": 2, "cuttable_groups": 1,
               "residual_blocks": 1, "branch_blocks": 1, "plain_layers": 0, "bypassable": 2, "frozen": 1,
               "free_params": 271312, "free_params_share": 0.9957, "conv_params": 270256,
               "free_conv_params_share": 1.0},
    "layers": [{"name": "layer1.0.conv1", "kind": "Conv2d", "input_shape": [16, 32, 32], "output_shape": [16, 32, 32],
                "channels": 16, "params": 2304, "macs": 2359296, "groups": ["layer1.0.conv1"], "frozen": False}],
    "groups": [
        {"name": "conv1", "width": 16, "unit_channels": 1, "cuttable": True, "always_kept": 3,
         "producers": ["conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"], "carriers": ["bn1"],
         "consumers": ["layer1.0.conv1"]},
        {"name": "fc", "width": 10, "unit_channels": 1, "cuttable": False, "always_kept": 0, "producers": ["fc"],
         "carriers": [], "consumers": []},
    ],
    "blocks": [
        {"name": "layer1.0", "kind": "residual", "position": 0, "layers": ["layer1.0.conv1"],
         "removed": ["layer1.0.conv1"], "params": 4672, "macs": 4718592, "input_shape": [16, 32, 32],
         "output_shape": [16, 32, 32], "shortcut": "identity", "projection": False, "alike": "layer1.0",
         "inside": None, "bypassable": True, "reason": None, "branches": []},
        {"name": "mixed", "kind": "branches", "position": 0, "layers": ["mixed.b1", "mixed.b2"],
         "removed": ["mixed.b1", "mixed.b2"], "params": 20, "macs": 30, "input_shape": [16, 8, 8],
         "output_shape": [4, 8, 8], "shortcut": None, "projection": False, "alike": "mixed", "inside": "outer",
         "bypassable": True, "reason": None, "branches": [
             {"name": "b1", "layers": ["mixed.b1"], "params": 10, "macs": 15, "bypassable": True, "reason": None},
             {"name": "b2", "layers": ["mixed.b2"], "params": 10, "macs": 15, "bypassable": False,
              "reason": "its channels go together with those of fc2"}]},
    ],
    "frozen": [{"operator": "output", "node": "linear", "layers": ["fc"],
                "reason": "the channels of a model output stay"}],
}  # fmt: skip
WORKERS: list[dict[str, Any]] = [
    {"id": f"wrk_{number:026}", "name": name, "host": "box", "queues": queues, "device": device, "version": "0.1.0",
     "state": state, "busy": busy, "works_on": works_on, "started_at": WHEN, "seen_at": WHEN}
    for number, (name, queues, device, state, busy, works_on) in enumerate([
        ("box:1", ["gpu", "gpu-0"], "cuda:0", "alive", True, "job_mine"),
        ("box:2", ["cpu"], "cpu", "silent", True, None),
        ("box:3", ["inspect"], None, "alive", False, None),
    ])
]  # fmt: skip
