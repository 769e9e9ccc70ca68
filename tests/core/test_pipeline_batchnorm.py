"""`batchnorm: insert`: a job on a network without BatchNorm fine-tunes with it, and gives back a file without it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from core import pipeline
from core.batchnorm import with_batch_norm, without_batch_norm
from core.errors import ExactnessFailed, RecipeInvalid
from core.graph.architectures import build
from core.graph.batch_norm import insert_with
from core.graph.batch_norm_folding import fold
from core.graph.export import write_onnx
from core.graph.importers import load
from core.graph.network import Network
from core.graph.plans import replay
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from core.report import Report
from core.state import FILE
from tests.core.fakes import Dying, Events, Killed

DETERMINISTIC = ("pruned.onnx", "weights.safetensors", "plan.json", "recipe.json")


@pytest.fixture(autouse=True)
def quick_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)


def settled() -> Network:
    network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).train()
    with torch.no_grad():
        for seed in range(3):
            network(network.example_input(16, seed))
    return network.eval()


def saved(network: Network, folder: Path) -> ModelInput:
    path = folder / "model.onnx"
    write_onnx(network, path, opset=17)
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelInput:
    """As exporters write it: convolutions with a bias, no BatchNorm."""
    return saved(fold(settled())[0], tmp_path_factory.mktemp("model"))


def job(model: ModelInput, **changes: Any) -> JobInputs:
    step = {"method": "filter_norm", "ratio_per_round": 0.3, "every_epochs": 1, "fine_tune": {"epochs": 1}}
    document = {
        "batchnorm": "insert",
        "allow_near_chance": True,
        "training": {"optimizer": {"name": "sgd", "lr": 0.02}, "batch_size": 128},
        "steps": [{**step, "target": {"macs": 0.8}}, {**step, "signal": "activations", "target": {"params": 0.6}}],
    }
    digits = DatasetInput(path=None, sha256=None, format="digits")
    recipe = parse_recipe({**document, **changes})
    return JobInputs.model_validate({"model": model, "datasets": (digits,), "recipe": recipe, "threads": 1})


@pytest.fixture(scope="module")
def run(model: ModelInput, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report, Events]:
    workdir, events = tmp_path_factory.mktemp("job"), Events()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
        return workdir, pipeline.run(job(model), workdir, events), events


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_the_file_has_the_operators_of_the_upload(run: tuple[Path, Report, Events], model: ModelInput) -> None:
    workdir, report, _ = run
    assert "BatchNormalization" not in operators(model.path)
    assert operators(workdir / "out" / "pruned.onnx") == operators(model.path)
    assert report.ratios["params_ratio"] <= 0.6
    assert report.target_met


def test_each_change_is_proved(run: tuple[Path, Report, Events]) -> None:
    _, report, events = run
    names = [check.name for check in report.checks]
    assert names.index("exactness/batchnorm/insert") < names.index("exactness/batchnorm/fold") < len(names) - 1
    assert all(check.passed for check in report.checks)
    assert not events.not_taken()
    bodies = dict(events)
    assert bodies["import/batchnorm"]["layers"] == {name: f"{name}_bn" for name in ("conv1", "conv2", "conv3")}
    assert bodies["export/batchnorm"]["layers"] == {f"{name}_bn": [name] for name in ("conv1", "conv2", "conv3")}
    assert sum(name.endswith("/recalibrate") for name in bodies) == 0, "measuring afresh is part of a round"


def test_the_counts_on_the_way_are_those_of_the_file(run: tuple[Path, Report, Events]) -> None:
    _, report, _ = run
    assert report.front[-1].params == report.variants["pruned"].params
    assert report.front[0].params == report.variants["original"].params
    assert not any("bn" in layer.name for layer in report.layers)


def test_the_plan_is_replayed_on_the_upload(run: tuple[Path, Report, Events], model: ModelInput) -> None:
    workdir, _, _ = run
    plan = json.loads((workdir / "out" / "plan.json").read_text())["plan"]
    assert [plan[0]["op"], plan[-1]["op"]] == ["insert", "merge"]
    assert {entry["op"] for entry in plan[1:-1]} == {"cut"}
    again = replay(load(model), plan)
    again.load_state_dict(load_file(workdir / "out" / "weights.safetensors"))
    images = again.example_input(5)
    session = onnxruntime.InferenceSession(str(workdir / "out" / "pruned.onnx"))
    (expected,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(again(images).numpy(), expected, atol=1e-4)


def test_killed_again_and_again_it_ends_in_the_same_bytes(
    run: tuple[Path, Report, Events], model: ModelInput, tmp_path: Path
) -> None:
    for _ in range(30):
        try:
            pipeline.run(job(model), tmp_path, Dying())
            break
        except Killed:
            assert (tmp_path / FILE).exists()
    for name in DETERMINISTIC:
        assert (tmp_path / "out" / name).read_bytes() == (run[0] / "out" / name).read_bytes(), name


def test_a_network_that_has_them_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="nothing to do") as caught:
        pipeline.run(job(saved(settled(), tmp_path)), tmp_path, Events())
    assert caught.value.faults[0].pointer == "/batchnorm"
    assert "a BatchNorm is behind it" in caught.value.faults[0].message
    assert caught.value.message == "batchnorm: insert has nothing to do"  # the fault says why, once


def test_keep_inserts_none(model: ModelInput, tmp_path: Path) -> None:
    events = Events()
    pipeline.run(job(model, batchnorm="keep"), tmp_path, events)
    assert not any(name.startswith("batchnorm") for name, _ in events)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())["plan"]
    assert {entry["op"] for entry in plan} == {"cut"}


def test_an_insertion_that_changes_outputs_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    network = fold(settled())[0]
    images = network.example_input(4)

    def wrong(*args: Any) -> tuple[Network, dict[str, Any]]:
        larger, entry = insert_with(*args)
        with torch.no_grad():
            larger.layers()["conv1_bn"].get_parameter("bias").add_(1e-3)
        return larger, entry

    monkeypatch.setattr("core.batchnorm.insert_with", wrong)
    with pytest.raises(ExactnessFailed, match="exactness/batchnorm/insert"):
        with_batch_norm(network, [images], images)


def test_one_that_is_gone_is_not_missed_and_one_that_must_stay_is_told() -> None:
    network = fold(settled())[0]
    images = network.example_input(4)
    larger, entry, _ = with_batch_norm(network, [images], images)
    half, _ = fold(larger, ["conv1_bn"])
    _, entries, checks, warnings = without_batch_norm(half, entry, images)
    assert [sorted(item["into"]) for item in entries] == [["conv2_bn", "conv3_bn"]]
    assert len(checks) == 1
    assert not warnings
    whole, _ = fold(larger, list(entry["layers"].values()))
    assert without_batch_norm(whole, entry, images)[1:] == ([], [], [])

    node = next(node for node in larger.module.graph.nodes if node.target == "conv1")
    (norm,) = node.users
    with larger.module.graph.inserting_after(norm):
        added = larger.module.graph.call_function(torch.ops.aten.add.Tensor, (norm, node))
    norm.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)
    odd = Network(larger.module, larger.inputs, larger.outputs, larger.origin, larger.input_shapes)
    left, _, _, warnings = without_batch_norm(odd, entry, images)
    assert "conv1_bn" in left.layers()
    (told,) = warnings
    assert told.startswith(
        "the inserted BatchNorm conv1_bn stays in the file: what the layer in front, conv1, makes is"
    )
