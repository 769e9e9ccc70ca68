"""Rows of the benchmark of block removal, really run on a few images: what is told, failures, going on after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.blocks_originals import Images, Original, original
from bench.blocks_rows import Row, Study, rows
from bench.blocks_running import Log, run_row
from core.data.datasets import Dataset
from core.graph.architectures.cifar_resnet import CifarResNet
from core.graph.lowering import trace
from core.graph.network import Network
from tests.core.fakes import small_dataset

STUDY = Study(images=48, depth=14, epochs=1)
ROWS = {row.name: row for row in rows(STUDY)}
CPU = torch.device("cpu")


class FewImages(Images):
    @cached_property
    def whole(self) -> Dataset:
        return small_dataset(images=32, classes=10)


class Killed(BaseException):
    """Stands for kill -9."""


def small(study: Study, seed: int) -> Network:
    """Six blocks, for images of 8×8."""
    torch.manual_seed(seed)
    return trace(CifarResNet(study.depth, in_channels=1).eval(), (1, 8, 8))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("bench.blocks_running.untrained", small)
    monkeypatch.setattr("bench.blocks_originals.untrained", small)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return FewImages(48, tmp_path)


@pytest.fixture
def start() -> Original:
    weights = small(STUDY, 0).state_dict()
    return Original(0, weights, {0: weights}, 0.1, 0.9, {0: 0.9})


def run(row: Row, start: Original, images: Images, folder: Path) -> dict[str, Any]:
    return run_row(row, STUDY, start, images, folder, CPU)


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    cost = {name: value for name, value in result["cost"].items() if name != "seconds"}
    return {**result, "cost": cost, "seconds": None}


def test_a_row_tells_of_every_round_and_goes_on_after_a_kill(
    images: Images, start: Original, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ROWS["loops-4/random/half"]
    whole = run(row, start, images, tmp_path / "whole")
    assert (whole["status"], whole["error"]) == ("done", None)
    assert whole["blocks"] == 3
    assert [each["blocks"] for each in whole["rounds"]] == [5, 4, 3]
    tuned = [each["tuned_error"] is not None for each in whole["rounds"]]
    assert tuned == [bool(each["epochs"]) for each in whole["history"]["rounds"]]
    assert sum(tuned) == 3  # as many as there are rounds
    assert whole["rounds"][-1]["tuned_error"] == whole["test_error"]
    assert all(each["test_error"] is None for each in whole["rounds"])  # it costs time, and nothing is told of it
    assert not (tmp_path / "whole").exists()

    told = Log.__call__

    def dying(log: Log, name: str, /, **body: Any) -> None:
        told(log, name, **body)
        if name.endswith("/round/2/ranking"):
            raise Killed

    monkeypatch.setattr(Log, "__call__", dying)
    with pytest.raises(Killed):
        run(row, start, images, tmp_path / "killed")
    monkeypatch.setattr(Log, "__call__", told)
    assert (tmp_path / "killed" / "state" / "checkpoint.safetensors").exists()
    assert without_seconds(run(row, start, images, tmp_path / "killed")) == without_seconds(whole)


def test_a_row_that_raises_is_kept_with_its_error(images: Images, start: Original, tmp_path: Path) -> None:
    step = {"method": "block_removal", "target": {"blocks": 4}, "saliency": "nonsense", "fine_tune": {"epochs": 0}}
    row = Row("wrong", {"steps": [step]})
    result = run(row, start, images, tmp_path / "row")
    assert result["status"] == "failed"
    assert "RecipeInvalid" in result["error"]
    assert "/steps/0/saliency" in result["error"]


def test_a_control_is_told_in_place_of_the_pruned_network(images: Images, start: Original, tmp_path: Path) -> None:
    recipe = ROWS["scratch-same/most"].recipe
    (step,) = recipe["steps"]
    recipe = {**recipe, "steps": [step | {"saliency": "weights_mean", "target": {"blocks": 5}}],
              "baselines": [{"scratch": {"budget": 1}}]}  # fmt: skip
    result = run(Row("control", recipe, control=True), start, images, tmp_path / "row")
    assert (result["status"], result["blocks"]) == ("done", 5)
    assert result["cost"]["epochs"] == 1
    assert result["cost"]["epoch_params"] == result["params"]


def test_training_that_is_done_is_not_done_again(images: Images, start: Original, tmp_path: Path) -> None:
    train = {"method": "train", "epochs": 10}
    removal = {"method": "block_removal", "saliency": "weights_mean", "target": {"blocks": 5},
               "fine_tune": {"epochs": 0}}  # fmt: skip
    behind = run(Row("behind", {"steps": [train, removal], "weights": "random"}), start, images, tmp_path / "one")
    alone = run(Row("alone", {"steps": [removal]}), start, images, tmp_path / "other")
    assert (behind["status"], behind["cost"]["epochs"]) == ("done", 0)
    assert behind["history"]["rounds"][0]["scores"] == alone["history"]["rounds"][0]["scores"]
    assert behind["rounds"][0]["test_error"] == behind["test_error"]


def test_an_original_is_trained_once_and_goes_on_after_a_kill(images: Images, tmp_path: Path) -> None:
    def trained(folder: Path, die_at: int | None = None) -> tuple[Original, int]:
        epochs = 0

        def count() -> None:
            nonlocal epochs
            epochs += 1
            if epochs == die_at:
                raise Killed

        return original(STUDY, 0, images.whole, folder, CPU, count), epochs

    whole, epochs = trained(tmp_path / "whole")
    assert epochs == STUDY.original_epochs
    assert set(whole.checkpoints) == set(STUDY.checkpoints) == set(whole.checkpoint_errors)
    again, epochs = trained(tmp_path / "whole")
    assert epochs == 0
    with pytest.raises(Killed):
        trained(tmp_path / "killed", die_at=4)
    resumed, epochs = trained(tmp_path / "killed")
    assert epochs == STUDY.original_epochs - 1  # the first epoch had been saved
    for other in (again, resumed):
        assert other.checkpoint_errors == whole.checkpoint_errors
        assert all(torch.equal(other.weights[name], tensor) for name, tensor in whole.weights.items())
        assert all(
            torch.equal(other.checkpoints[epoch][name], tensor)
            for epoch, weights in whole.checkpoints.items()
            for name, tensor in weights.items()
        )
