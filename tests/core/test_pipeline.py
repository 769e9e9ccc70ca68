"""The whole job: a trained network on the digits, pruned in two steps, killed again and again, measured, reported."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from billhook.cli.prune import requirement
from core import pipeline
from core.data.datasets import load_dataset
from core.data.digits import DIGITS as DIGITS_FILE
from core.data.fit import check_fits
from core.errors import (
    BaselineNearChance,
    BillhookError,
    CheckpointUnusable,
    DatasetMismatch,
    DeviceUnavailable,
    ModelUnreadable,
)
from core.graph.architectures import build
from core.graph.counts import count
from core.graph.export import write_onnx
from core.graph.importers import load
from core.graph.network import Network
from core.graph.plans import replay
from core.job import DatasetInput, JobInputs, ModelInput, ModelOptions
from core.progress import Progress
from core.recipe import Recipe, parse_recipe
from core.report import Report
from core.reproduction import described, fingerprint, reproduce
from core.requirements import Requirements
from core.state import FILE
from core.training.trainer import Trainer
from core.training_settings import CosineSchedule, Sgd, Training
from tests.core.fakes import Dying, Events, Killed, empty_state, no_memory

DIGITS = DatasetInput(path=None, sha256=None, format="digits")
SPLIT_SIZES = {"train": 1259, "validation": 179, "test": 359}
DETERMINISTIC = ("pruned.onnx", "weights.safetensors", "plan.json", "recipe.json")


@pytest.fixture(autouse=True)
def quick_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 1.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """small_cnn after three epochs of the digits: about 90 %."""
    network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8))
    data = check_fits(load_dataset(DIGITS), network.inputs, network.outputs)
    events = Events()
    trainer = Trainer(data, training=Training(), device=torch.device("cpu"), seed=0, original_macs=1, emit=events,
                      progress=Progress(events))  # fmt: skip
    training = Training(optimizer=Sgd(lr=0.05), schedule=CosineSchedule(), batch_size=64)
    state = empty_state(tmp_path_factory.mktemp("trained"))
    trainer.fit(network, training=training, epochs=3, label="train", state=state)
    return network


@pytest.fixture(scope="module")
def model(trained: Network, tmp_path_factory: pytest.TempPathFactory) -> ModelInput:
    path = tmp_path_factory.mktemp("model") / "digits.onnx"
    write_onnx(trained, path, opset=17)
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


def recipe(**changes: Any) -> Recipe:
    step = {"method": "filter_norm", "ratio_per_round": 0.3, "every_epochs": 1}
    document = {
        "training": {"optimizer": {"name": "sgd", "lr": 0.02}, "batch_size": 64, "augment": "crop"},
        "steps": [
            {**step, "target": {"macs": 0.8}, "fine_tune": {"epochs": 1}},
            {**step, "signal": "activations", "target": {"params": 0.5, "macs": 0.5}, "fine_tune": {"epochs": 2}},
        ],
        "requirements": {"params_ratio": "<= 0.5", "latency_ratio": "<= 0.000001"},
    }
    return parse_recipe({**document, **changes})


def job(model: ModelInput, **changes: Any) -> JobInputs:
    fields = {"model": model, "datasets": (DIGITS,), "recipe": recipe(), "threads": 1, **changes}
    return JobInputs.model_validate(fields)


@pytest.fixture(scope="module")
def workdir(model: ModelInput, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A job that was run by `python -m core.pipeline`."""
    workdir = tmp_path_factory.mktemp("job")
    (workdir / "job.json").write_text(job(model, requirements={"accuracy": ">= 0.5"}).model_dump_json())
    with pytest.MonkeyPatch.context() as patch, (workdir / "events.jsonl").open("w") as events:
        patch.setattr("core.comparison.LATENCY_SECONDS", 1.0)
        patch.setattr("sys.stdout", events)
        assert pipeline.main([str(workdir / "job.json"), str(workdir)]) == 0
    return workdir


@pytest.fixture(scope="module")
def report(workdir: Path) -> Report:
    return Report.model_validate_json((workdir / "out" / "report.json").read_bytes())


@pytest.fixture(scope="module")
def events(workdir: Path) -> list[tuple[str, dict[str, Any]]]:
    lines = (workdir / "events.jsonl").read_text().splitlines()
    return [(event["name"], event["body"]) for event in map(json.loads, lines)]


