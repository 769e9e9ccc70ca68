"""`head: replace`: an upload for other classes becomes a network for the dataset's, and is then pruned."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file

from core import pipeline
from core.errors import BaselineNearChance, DatasetMismatch, RecipeInvalid
from core.graph.architectures import build
from core.graph.batch_norm_folding import fold
from core.graph.export import write_onnx
from core.graph.importers import load
from core.graph.plans import replay
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from core.report import LatencyRatio, Report
from tests.core.fakes import Dying, Events, Killed, no_memory

DIGITS = DatasetInput(path=None, sha256=None, format="digits")
TRAIN = {"method": "train", "epochs": 3, "optimizer": {"name": "sgd", "lr": 0.05}}
PRUNE = {"method": "filter_norm", "target": {"macs": 0.7}, "ratio_per_round": 0.3, "every_epochs": 1,
         "fine_tune": {"epochs": 1}}  # fmt: skip
SECOND = PRUNE | {"target": {"macs": 0.5}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.2)
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)
    monkeypatch.setattr("core.training.trainer.CHECKPOINT_EPOCHS", 1)


def read(path: Path) -> ModelInput:
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


def with_softmax(path: Path) -> None:
    """Ends the file in a Softmax, as deployed classifiers do."""
    model = onnx.load(path)
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["scores" if name == output.name else name for name in node.output]
    model.graph.node.append(helper.make_node("Softmax", ["scores"], [output.name], axis=1))
    onnx.save(model, path)


@pytest.fixture(scope="module", params=["logits", "softmax", "folded"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelInput:
    """For 23 classes, and not trained for these at all."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    network = build("small_cnn", num_classes=23, in_channels=1, image_size=(8, 8)).train()
    with torch.no_grad():
        network(network.example_input(32))
    write_onnx(fold(network.eval())[0] if request.param == "folded" else network.eval(), path, opset=17)
    if request.param == "softmax":
        with_softmax(path)
    return read(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelInput:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("plain") / "model.onnx"
    network = build("small_cnn", num_classes=23, in_channels=1, image_size=(8, 8)).train()
    with torch.no_grad():
        network(network.example_input(32))
    write_onnx(network.eval(), path, opset=17)
    return read(path)


def run(model: ModelInput, workdir: Path, events: Events | None = None, **changes: Any) -> Report:
    document = {"head": "replace", "steps": [TRAIN, PRUNE], "training": {"batch_size": 64},
                "export": {"channel_multiple": 4}}  # fmt: skip
    inputs = JobInputs(model=model, datasets=(DIGITS,), recipe=parse_recipe(document | changes), threads=1)
    return pipeline.run(inputs, workdir, Events() if events is None else events)


def test_transfer_then_pruning(model: ModelInput, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folded = "folded" in request.node.name
    events = Events()
    report = run(model, tmp_path, events, batchnorm="insert" if folded else "keep")
    assert report.target_met
    assert not report.drop_in
    assert any("no drop-in replacement" in warning for warning in report.warnings)
    assert "no drop-in replacement" in (tmp_path / "out" / "report.md").read_text()
    original, pruned = report.variants["original"], report.variants["pruned"]
    assert original.test.accuracy > 0.3, "the new classifier after the train step"
    assert pruned.test.accuracy > (0.15 if folded else 0.5), "without scales it learns slowly"
    trained = events.named("step/0/epoch/3")[0]
    (looked,) = [body for name, body in events if name == "baseline/validation"]
    assert looked["accuracy"] >= trained["validation_accuracy"]
    assert original.validation.accuracy == pytest.approx(looked["accuracy"], abs=0.006)
    assert all(check.passed for check in report.checks)
    assert events.not_taken() == []
    ours, theirs = onnx.load(tmp_path / "out" / "pruned.onnx"), onnx.load(model.path)
    assert ours.graph.input == theirs.graph.input
    assert [dim.dim_value for dim in ours.graph.output[0].type.tensor_type.shape.dim][1:] == [10]
    assert ours.graph.output[0].name == theirs.graph.output[0].name
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())["plan"]
    wanted = ["head", "insert", "cut", "merge"] if folded else ["head", "cut"]
    assert [entry["op"] for entry in plan] == wanted
    shapes = {name: t.shape for name, t in load_file(tmp_path / "out" / "weights.safetensors").items()}
    assert {name: t.shape for name, t in replay(load(model), plan).state_dict().items()} == shapes


@pytest.mark.parametrize("kill_at", [1, 3, 4, 6, 8])
def test_killed_it_ends_in_the_same_bits(kill_at: int, plain: ModelInput, tmp_path: Path) -> None:
    """In the training, in the first pruning step, in the second, where the reference is no longer the network."""
    guarded = SECOND | {"target": {"macs": 0.5, "max_accuracy_drop": 0.9}}
    changes: dict[str, Any] = {"steps": [TRAIN, PRUNE, guarded], "training": {"batch_size": 64, "distill": None}}
    changes["steps"][1] = PRUNE | {"fine_tune": {"epochs": 1, "distill": {}}}
    whole = run(plain, tmp_path / "whole", **changes)
    with pytest.raises(Killed):
        run(plain, tmp_path / "again", Dying(kill_at), **changes)
    again = run(plain, tmp_path / "again", **changes)
    for name in ("pruned.onnx", "plan.json"):
        assert (tmp_path / "whole" / "out" / name).read_bytes() == (tmp_path / "again" / "out" / name).read_bytes()
    assert (tmp_path / "whole" / "original.onnx").read_bytes() == (tmp_path / "again" / "original.onnx").read_bytes()
    assert whole.targets == again.targets
    assert [target.name for target in whole.targets if "drop" in target.name] == ["step/2/max_accuracy_drop"]


def test_a_guard_counts_from_what_the_train_steps_left(plain: ModelInput, tmp_path: Path) -> None:
    step = PRUNE | {"target": {"macs": 0.7, "max_accuracy_drop": 0.5}}
    events = Events()
    report = run(plain, tmp_path, events, steps=[TRAIN, step])
    (looked,) = [body for name, body in events if name == "baseline/validation"]
    (guard,) = [target for target in report.targets if target.name.endswith("max_accuracy_drop")]
    assert guard.reached == pytest.approx(looked["accuracy"] - (report.front[-1].validation_accuracy or 0))


def test_controls(plain: ModelInput, tmp_path: Path) -> None:
    report = run(plain, tmp_path, baselines=["unpruned", "random", "scratch"])
    assert [control.name for control in report.controls] == ["unpruned", "random", "scratch"]
    assert report.variants["unpruned"].test.accuracy > 0.5
    assert report.variants["random"].params == report.variants["pruned"].params


def test_training_alone(plain: ModelInput, tmp_path: Path) -> None:
    step = TRAIN | {"checkpoint_every": 3}
    report = run(plain, tmp_path, steps=[step], requirements={"accuracy_drop": "<= 0"})
    assert report.requirements_met, "nothing was pruned: original and result are the same"
    kept = load(read(tmp_path / "out" / report.checkpoints[0].name))
    assert kept.outputs[0].shape[1] == 10


def test_with_the_weights_of_a_checkpoint(plain: ModelInput, tmp_path: Path) -> None:
    network = load(plain)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    write_onnx(network, tmp_path / "weights.onnx")
    recipe = parse_recipe({"head": "replace", "weights": "mdl_1", "steps": [TRAIN]})
    inputs = JobInputs(
        model=plain, weights=read(tmp_path / "weights.onnx"), datasets=(DIGITS,), recipe=recipe, threads=1
    )
    pipeline.run(inputs, tmp_path / "job", Events())
    plan = json.loads((tmp_path / "job" / "out" / "plan.json").read_text())["plan"]
    assert [entry["op"] for entry in plan] == ["weights", "head"]


def test_a_classifier_that_has_learnt_nothing_ends_the_job(plain: ModelInput, tmp_path: Path) -> None:
    step = TRAIN | {"epochs": 1, "optimizer": {"name": "sgd", "lr": 1e-9}}
    with pytest.raises(BaselineNearChance, match="no better than guessing") as error:
        run(plain, tmp_path, steps=[step, PRUNE])
    assert {fault.pointer for fault in error.value.faults} == {"/recipe/steps", "/recipe/allow_near_chance"}
    run(plain, tmp_path / "allowed", steps=[step], allow_near_chance=True)


def test_without_it_the_classes_must_fit(plain: ModelInput, tmp_path: Path) -> None:
    with pytest.raises(DatasetMismatch):
        run(plain, tmp_path, head="keep")


def test_a_drop_in_result_says_so(plain: ModelInput, tmp_path: Path) -> None:
    network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).eval()
    write_onnx(network, tmp_path / "ten.onnx", opset=17)
    report = run(read(tmp_path / "ten.onnx"), tmp_path, head="keep", weights="random", steps=[TRAIN])
    assert report.drop_in
    assert "drop-in" not in (tmp_path / "out" / "report.md").read_text()
    other = run(read(tmp_path / "ten.onnx"), tmp_path / "b", head="keep", weights="random", steps=[TRAIN],
                export={"opset": 13})  # fmt: skip
    assert not other.drop_in


