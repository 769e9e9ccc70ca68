"""The report for people: what it says, and that names from uploads cannot break it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from core.report import Check, Cost, FrontPoint, Frozen, LatencyRatio, Layer, Report, RequirementResult, TargetResult
from core.report_markdown import to_markdown
from tests.core.test_comparison import latency, variant


def report(**changes: Any) -> Report:
    fields: dict[str, Any] = {
        "variants": {"original": variant(), "pruned": variant(accuracy=0.97, params=500, latency=[latency(1.0)])},
        "ratios": {"params_ratio": 0.5, "macs_ratio": 1.0, "latency_ratio": 0.5, "peak_memory_ratio": 1.0,
                   "accuracy_drop": 0.01},
        "target_met": True,
        "targets": [TargetResult(name="step/0/params", target=0.5, reached=0.5, met=True)],
        "requirements": [RequirementResult(name="accuracy_drop", required="<= 0.02", measured=0.01, passed=True)],
        "requirements_met": True,
        "checks": [Check(name="parity/export", error=1e-7, bound=1e-5, images=32, passed=True)],
        "layers": [
            Layer(name="conv|<b>1", kind="Conv2d", channels_before=16, channels_after=8, params_before=144,
                  params_after=72, macs_before=9216, macs_after=4608, latency_ms_before=0.5, latency_ms_after=None),
        ],
        "frozen": [Frozen(operator="output", node="fc", layers=["fc"], reason="the channels of a model output stay")],
        "front": [FrontPoint(step=0, round=0, params=1000, macs=2000, filters=30, blocks=9, validation_accuracy=None)],
        "cost": Cost(epochs=3, epochs_kept=2, epoch_params=3000, epoch_params_kept=2000, images=300, seconds=12.5),
        "macs_counted": ["convolutions"],
        "macs_not_counted": ["biases"],
        "inputs": {"model": {"sha256": "abc"}, "datasets": [{"format": "digits", "sha256": None}]},
        "recipe": {},
        "environment": {"cpu_model": "A CPU", "packages": {"torch": "2.13"}, "cpu_governor": None, "providers": ["x"]},
        "reproduce": "billhook prune MODEL",
    }  # fmt: skip
    return Report(**(fields | changes))


def test_it_begins_with_the_verdict() -> None:
    lines = to_markdown(report()).splitlines()
    assert lines[0] == "# Pruning report"
    assert lines[2] == (
        "50% of the parameters and 100% of the MACs remain; the latency is 0.50 of the original's; test accuracy "
        "97.00%, 1.00 points lower. The target is met. All requirements are met."
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"target_met": False}, "**The target is missed.**"),
        ({"requirements": []}, "Nothing was required."),
        (
            {
                "requirements_met": False,
                "requirements": [RequirementResult(name="latency_ratio", required="< 0.1", measured=0.5, passed=False)],
            },
            "**Requirements missed: latency_ratio.**",
        ),
        ({"warnings": ["the test split is small"]}, "> **Note:** the test split is small"),
    ],
)
def test_it_says_what_a_reader_must_know(changes: dict[str, Any], expected: str) -> None:
    assert expected in to_markdown(report(**changes))


def test_what_a_target_asks_for_is_told_of_every_network() -> None:
    point = FrontPoint(
        step=0, round=0, params=1000, macs=2000, filters=30, blocks=9, validation_accuracy=None, file_bytes=4321
    )
    measured = LatencyRatio(ratio=0.5, low=0.45, high=0.62, windows=15, original_ms=2.0, candidate_ms=1.0)
    text = to_markdown(
        report(
            front=[point, point.model_copy(update={"round": 1, "latency": measured})],
            targets=[TargetResult(name="step/0/latency", target=0.6, reached=0.5, met=False, low=0.45, high=0.62)],
        )
    )
    heads = "| step | round | parameters | MACs | filters | blocks | file, bytes | latency ratio (95 %) |"
    for row in (
        "| target step/0/latency | at most 0.6 | 0.5 (0.45 to 0.62, 95 %) | **no** |",
        f"{heads} validation accuracy |",
        "| 0 | 0 | 1,000 | 2,000 | 30 | 9 | 4,321 | – | – |",
        "| 0 | 1 | 1,000 | 2,000 | 30 | 9 | 4,321 | 0.500 (0.450 to 0.620) | – |",
    ):
        assert row in text
    assert "| step | round | parameters | MACs | filters | blocks | validation accuracy |" in to_markdown(report())
    plain = to_markdown(report(front=[point.model_copy(update={"blocks": 0, "file_bytes": None})]))
    assert "| step | round | parameters | MACs | filters | validation accuracy |" in plain
    assert "residual blocks" not in plain


def test_everything_of_the_report_is_in_it() -> None:
    text = to_markdown(report())
    for row in (
        "| test accuracy | 98.00% | 97.00% | -1.00 points |",
        "| parameters | 1,000 | 500 | 0.500 |",
        "| opset | 17 | 17 | – |",
        "| peak memory, MiB | 0.00 | 0.00 | 1.000 |",
        "| cpu, batch 1, 1 thread | pruned | 1.000 | 1.000 | 1.000 | 1.000 ± 0.000 | 3 | yes |",
        "| target step/0/params | at most 0.5 | 0.5 | yes |",
        "| requirement accuracy_drop | <= 0.02 | 0.01 | yes |",
        "| parity/export | 1e-07 | 1e-05 | 32 | yes |",
        "| `fc` | the channels of a model output stay | output | `fc` |",
        "| 0 | 0 | 1,000 | 2,000 | 30 | 9 | – |",
        "| 3 (2) | 3,000 (2,000) | 300 | 12.5 |",
        "| model, sha256 | `abc` |",
        "| dataset (digits), sha256 | `built in` |",
        "| packages | torch 2.13 |",
        "| cpu governor | – |",
    ):
        assert row in text
    assert "```\nbillhook prune MODEL\n```" in text


def test_a_memory_that_could_not_be_measured_is_said_to_be() -> None:
    missed = RequirementResult(
        name="peak_memory_ratio", required="<= 1", measured=None, passed=False, note="too small to measure: 0 bytes"
    )
    variants = {"original": variant(), "pruned": variant(memory=None)}
    ratios = {"params_ratio": 0.5, "macs_ratio": 1.0, "latency_ratio": 0.5, "accuracy_drop": 0.01}
    text = to_markdown(report(variants=variants, ratios=ratios, requirements=[missed]))
    assert "| peak memory, MiB | 0.00 | – | – |" in text
    assert "| requirement peak_memory_ratio | <= 1 | too small to measure: 0 bytes | **no** |" in text


def test_names_from_uploads_stay_in_their_cells() -> None:
    text = to_markdown(report())
    assert r"| `conv\|&lt;b>1` | Conv2d | 16 → 8 | 144 → 72 | 9,216 → 4,608 | – |" in text


def test_it_is_torch_free() -> None:
    code = "import core.report_markdown, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
