"""`weights: mdl_…`: a job that begins with a checkpoint of another, in the whole pipeline."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from core import pipeline
from core.errors import CheckpointUnusable, RecipeInvalid
from core.graph.architectures import build
from core.graph.export import write_onnx
from core.graph.importers import load
from core.graph.plans import replay
from core.job import DatasetInput, JobInputs, ModelInput, ModelOptions
from core.recipe import parse_recipe
from core.report import Report
from tests.core.fakes import Dying, Events, Killed, no_memory

DIGITS = DatasetInput(path=None, sha256=None, format="digits")
ID = "mdl_01"
TRAIN = {"method": "train", "epochs": 4, "checkpoint_every": 2, "optimizer": {"name": "sgd", "lr": 0.05},
         "schedule": {"name": "constant"}}  # fmt: skip
PRUNE = {"method": "filter_norm", "target": {"macs": 0.7}, "ratio_per_round": 0.3, "every_epochs": 1,
         "fine_tune": {"epochs": 1}}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)


def read(path: Path, **options: Any) -> ModelInput:
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                      format="safetensors" if options else "onnx", options=ModelOptions(**options))  # fmt: skip


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> ModelInput:
    """As weights of a named architecture: another format than its checkpoints'."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "untrained.safetensors"
    network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).eval()
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return read(path, architecture="small_cnn", input_shape=(1, 8, 8))


def run(model: ModelInput, workdir: Path, weights: ModelInput | None, events: Events | None = None,
        **changes: Any) -> Report:  # fmt: skip
    document = {"weights": ID if weights else "random", "steps": [TRAIN],
                "training": {"batch_size": 64, "restore_best": False}, "export": {"channel_multiple": 4}}  # fmt: skip
    inputs = JobInputs(model=model, weights=weights, datasets=(DIGITS,), recipe=parse_recipe(document | changes),
                       threads=1)  # fmt: skip
    return pipeline.run(inputs, workdir, Events() if events is None else events)


