"""A dry run of block removal: held against the job, what it scores on, and what it says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from core import dry_run_estimate, pipeline
from core.block_report import BlockAnalysis
from core.blocks.analysis import order_of
from core.dry_run import dry_run
from core.dry_run_report import Size
from core.dry_run_scoring import scoring_images
from core.graph.importers import load
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from core.report import Report
from core.saliency.block_scores import SALIENCIES, Scoring
from tests.core.fakes import Events, no_memory

MODEL = Path(__file__).parents[2] / "examples" / "digits_resnet20.onnx"
DIGITS = DatasetInput(path=None, sha256=None, format="digits")
STEP: dict[str, Any] = {"method": "block_removal", "saliency": "weights_mean"}
FILTERS: dict[str, Any] = {"method": "filter_norm", "ratio_per_round": 0.5, "every_epochs": 1}
BY_TWO = {**STEP, "blocks_per_round": 2, "target": {"blocks": 5}, "fine_tune": {"epochs": 1}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.3)
    monkeypatch.setattr("core.measure.latency_ratio.WINDOW_SECONDS", 0.01)
    monkeypatch.setattr("core.dry_run.TIMING_SECONDS", 1.0)
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)


def job(*steps: dict[str, Any], **recipe: Any) -> JobInputs:
    document = {"training": {"optimizer": {"name": "sgd", "lr": 0.02}, "batch_size": 64}, "steps": steps, **recipe}
    model = ModelInput(path=MODEL, sha256=hashlib.sha256(MODEL.read_bytes()).hexdigest(), format="onnx")
    return JobInputs.model_validate(
        {"model": model, "datasets": (DIGITS,), "recipe": parse_recipe(document), "threads": 1}
    )


@pytest.fixture(scope="module")
def job_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def inputs() -> JobInputs:
    """Two blocks a round, so that a round has two entries of the plan, and the control random."""
    return job(BY_TWO, baselines=["random"])


@pytest.fixture(scope="module")
def report(inputs: JobInputs, job_folder: Path) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.comparison.LATENCY_SECONDS", 0.3)
        patch.setattr("core.comparison.measure_memory", no_memory)
        return pipeline.run(inputs, job_folder, Events())


def test_what_it_tells_is_what_the_job_does(inputs: JobInputs, report: Report, tmp_path: Path) -> None:
    told = dry_run(inputs, tmp_path, Events())
    assert told.steps[0].blocks == report.blocks[0].order
    assert (told.steps[0].rounds, len(told.steps[0].blocks), told.steps[0].after.blocks) == (2, 4, 5)
    pruned = report.variants["pruned"]
    assert (told.original.blocks, told.pruned.blocks) == (9, 5)
    assert told.steps[0].after == told.pruned
    assert told.pruned.model_dump() == {name: getattr(pruned, name) for name in Size.model_fields}
    gone = {layer.name for layer in report.layers if layer.params_after == 0 and layer.params_before > 0}
    assert {layer.name for layer in told.steps[0].layers if layer.params_after == 0} == gone
    assert all((layer.weight_after, layer.channels_after) == ([], 0)
               for layer in told.steps[0].layers if layer.name in gone)  # fmt: skip
    costs = {"steps": report.cost, **{control.name: control.cost for control in report.controls}}
    assert {each.part: each.epochs for each in told.estimate.spending} == {
        name: cost.epochs for name, cost in costs.items()
    }
    assert told.assumptions[0].startswith("Nothing was trained: which blocks go")


def test_filters_behind_blocks(tmp_path: Path) -> None:
    """Each step is told by its own entries of the plan; the control may have lost the blocks that filters go from."""
    filters = {**FILTERS, "target": {"macs": 0.4}, "fine_tune": {"epochs": 1}}
    told = dry_run(job(BY_TWO, filters, baselines=["random"]), tmp_path, Events(), timed=False)
    first, second = told.steps
    assert (first.rounds, len(first.blocks), first.after.blocks, first.after.filters) == (2, 4, 5, 784 - 3 * 128 - 64)
    assert (second.blocks, second.after.blocks, second.after) == ([], 5, told.pruned)
    assert second.rounds > 0
    assert all(layer.channels_after > 0 for layer in second.layers)
    assert told.assumptions[0].startswith("Nothing was trained: which blocks and filters go")
    assert not any("control random failed" in warning for warning in told.warnings)


def test_the_report_compares_it_with_random(report: Report, job_folder: Path) -> None:
    own, random = report.blocks
    assert isinstance(own, BlockAnalysis)
    assert [(each.step, each.run, each.saliency) for each in report.blocks] == [
        (0, "pruned", "weights_mean"), (0, "random", "random"),
    ]  # fmt: skip
    assert own.comparison is not None
    assert random.comparison is None
    common = set(own.order) & set(random.order)
    assert [each.removed for each in own.comparison.agreements] == [0, 2, 4]
    assert own.comparison.agreements[-1].overlap == len(common) / 4
    assert order_of(own) == own.order
    assert (job_folder / "out" / "blocks.svg").read_bytes().startswith(b"<?xml")
    text = (job_folder / "out" / "report.md").read_text()
    assert "### Step 0, saliency weights_mean: 4 of 9 blocks" in text
    assert "### Step 0, the control random: 4 of 9 blocks" in text
    assert "Against random:" in text
    assert "| residual blocks | 9 | 5 | 0.556 |" in text


def test_images_are_looked_at_once_and_few_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, int]] = []

    def scores(scoring: Scoring) -> dict[str, float]:
        seen.append((len(scoring.data.splits[scoring.split]), len(scoring.data.splits["train"]), scoring.round))
        return {each.name: -float(place) for place, each in enumerate(scoring.candidates)}

    monkeypatch.setitem(SALIENCIES, "oracle", scores)  # type: ignore[call-overload]
    monkeypatch.setattr("core.dry_run_scoring.MOST_IMAGES", 40)
    step = {**STEP, "saliency": "oracle", "target": {"blocks": 6, "max_accuracy_drop": 0.0}, "fine_tune": {"epochs": 1}}
    told = dry_run(job(step), tmp_path, Events())
    assert seen == [(40, 40, 0)]
    assert told.steps[0].blocks == ["blocks.8", "blocks.7", "blocks.6"]
    text = " ".join(told.assumptions)
    for words in ("scored by oracle once", "at most 40 images of validation", "max_accuracy_drop 0 was left out"):
        assert words in text


def test_the_time_that_scoring_takes_is_in_the_estimate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The job's own, in front of each round: 9, 8 and 7 candidates, half a network each, on 179 images."""
    taken: list[Any] = []
    real = dry_run_estimate._besides

    def besides(*arguments: Any) -> float:
        *others, found, pick = arguments
        with_it, without = real(*others, found, pick), real(*others, [], pick)
        taken.append((found, with_it - without, [others[-1].evaluation.seconds(macs, pick) for _, macs in found]))
        return with_it

    monkeypatch.setattr(dry_run_estimate, "_besides", besides)
    monkeypatch.setitem(SALIENCIES, "oracle", SALIENCIES["weights_mean"])  # type: ignore[call-overload]
    dry_run(
        job({**STEP, "saliency": "oracle", "target": {"blocks": 6}, "fine_tune": {"epochs": 1}}), tmp_path, Events()
    )
    assert len(taken) == 3  # the middle of the estimate, and its ends
    for found, seconds, each in taken:
        assert [images for images, _ in found] == [9 * 179 // 2, 8 * 179 // 2, 7 * 179 // 2]
        assert seconds == pytest.approx(805 * each[0] + 716 * each[1] + 626 * each[2])
        assert seconds > 0


def test_large_networks_are_shown_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load(job({**STEP, "target": {"blocks": 6}}).model)  # nine blocks of 2,532,992 MACs in all
    assert scoring_images(network) == 256
    monkeypatch.setattr("core.dry_run_scoring.MOST_MACS", 100 * (9 * 2_532_992 // 2))
    assert scoring_images(network) == 100
    monkeypatch.setattr("core.dry_run_scoring.MOST_MACS", 1)
    assert scoring_images(network) == 16


def test_a_threshold_counts_among_what_may_be_needed(tmp_path: Path) -> None:
    step = {**STEP, "target": {"blocks": 6}, "fine_tune": {"epochs": 3, "policy": {"threshold": 0.01}}}
    told = dry_run(job(step), tmp_path, Events(), timed=False)
    assert (told.estimate.epochs, told.estimate.epochs_high) == (3, 9)
