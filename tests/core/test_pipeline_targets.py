"""Jobs with targets of the file: what was predicted is what lies there, and the report says what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core import pipeline
from core.graph.architectures import build
from core.graph.batch_norm_folding import fold
from core.graph.export import write_onnx
from core.graph.external_data import parts
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from core.report import LatencyRatio, Report
from core.report_markdown import to_markdown
from tests.core.fakes import Events


@pytest.fixture(autouse=True)
def quick_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)


@pytest.fixture
def model(tmp_path: Path) -> ModelInput:
    """As exporters write it: convolutions with a bias, no BatchNorm."""
    network = fold(build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).eval())[0]
    write_onnx(network, tmp_path / "model.onnx", opset=17)
    return ModelInput(path=tmp_path / "model.onnx", sha256="0" * 64, format="onnx")


def run(model: ModelInput, workdir: Path, target: dict[str, Any], **changes: Any) -> tuple[Report, Events]:
    step = {"method": "filter_norm", "ratio_per_round": 0.25, "every_epochs": 1, "target": target,
            "fine_tune": {"epochs": 1}}  # fmt: skip
    recipe = parse_recipe({"steps": [step], "allow_near_chance": True, **changes})
    data, events = DatasetInput(path=None, sha256=None, format="digits"), Events()
    report = pipeline.run(JobInputs(model=model, datasets=(data,), recipe=recipe, threads=1), workdir, events)
    assert not events.not_taken()
    return report, events


@pytest.mark.parametrize("export", [{}, {"external_data_bytes": 1024, "channel_multiple": 1}])
@pytest.mark.parametrize("size", [0.5, 45_000])
def test_the_size_is_that_of_the_file(size: float, export: dict[str, Any], model: ModelInput, tmp_path: Path) -> None:
    report, events = run(model, tmp_path / "job", {"size": size}, export=export, batchnorm="insert")
    found = sum(part.stat().st_size for part in parts(tmp_path / "job" / "out" / "pruned.onnx"))
    assert events.named("/select")[-1]["file_bytes"] == report.front[-1].file_bytes == found
    (target,) = report.targets
    assert (target.name, target.met, report.target_met) == ("step/0/size", True, True)
    before = report.front[0].file_bytes
    assert before is not None
    assert target.reached == (found if isinstance(size, int) else found / before)
    assert report.variants["pruned"].file_bytes == found
    if not export:  # the upload was written as we write, but for how the weights lie
        assert report.variants["original"].file_bytes == before


def scripted(monkeypatch: pytest.MonkeyPatch, *ratios: float) -> list[tuple[Path, tuple[int, ...]]]:
    calls: list[tuple[Path, tuple[int, ...]]] = []
    script = iter(ratios)

    def measure(original: Path, candidate: Path, inputs: Any) -> LatencyRatio:
        assert candidate.exists()
        calls.append((original, inputs.shape))
        ratio = next(script)
        return LatencyRatio(
            ratio=ratio, low=ratio - 0.01, high=ratio + 0.01, windows=15, original_ms=1.0, candidate_ms=ratio
        )

    monkeypatch.setattr("core.exports.measure_latency_ratio", measure)
    return calls


def test_a_job_ends_where_the_latency_was_measured_to_be_low_enough(
    model: ModelInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = scripted(monkeypatch, 0.9, 0.7, 0.4)
    report, events = run(model, tmp_path / "job", {"latency": 0.5, "params": 0.9}, baselines=["random"])
    assert [round["latency"]["ratio"] for name, round in events if name.startswith("prune/") and "/select" in name] == [
        0.9, 0.7, 0.4
    ]  # fmt: skip
    assert calls == [(model.path, (1, 1, 8, 8))] * 3, "the upload, as in the report; not for random"
    assert report.variants["random"].params == report.variants["pruned"].params
    results = {target.name: target for target in report.targets}
    assert set(results) == {"step/0/params", "step/0/latency"}
    assert all(target.met for target in report.targets)


def test_what_the_report_says_of_a_latency(model: ModelInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, 0.9, 0.005)
    report, _ = run(model, tmp_path / "job", {"latency": 0.02})
    (target,) = report.targets
    assert (target.target, target.reached, target.met) == (0.02, 0.005, True)
    assert report.target_met
    assert [point.latency is None for point in report.front] == [True, False, False]
    assert "| target step/0/latency | at most 0.02 | 0.005 (-0.005 to 0.015, 95 %) | yes |" in to_markdown(report)
    again = report.ratios["latency_ratio"]
    assert any(f"measured again in the end it is {again:.4g}" in warning for warning in report.warnings), (
        "a fiftieth of the time is not what two rounds give"
    )
