"""Ratios, requirements and doubts, from figures written by hand; measuring itself is in test_pipeline.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from core.comparison import (
    changed_interface,
    doubts,
    measure,
    output_kind,
    ratios,
    requirement_results,
    sample_inputs,
)
from core.graph.architectures import build
from core.graph.export import write_onnx
from core.graph.lowering import trace
from core.measure.memory import MemoryNotMeasured
from core.recipe import parse_recipe
from core.report import Latency, Memory, SplitScore, Variant
from core.requirements import Requirements
from core.task_settings import MEASURES
from core.tasks import Classification
from tests.core.fakes import Events, small_dataset


def latency(milliseconds: float, *, stable: bool = True) -> Latency:
    return Latency(
        device="cpu", runtime="onnxruntime", batch_size=1, threads=1, latency_ms_p50=milliseconds,
        latency_ms_p90=milliseconds, latency_ms_p99=milliseconds, latency_ms_mean=milliseconds, latency_ms_std=0.0,
        windows=3, stable=stable, samples_ms=[milliseconds] * 3,
    )  # fmt: skip


def memory(peak: int, noise: int = 0) -> Memory:
    return Memory(
        peak_memory_bytes=peak, noise_bytes=noise, samples_bytes=[70_000 + peak] * 3, empty_samples_bytes=[70_000] * 3
    )


def variant(*, accuracy: float = 0.98, images: int = 100, **changes: Any) -> Variant:
    score = SplitScore(images=images, accuracy=accuracy, loss=0.1)
    fields: dict[str, Any] = {
        "validation": score, "test": score, "train": score, "params": 1000, "macs": 2000, "filters": 30, "blocks": 0,
        "file_bytes": 4000, "opset": 17, "sha256": "0" * 64, "latency": [latency(2.0)], "memory": memory(5000),
    }  # fmt: skip
    return Variant(**(fields | changes))


def test_ratios_are_pruned_over_original() -> None:
    pruned = variant(accuracy=0.97, params=500, macs=500, filters=15, file_bytes=1000, latency=[latency(1.5)],
                     memory=memory(4000))  # fmt: skip
    assert ratios(variant(), pruned) == {
        "params_ratio": 0.5,
        "macs_ratio": 0.25,
        "filters_ratio": 0.5,
        "file_bytes_ratio": 0.25,
        "latency_ratio": 0.75,
        "peak_memory_ratio": 0.8,
        "accuracy_drop": 0.01,  # exactly: 0.98 - 0.97 would be 0.010000000000000009
    }


@pytest.mark.parametrize(
    ("original", "pruned", "reason"),
    [
        (memory(0), memory(4096), "too small to measure: 0 bytes of the original in a noise of 0"),
        (memory(4096), memory(0), "too small to measure: 0 bytes of the pruned in a noise of 0"),
        (
            memory(4000, noise=9000),
            memory(3000, noise=8000),
            "too small to measure: 4,000 bytes of the original in a noise of 9,000 and 3,000 bytes of the pruned in a "
            "noise of 8,000",
        ),
        (memory(4000), None, "not measured: the measuring process failed"),
    ],
)
def test_a_memory_that_cannot_be_seen_has_no_ratio(original: Memory, pruned: Memory | None, reason: str) -> None:
    variants = {"original": variant(memory=original), "pruned": variant(memory=pruned)}
    assert "peak_memory_ratio" not in ratios(variants["original"], variants["pruned"])
    assert f"no ratio of peak memory: {reason}" in doubts(variants)
    required = Requirements(peak_memory_ratio="<= 5", params_ratio="<= 1")
    (params, missed) = requirement_results(required, variants["original"], variants["pruned"])
    assert (params.measured, params.passed, params.note) == (1, True, None)
    assert (missed.measured, missed.passed, missed.note) == (None, False, reason)


def test_what_the_original_has_none_of_has_no_ratio() -> None:
    linear = variant(filters=0)
    assert "filters_ratio" not in ratios(linear, linear)


def test_a_noisy_memory_is_told() -> None:
    noisy = {"original": variant(memory=memory(5000, noise=400)), "pruned": variant(memory=memory(5000, noise=600))}
    assert "peak memory of the pruned is 5,000 bytes in a noise of 600" in doubts(noisy)
    assert not any("of the original" in text for text in doubts(noisy))
    assert ratios(noisy["original"], noisy["pruned"])["peak_memory_ratio"] == 1


def test_another_opset_is_told() -> None:
    newer = {"original": variant(opset=13), "pruned": variant(opset=17)}
    recipe = parse_recipe({"steps": [{"method": "train", "epochs": 1}]})
    assert changed_interface(newer, recipe) == ["exported as opset 17, uploaded as 13: not drop-in"]


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
    (result,) = requirement_results(requirements, variant(), pruned)
    assert result.passed is passed


def test_every_requirement_has_something_to_be_measured_by() -> None:
    everything = Requirements(**dict.fromkeys(Requirements.model_fields, "<= 1"))
    names = [name for names in MEASURES.values() for name in names]
    score = SplitScore(images=100, accuracy=0.98, loss=0.1, measures=dict.fromkeys(names, 0.5))
    results = requirement_results(everything, variant(), variant(test=score))
    assert [result.name for result in results] == list(Requirements.model_fields)
    assert all(result.passed for result in results)


def test_a_measure_of_another_task_is_not_passed() -> None:
    (result,) = requirement_results(Requirements(cosine=">= 0.9"), variant(), variant())
    assert (result.passed, result.measured, result.note) == (False, None, "not measured in this task")


def test_doubts_are_told() -> None:
    calm = {"original": variant(images=5000), "pruned": variant(images=5000, latency=[latency(1.0)])}
    assert doubts(calm) == []
    restless = {"original": variant(), "pruned": variant(latency=[latency(3.0, stable=False)])}
    assert [text.partition(" on ")[0] for text in doubts(restless)][:2] == [
        "latency",
        "the pruned network is not faster",
    ]
    assert "1.00 %" in doubts(restless)[2]


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


def test_a_memory_that_is_not_measured_loses_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> dict[str, Memory]:
        raise MemoryNotMeasured("the process ended with -9", "Killed at /somewhere")

    monkeypatch.setattr("core.comparison.measure_memory", fails)
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
    network = build("small_cnn", num_classes=4, in_channels=1, image_size=(8, 8)).eval()
    write_onnx(network, tmp_path / "a.onnx", opset=13)
    names = ("original", "pruned")
    events = Events()
    files, networks = dict.fromkeys(names, tmp_path / "a.onnx"), dict.fromkeys(names, network)
    variants, _ = measure(files, networks, small_dataset(), task=Classification(), device="cpu", threads=1, emit=events)
    assert [variants[name].memory for name in names] == [None, None]
    assert [variants[name].opset for name in names] == [13, 13]
    assert "no ratio of peak memory: not measured: the measuring process failed" in doubts(variants)
    assert events.named("measure/memory_failed") == [{"reason": "the process ended with -9"}]