def test_a_network_without_a_classifier(tmp_path: Path) -> None:
    """Two linear layers are added up: which of them is replaced?"""
    weights = [helper.make_tensor(name, TensorProto.FLOAT, shape, [0.1] * size)
               for name, shape, size in (("a", [64, 10], 640), ("b", [64, 10], 640))]  # fmt: skip
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "a"], ["p"]),
             helper.make_node("MatMul", ["f", "b"], ["q"]), helper.make_node("Add", ["p", "q"], ["y"])]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])], weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(RecipeInvalid, match="2 layers meet") as error:
        run(read(tmp_path / "m.onnx"), tmp_path)
    assert [fault.pointer for fault in error.value.faults] == ["/head"]


@pytest.mark.parametrize("kill_at", [4, 5, 6, 7])
def test_a_train_step_behind_pruning_learns_from_the_same_teacher_again(
    kill_at: int, plain: ModelInput, tmp_path: Path
) -> None:
    steps = [TRAIN, PRUNE, {"method": "train", "epochs": 3, "distill": {"weight": 0.9}}]
    run(plain, tmp_path / "whole", steps=steps)
    with pytest.raises(Killed):
        run(plain, tmp_path / "again", Dying(kill_at), steps=steps)
    run(plain, tmp_path / "again", steps=steps)
    whole, again = ((tmp_path / name / "out" / "pruned.onnx").read_bytes() for name in ("whole", "again"))
    assert whole == again


