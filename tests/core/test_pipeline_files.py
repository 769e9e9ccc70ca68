"""What a job reads and leaves: a zip with weights beside the model, two files out, another opset, cuts of groups."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from core import pipeline
from core.errors import RecipeInvalid
from core.graph.architectures import build
from core.graph.export import check_parity, write_onnx
from core.graph.external_data import parts
from core.graph.importers import load
from core.graph.lowering import trace
from core.graph.plans import replay
from core.inspection import inspect_model
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from core.report import Report
from tests.core.fakes import Events


@pytest.fixture(autouse=True)
def quick_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.comparison.LATENCY_SECONDS", 0.5)


def zipped(folder: Path) -> ModelInput:
    """small_cnn of opset 17 with its weights in a second file, both in a zip."""
    write_onnx(
        build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).eval(), folder / "net.onnx", opset=17,
        external_data_bytes=1024,
    )  # fmt: skip
    with zipfile.ZipFile(folder / "net.zip", "w") as archive:
        for path in parts(folder / "net.onnx"):
            archive.write(path, path.name)
    return ModelInput(path=folder / "net.zip", sha256="0" * 64, format="onnx")


def run(model: ModelInput, workdir: Path, **export: Any) -> Report:
    step = {"method": "filter_norm", "ratio_per_round": 0.4, "every_epochs": 1, "target": {"params": 0.7},
            "fine_tune": {"epochs": 0}}  # fmt: skip
    recipe = parse_recipe({"steps": [step], "allow_near_chance": True, "export": export})
    data = DatasetInput(path=None, sha256=None, format="digits")
    events = Events()
    report = pipeline.run(JobInputs(model=model, datasets=(data,), recipe=recipe, threads=1), workdir, events)
    assert not events.not_taken()
    return report


def opset(path: Path) -> int:
    return int(onnx.load(path, load_external_data=False).opset_import[0].version)


def test_a_zip_in_and_two_files_out(tmp_path: Path) -> None:
    model = zipped(tmp_path)
    assert inspect_model(model)["params"] > 0
    workdir = tmp_path / "work"
    report = run(model, workdir, external_data_bytes=1024)
    out = workdir / "out"
    pruned = out / "pruned.onnx"
    assert parts(pruned) == [pruned, out / "pruned.onnx.data"]
    assert opset(pruned) == 17
    sizes = {name: variant.file_bytes for name, variant in report.variants.items()}
    assert sizes["pruned"] == sum(path.stat().st_size for path in parts(pruned))
    assert sizes["original"] == sum(path.stat().st_size for path in parts(tmp_path / "net.onnx"))
    assert {check.name: check.passed for check in report.checks}["parity/export"]
    assert pruned.stat().st_size < (out / "pruned.onnx.data").stat().st_size
    # what came out goes in again
    with zipfile.ZipFile(tmp_path / "again.zip", "w") as archive:
        for path in parts(pruned):
            archive.write(path, path.name)
    again = load(ModelInput(path=tmp_path / "again.zip", sha256="0" * 64, format="onnx"))
    assert check_parity(again, pruned, again.example_input()).passed


def test_an_exported_program_in(tmp_path: Path) -> None:
    """`.pt2`: nothing that ONNX Runtime opens, so the original is measured as we write it."""
    network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).eval()
    program = torch.export.export(
        network.module, (network.example_input(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, tmp_path / "net.pt2")
    workdir = tmp_path / "work"
    report = run(ModelInput(path=tmp_path / "net.pt2", sha256="0" * 64, format="pt2"), workdir, opset=15)
    checks = {check.name: check.passed for check in report.checks}
    assert checks["parity/original"]
    assert checks["parity/export"]
    assert opset(workdir / "out" / "pruned.onnx") == opset(workdir / "original.onnx") == 15
    assert report.variants["pruned"].params < report.variants["original"].params


@pytest.mark.parametrize("wanted", [9, 13, 22])
def test_the_opset_that_is_asked_for_is_that_of_the_file(wanted: int, tmp_path: Path) -> None:
    report = run(zipped(tmp_path), tmp_path / "work", opset=wanted)
    pruned = tmp_path / "work" / "out" / "pruned.onnx"
    assert opset(pruned) == report.variants["pruned"].opset == wanted
    assert opset(tmp_path / "net.onnx") == report.variants["original"].opset == 17
    assert parts(pruned) == [pruned]  # small weights stay in one file unless the recipe says otherwise


@pytest.mark.parametrize("way", ["inside", "whole", "auto"])
def test_grouped_convolutions_are_cut_the_way_that_the_recipe_says(way: str, tmp_path: Path) -> None:
    """Of 32 channels in 8 groups 4 can go inside each group; by itself the groups would go, as there are more."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
        )
    write_onnx(trace(module, (1, 8, 8), format="onnx").eval(), tmp_path / "net.onnx", opset=17)
    model = ModelInput(path=tmp_path / "net.onnx", sha256="0" * 64, format="onnx")
    report = run(model, tmp_path / "work", grouped=way)
    assert report.variants["pruned"].params <= 0.7 * report.variants["original"].params
    out = tmp_path / "work" / "out"
    plan = json.loads((out / "plan.json").read_text())["plan"]
    (convolution,) = (
        layer
        for layer in load(ModelInput(path=out / "pruned.onnx", sha256="0" * 64, format="onnx")).layers().values()
        if isinstance(layer, nn.Conv2d) and layer.groups > 1
    )
    channels = tuple(convolution.weight.shape[:2])
    if way == "inside":
        assert [entry["inside"] for entry in plan] == [["2"]] * len(plan)
        assert convolution.groups == 8
        assert channels < (32, 4)
        assert channels[0] % 8 == 0
    else:
        assert plan
        assert not any("inside" in entry for entry in plan)
        assert convolution.groups < 8
        assert channels == (4 * convolution.groups, 4)

    again = replay(load(model), plan)
    again.load_state_dict(load_file(out / "weights.safetensors"))
    assert check_parity(again, out / "pruned.onnx", again.example_input(5)).passed


@pytest.mark.parametrize("wanted", [8, 27])
def test_an_opset_that_nobody_can_write_is_refused_with_the_recipe(wanted: int) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe({"steps": [{"method": "filter_norm", "target": {"params": 0.5}}], "export": {"opset": wanted}})
    assert [fault.pointer for fault in caught.value.faults] == ["/export/opset"]