def test_the_result_is_a_drop_in_replacement(workdir: Path, model: ModelInput) -> None:
    ours, theirs = onnx.load(workdir / "out" / "pruned.onnx"), onnx.load(model.path)
    assert ours.graph.input == theirs.graph.input
    assert ours.graph.output == theirs.graph.output
    assert ours.opset_import == theirs.opset_import


def test_a_dataset_that_is_streamed_gives_the_same_file(
    workdir: Path, model: ModelInput, tmp_path: Path, quick_latency: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digits from their file, which takes no memory: every stage of a job works piece by piece."""
    monkeypatch.setattr("core.comparison.measure_memory", no_memory)
    digits = DatasetInput(path=DIGITS_FILE, sha256=None, format="npz")
    streamed = job(model, datasets=(digits,), room={"memory_bytes": 0})
    assert fingerprint(streamed) == fingerprint(job(model, datasets=(digits,)))
    events = Events()
    report = pipeline.run(streamed, tmp_path, events)
    (summary,) = events.named("import/dataset")
    assert summary["images"] == 1797
    assert (tmp_path / "out" / "pruned.onnx").read_bytes() == (workdir / "out" / "pruned.onnx").read_bytes()
    theirs = Report.model_validate_json((workdir / "out" / "report.json").read_bytes())
    assert report.variants["pruned"].test == theirs.variants["pruned"].test
    assert summary["splits"] == theirs.inputs["datasets"][0]["splits"]


def test_the_report_says_what_the_file_does(workdir: Path, report: Report, model: ModelInput) -> None:
    dataset = check_fits(load_dataset(DIGITS), load(model).inputs, load(model).outputs)
    split = dataset.splits["test"]
    for name, path in (("original", model.path), ("pruned", workdir / "out" / "pruned.onnx")):
        session = onnxruntime.InferenceSession(str(path))
        outputs = session.run(None, {session.get_inputs()[0].name: dataset.preprocess(split.x).numpy()})[0]
        variant = report.variants[name]
        assert variant.test.accuracy == pytest.approx(np.mean(outputs.argmax(1) == split.y.numpy()))
        assert variant.file_bytes == path.stat().st_size
        assert variant.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        network = load(ModelInput(path=path, sha256="", format="onnx"))
        assert (variant.params, variant.macs, variant.filters) == (
            count(network).params, count(network).macs, count(network).filters,
        )  # fmt: skip
        assert variant.latency[0].threads == 1
        assert len(variant.latency[0].samples_ms) > 10
    assert {name: variant.test.images for name, variant in report.variants.items()} == {"original": 359, "pruned": 359}
    assert report.ratios["params_ratio"] == report.variants["pruned"].params / report.variants["original"].params
    assert report.ratios["accuracy_drop"] == pytest.approx(
        report.variants["original"].test.accuracy - report.variants["pruned"].test.accuracy
    )


def test_targets_and_requirements_are_evaluated(report: Report) -> None:
    assert report.target_met
    assert [target.name for target in report.targets] == ["step/0/macs", "step/1/params", "step/1/macs"]
    assert all(target.reached <= target.target for target in report.targets)
    passed = {item.name: item.passed for item in report.requirements}
    assert passed == {"params_ratio": True, "latency_ratio": False, "accuracy": True}  # the job's own are added
    assert not report.requirements_met


def test_proofs_layers_front_and_cost_are_in_the_report(report: Report, events: list[tuple[str, Any]]) -> None:
    assert all(check.passed and check.error <= check.bound for check in report.checks)
    cuts = [name for name, body in events if name.endswith("/select") and body["removed"]]
    proofs = [f"exactness/{name.removesuffix('/select')}" for name in cuts]
    assert [check.name for check in report.checks] == ["parity/import", *proofs, "parity/export"]
    layers = {layer.name: layer for layer in report.layers}
    assert layers["conv3"].channels_before == 64
    assert layers["conv3"].channels_after is not None
    assert layers["conv3"].channels_after < 64
    assert layers["conv3"].channels_after % 8 == 0
    assert sum(layer.params_after for layer in report.layers) == report.variants["pruned"].params
    assert sum(layer.macs_before for layer in report.layers) == report.variants["original"].macs
    assert report.front[0].params == report.variants["original"].params
    assert report.front[-1].params == report.variants["pruned"].params
    assert report.cost.epochs == len([name for name, _ in events if "/epoch/" in name])
    assert report.cost.images == report.cost.epochs * SPLIT_SIZES["train"]
    assert any("fc" in frozen.layers for frozen in report.frozen)


def test_the_files_belong_together(workdir: Path, model: ModelInput) -> None:
    out = workdir / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted([*DETERMINISTIC, "report.json", "report.md"])
    plan = json.loads((out / "plan.json").read_text())
    assert plan["model"] == model.sha256
    rebuilt = replay(load(model), plan["plan"])
    rebuilt.load_state_dict(load_file(out / "weights.safetensors"))
    pruned = load(ModelInput(path=out / "pruned.onnx", sha256="", format="onnx"))
    x = rebuilt.example_input(batch=4)
    with torch.no_grad():
        assert torch.allclose(rebuilt.eval()(x), pruned.eval()(x), atol=1e-5)
    assert parse_recipe(json.loads((out / "recipe.json").read_text())) == recipe()
    markdown = (out / "report.md").read_text()
    assert markdown.startswith("# Pruning report")
    assert "**Requirements missed: latency_ratio.**" in markdown


def test_events_tell_the_stages_in_order(events: list[tuple[str, dict[str, Any]]]) -> None:
    stages = [name.partition("/")[0] for name, _ in events if name not in ("progress", "checkpoint")]
    changes = [stage for index, stage in enumerate(stages) if index == 0 or stages[index - 1] != stage]
    assert changes == ["import", "baseline", "prune", "fine_tune", "prune", "fine_tune", "export", "measure"]
    numbers = [body["number"] for name, body in events if name == "checkpoint"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all(body["file"] == FILE for name, body in events if name == "checkpoint")
    fractions = [body["fraction"] for name, body in events if name == "progress"]
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= 1 for fraction in fractions)
    selects = [body for name, body in events if name.endswith("/select")]
    assert selects
    assert set(selects[0]["scores"]) == {"conv1", "conv2", "conv3"}
    assert [len(selects[0]["scores"][name]) for name in ("conv1", "conv2", "conv3")] == [16, 32, 64]


def test_dying_after_every_checkpoint_it_still_ends_in_the_same_bytes(
    workdir: Path, model: ModelInput, events: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    attempts, epochs = 0, []
    while True:
        attempts += 1
        told = Dying()
        try:
            pipeline.run(job(model), tmp_path, told)
        except Killed:
            epochs += [name for name, _ in told if "/epoch/" in name]
            continue
        epochs += [name for name, _ in told if "/epoch/" in name]
        break
    assert attempts > 6
    expected = [name for name, _ in events if "/epoch/" in name]
    # the second epoch of the last fine-tuning ends without a checkpoint of its own and is not repeated either
    assert epochs == expected
    for name in DETERMINISTIC:
        assert (tmp_path / "out" / name).read_bytes() == (workdir / "out" / name).read_bytes()


def test_weights_of_an_architecture_and_a_target_that_is_met(trained: Network, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, path)
    options = ModelOptions(architecture="small_cnn", input_shape=(1, 8, 8))
    model = ModelInput(path=path, sha256="0" * 64, format="safetensors", options=options)
    steps = [{"method": "filter_norm", "target": {"params": count(trained).params}}]
    events = Events()
    report = pipeline.run(job(model, recipe=recipe(steps=steps)), tmp_path / "work", events)
    assert report.variants["original"].params == report.variants["pruned"].params
    assert report.variants["original"].sha256 == report.variants["pruned"].sha256
    assert report.target_met
    assert "step 0 was skipped: the target is met already" in report.warnings
    assert [check.name for check in report.checks] == ["parity/original", "parity/export"]
    assert events.named("prune/step/0/skipped")
    assert "--architecture small_cnn --input-shape 1,8,8" in report.reproduce


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(error: type[BillhookError], inputs: JobInputs, workdir: Path) -> BillhookError:
    with pytest.raises(error) as raised:
        pipeline.run(inputs, workdir, Events())
    return raised.value


def test_an_original_no_better_than_guessing(tmp_path: Path) -> None:
    network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).eval()
    write_onnx(network, tmp_path / "random.onnx")
    model = ModelInput(path=tmp_path / "random.onnx", sha256="0" * 64, format="onnx")
    error = refused(BaselineNearChance, job(model), tmp_path / "work")
    assert "commonest class" in error.message
    # with allow_near_chance it goes on, here to the next thing that is wrong
    allowed = recipe(allow_near_chance=True, export={"channel_multiple": 64})
    with pytest.raises(BillhookError) as raised:
        pipeline.run(job(model, recipe=allowed), tmp_path / "work2", Events())
    assert raised.value.code == "nothing_removed"


def test_a_device_that_is_not_there(model: ModelInput, tmp_path: Path) -> None:
    error = refused(DeviceUnavailable, job(model, device="cuda:97"), tmp_path)
    assert error.faults[0].pointer == "/device"


def test_a_dataset_of_another_kind(tmp_path: Path) -> None:
    write_onnx(build("small_cnn", num_classes=3, in_channels=3, image_size=(16, 16)).eval(), tmp_path / "other.onnx")
    model = ModelInput(path=tmp_path / "other.onnx", sha256="0" * 64, format="onnx")
    error = refused(DatasetMismatch, job(model), tmp_path)
    assert len(error.faults) >= 2


def test_another_jobs_checkpoint_and_a_damaged_one(model: ModelInput, workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    content = (workdir / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content)
    error = refused(CheckpointUnusable, job(model, recipe=recipe(seed=1)), tmp_path)
    assert "another recipe" in error.message
    (tmp_path / FILE).write_bytes(content[:-1])
    assert "damaged" in refused(CheckpointUnusable, job(model), tmp_path).message


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    broken = ModelInput(path=tmp_path / "broken.onnx", sha256="0" * 64, format="onnx")
    (tmp_path / "job.json").write_text(job(broken).model_dump_json())
    assert pipeline.main([str(tmp_path / "job.json"), str(tmp_path / "work")]) == 1
    assert json.loads(capsys.readouterr().err)["code"] == ModelUnreadable.code


def test_torch_is_left_as_it_was(model: ModelInput, tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    resized = DatasetInput(path=None, sha256=None, format="digits", options={"preprocess": {"size": (9, 9)}})
    refused(DatasetMismatch, job(model, threads=3, datasets=(resized,)), tmp_path)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_the_command_that_does_it_again_has_all_that_the_job_was_given(model: ModelInput) -> None:
    dataset = DatasetInput(path=None, sha256=None, format="digits", options={"splits": {"seed": 3}})
    required = {"accuracy": ">= 0.9", "latency_ratio": "< 1e-07"}
    again = reproduce(job(model, datasets=(dataset,), requirements=required, device="cuda:1"))
    _, command, _ = again.splitlines()
    assert shlex.split(command) == [
        "billhook", "prune", "MODEL", "--splits", '{"seed":3}', "--require", "accuracy>=0.9", "--require",
        "latency_ratio<1e-07", "--device", "cuda:1", "--recipe", "recipe.json", "--output", "pruned.onnx", "--data",
        "builtin:digits",
    ]  # fmt: skip
    for text in ("accuracy>=0.9", "latency_ratio<1e-07"):
        name, comparison = requirement(text)
        assert Requirements(**{name: comparison}).comparisons()[name] == Requirements(**required).comparisons()[name]


def test_the_command_names_where_the_dataset_was_fetched_from(model: ModelInput) -> None:
    uri = "https://data.example.com/a.parquet?version=3&x=1"
    options = {"format": "parquet", "columns": {"label": "coarse"}}
    dataset = DatasetInput(path=Path("d"), sha256="ab" * 32, format="parquet", options=options, uri=uri)
    inputs = job(model, datasets=(dataset,))
    _, command, _ = reproduce(inputs).splitlines()
    words = shlex.split(command)
    assert words[words.index("--format") + 1] == "parquet"
    assert words[words.index("--columns") + 1] == '{"label":"coarse"}'
    assert words[-4:] == ["--data", uri, "--data-sha256", "ab" * 32]
    (told,) = described(inputs, {})["datasets"]
    assert (told["uri"], told["sha256"]) == (uri, "ab" * 32)
    uploaded = job(model, datasets=(dataset.model_copy(update={"uri": "upload"}),))
    assert fingerprint(uploaded) == fingerprint(inputs), "where it came from decides nothing"
    assert f"DATASET  # sha256 {'ab' * 32}" in reproduce(uploaded)


def test_requirements_of_the_job_override_the_recipes(model: ModelInput) -> None:
    combined = recipe().requirements.overridden_by(Requirements(latency_ratio="< 2"))
    assert combined.comparisons() == {"params_ratio": ("<=", 0.5), "latency_ratio": ("<", 2.0)}