def test_latency_is_held_against_the_network_with_the_new_classifier(
    plain: ModelInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def measured(original: Path, candidate: Path, inputs: Any) -> LatencyRatio:
        shape = onnx.load(original).graph.output[0].type.tensor_type.shape
        seen.append([dim.dim_value for dim in shape.dim][1:])
        return LatencyRatio(ratio=0.5, low=0.5, high=0.5, windows=6, original_ms=1.0, candidate_ms=0.5)

    monkeypatch.setattr("core.exports.measure_latency_ratio", measured)
    run(plain, tmp_path, steps=[TRAIN, PRUNE | {"target": {"latency": 0.9}}])
    assert seen
    assert all(shape == [10] for shape in seen)


@pytest.mark.parametrize("task", ["imitation", "reconstruction"])
def test_other_tasks_have_no_classifier(task: str) -> None:
    with pytest.raises(RecipeInvalid, match="fault") as error:
        parse_recipe({"head": "replace", "task": task, "steps": [TRAIN]})
    assert any("head: replace is for classification" in fault.message for fault in error.value.faults)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": [TRAIN | {"distill": {"weight": 0, "features": 1}}, PRUNE]}, "no original to distill from"),
        ({"steps": [PRUNE]}, "needs a train step in front"),
        ({"steps": [PRUNE, TRAIN]}, "needs a train step in front"),
        ({"steps": [TRAIN | {"epochs": 0}, PRUNE]}, "needs a train step in front"),
        ({"steps": [TRAIN | {"freeze": "classifier"}, PRUNE]}, "without freeze: classifier"),
        ({"steps": [TRAIN, PRUNE], "training": {"freeze": "classifier"}}, "without freeze: classifier"),
        ({"steps": [TRAIN, PRUNE], "training": {"distill": {}}}, "no original to distill from"),
    ],
)
def test_what_makes_no_sense(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeInvalid) as error:
        parse_recipe({"head": "replace", **changes})
    (fault,) = error.value.faults
    assert fault.pointer == "/steps"
    assert said in fault.message
    parse_recipe({**changes})


def test_what_makes_sense() -> None:
    parse_recipe({"head": "replace", "steps": [TRAIN | {"freeze": "classifier"}, TRAIN, PRUNE]})
    parse_recipe({"head": "replace", "steps": [TRAIN | {"freeze": "body"}, PRUNE]})
    parse_recipe({"head": "replace", "training": {"distill": {}}, "steps": [TRAIN | {"distill": {"weight": 0}}, PRUNE]})