@pytest.fixture(scope="module")
def first(untrained: ModelInput, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what a first job has left."""
    workdir = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
        patch.setattr("core.comparison.measure_memory", no_memory)
        run(untrained, workdir, None)
    return workdir / "out"


@pytest.fixture
def early(first: Path) -> ModelInput:
    return read(first / "checkpoint_step0_epoch0002.onnx")


def weights_of(workdir: Path) -> dict[str, torch.Tensor]:
    return load_file(workdir / "out" / "weights.safetensors")


def test_a_job_goes_on_from_a_checkpoint(untrained: ModelInput, early: ModelInput, tmp_path: Path) -> None:
    events = Events()
    report = run(untrained, tmp_path, early, events, steps=[PRUNE])
    assert report.target_met
    assert report.variants["original"].test.accuracy < 0.3, "the original is the upload, and may be untrained"
    assert report.variants["pruned"].test.accuracy > 0.6
    checks = {check.name: check for check in report.checks}
    assert checks["exactness/weights"].passed
    assert checks["parity/weights"].passed
    assert report.inputs["weights"]["sha256"] == early.sha256
    assert set(report.inputs["fingerprint"]) == {"model", "dataset", "recipe", "weights"}
    assert early.sha256 in report.reproduce
    assert early.sha256 in (tmp_path / "out" / "report.md").read_text()
    assert events.named("import/weights")[0]["sha256"] == early.sha256
    assert events.not_taken() == []
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())["plan"]
    assert [entry["op"] for entry in plan] == ["weights", "cut"]
    assert plan[0] == {"op": "weights", "sha256": early.sha256}
    shapes = {name: tensor.shape for name, tensor in weights_of(tmp_path).items()}
    assert {name: t.shape for name, t in replay(load(untrained), plan).state_dict().items()} == shapes
    replayed = replay(load(untrained), plan, weights=load(early))
    assert {name: t.shape for name, t in replayed.state_dict().items()} == shapes


def test_it_begins_where_the_checkpoint_was(untrained: ModelInput, early: ModelInput, tmp_path: Path) -> None:
    report = run(untrained, tmp_path, early, steps=[TRAIN | {"epochs": 0, "checkpoint_every": None}])
    pruned = load(read(tmp_path / "out" / "pruned.onnx"))
    x = pruned.example_input(8)
    torch.testing.assert_close(pruned(x), load(early)(x))
    assert report.variants["pruned"].params == report.variants["original"].params


@pytest.mark.parametrize("kill_at", [1, 3, 5])
def test_killed_it_ends_in_the_same_bits(
    kill_at: int, untrained: ModelInput, early: ModelInput, tmp_path: Path
) -> None:
    steps = [TRAIN | {"epochs": 2}, PRUNE]
    run(untrained, tmp_path / "whole", early, steps=steps)
    with pytest.raises(Killed):
        run(untrained, tmp_path / "again", early, Dying(kill_at), steps=steps)
    run(untrained, tmp_path / "again", early, steps=steps)
    one, two = ((tmp_path / name / "out" / "pruned.onnx").read_bytes() for name in ("whole", "again"))
    assert one == two


def test_a_state_of_other_weights_is_not_gone_on_from(
    first: Path, untrained: ModelInput, early: ModelInput, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(untrained, tmp_path, early, Dying(1))
    with pytest.raises(CheckpointUnusable, match="weights"):
        run(untrained, tmp_path, read(first / "checkpoint_step0_epoch0004.onnx"))


def test_controls_begin_with_them_too(untrained: ModelInput, early: ModelInput, tmp_path: Path) -> None:
    step = TRAIN | {"epochs": 0, "checkpoint_every": None}
    report = run(untrained, tmp_path, early, steps=[step], baselines=["unpruned", "random"])
    assert {report.variants[name].test.accuracy for name in ("pruned", "unpruned", "random")} == {
        report.variants["pruned"].test.accuracy
    }


def test_another_network_is_refused_with_all_differences(untrained: ModelInput, tmp_path: Path) -> None:
    other = build("small_cnn", num_classes=9, in_channels=3, image_size=(8, 8)).eval()
    write_onnx(other, tmp_path / "other.onnx", opset=17)
    with pytest.raises(RecipeInvalid) as error:
        run(untrained, tmp_path / "job", read(tmp_path / "other.onnx"))
    assert len(error.value.faults) >= 3, "the input, the first layer and the last"
    assert {fault.pointer for fault in error.value.faults} == {"/weights"}


def test_without_the_service(untrained: ModelInput, early: ModelInput, tmp_path: Path) -> None:
    recipe = parse_recipe({"weights": ID, "steps": [{"method": "train", "epochs": 1}]})
    inputs = JobInputs(model=untrained, weights=early, datasets=(DIGITS,), recipe=recipe, threads=1)
    (tmp_path / "job.json").write_text(inputs.model_dump_json())
    assert pipeline.main([str(tmp_path / "job.json"), str(tmp_path)]) == 0


def test_the_model_of_weights_is_given_where_it_is_named(untrained: ModelInput, early: ModelInput) -> None:
    for weights, given in ((ID, None), ("random", early), ("uploaded", early)):
        recipe = parse_recipe({"weights": weights, "steps": [PRUNE]})
        with pytest.raises(ValidationError, match="weights is given where"):
            JobInputs(model=untrained, weights=given, datasets=(DIGITS,), recipe=recipe)


@pytest.mark.parametrize("weights", ["trained", "mdl_", "mdl_../x", "MDL_1", "mdl_1\n", f"mdl_{'0' * 37}", 1, None])
def test_what_weights_may_not_be(weights: Any) -> None:
    with pytest.raises(RecipeInvalid) as error:
        parse_recipe({"weights": weights, "steps": [PRUNE]})
    (fault,) = error.value.faults
    assert fault.pointer == "/weights"
    assert "uploaded, random, or the id of a model" in fault.message
