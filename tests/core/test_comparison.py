"""Ratios, requirements and doubts, from figures written by hand; measuring itself is in test_pipeline.py."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from core.comparison import doubts, output_kind, ratios, requirement_results, sample_inputs
from core.graph.architectures import build
from core.graph.lowering import trace
from core.recipe import Requirements
from core.report import Latency, Memory, SplitScore, Variant
from tests.core.fakes import small_dataset


def latency(milliseconds: float, *, stable: bool = True) -> Latency:
    return Latency(
        device="cpu", runtime="onnxruntime", batch_size=1, threads=1, latency_ms_p50=milliseconds,
        latency_ms_p90=milliseconds, latency_ms_p99=milliseconds, latency_ms_mean=milliseconds, latency_ms_std=0.0,
        windows=3, stable=stable, samples_ms=[milliseconds] * 3,
    )  # fmt: skip


def variant(*, accuracy: float = 0.98, images: int = 100, **changes: Any) -> Variant:
    score = SplitScore(images=images, accuracy=accuracy, loss=0.1)
    fields: dict[str, Any] = {
        "validation": score, "test": score, "params": 1000, "macs": 2000, "filters": 30, "file_bytes": 4000,
        "sha256": "0" * 64, "latency": [latency(2.0)], "memory": Memory(peak_memory_bytes=5000),
    }  # fmt: skip
    return Variant(**(fields | changes))


def test_ratios_are_pruned_over_original() -> None:
    pruned = variant(accuracy=0.97, params=500, macs=500, filters=15, file_bytes=1000, latency=[latency(1.5)],
                     memory=Memory(peak_memory_bytes=4000))  # fmt: skip
    assert ratios(variant(), pruned) == {
        "params_ratio": 0.5,
        "macs_ratio": 0.25,
        "filters_ratio": 0.5,
        "file_bytes_ratio": 0.25,
        "latency_ratio": 0.75,
        "peak_memory_ratio": 0.8,
        "accuracy_drop": 0.01,  # exactly: 0.98 - 0.97 would be 0.010000000000000009
    }


def test_a_memory_too_small_to_see_has_a_ratio_still() -> None:
    nothing = variant(memory=Memory(peak_memory_bytes=0))
    assert ratios(nothing, nothing)["peak_memory_ratio"] == 1


@pytest.mark.parametrize(
    ("requirements", "passed"),
    [
        (Requirements(accuracy_drop="<= 0.01"), True),
        (Requirements(accuracy_drop="< 0.01"), False),
        (Requirements(accuracy=">= 0.97"), True),
        (Requirements(accuracy="> 0.97"), False),
        (Requirements(latency_ratio="<= 0.9"), False),
    ],
)
def test_requirements_are_compared_as_written(requirements: Requirements, passed: bool) -> None:
    pruned = variant(accuracy=0.97)
    (result,) = requirement_results(requirements, pruned, ratios(variant(), pruned))
    assert result.passed is passed


def test_every_requirement_has_something_to_be_measured_by() -> None:
    everything = Requirements(**dict.fromkeys(Requirements.model_fields, "<= 1"))
    results = requirement_results(everything, variant(), ratios(variant(), variant()))
    assert [result.name for result in results] == list(Requirements.model_fields)
    assert all(result.passed for result in results)


def test_doubts_are_told() -> None:
    calm = {"original": variant(images=5000), "pruned": variant(images=5000, latency=[latency(1.0)])}
    assert doubts(calm) == []
    restless = {"original": variant(), "pruned": variant(latency=[latency(3.0, stable=False)])}
    assert [text.partition(" on ")[0] for text in doubts(restless)][:2] == [
        "latency",
        "the pruned network is not faster",
    ]
    assert "1.00 points" in doubts(restless)[2]


def test_sample_inputs_go_round_where_images_are_few() -> None:
    data = small_dataset(images=4)
    inputs = sample_inputs(data, "test", 5)
    assert inputs.shape == (5, 1, 8, 8)
    assert inputs[0].equal(inputs[2])
    assert inputs[1].equal(inputs[3])


def test_what_the_first_output_is() -> None:
    plain = build("small_cnn", in_channels=1, image_size=(8, 8)).eval()
    assert output_kind(plain) == "logits"
    module = nn.Sequential(nn.Conv2d(1, 2, 8), nn.Flatten(), nn.Softmax(1))
    assert output_kind(trace(module, (1, 8, 8), format="safetensors")) == "probabilities"
