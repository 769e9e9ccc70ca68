"""What the check of an upload finds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from core import inspection
from core.errors import (
    ModelUnreadable,
)
from core.graph.architectures import build
from core.graph.export import write_onnx
from core.graph_report import NetworkGraph
from core.inspection import inspect_dataset, inspect_model
from core.job import DatasetCheck, ModelInput
from tests.core.test_pipeline import DIGITS, SPLIT_SIZES


@pytest.fixture
def model(tmp_path: Path) -> ModelInput:
    path = tmp_path / "model.onnx"
    write_onnx(build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).eval(), path, opset=17)
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


def test_inspecting_a_model(model: ModelInput, tmp_path: Path) -> None:
    summary = json.loads(json.dumps(inspect_model(model, tmp_path)))
    assert summary["opset"] == 17
    assert summary["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    assert summary["outputs"][0]["shape"] == ["batch", 10]
    assert summary["filters"] == 112
    graph = NetworkGraph.model_validate_json((tmp_path / "graph.json").read_bytes())
    assert summary["graph"] == graph.totals.model_dump()
    assert [group.name for group in graph.groups] == ["conv1", "conv2", "conv3", "fc"]
    assert [group.cuttable for group in graph.groups] == [True, True, True, False]
    assert graph.frozen[-1].layers == ["fc"]
    with pytest.raises(ModelUnreadable):
        inspect_model(model.model_copy(update={"path": Path(__file__)}))


def test_inspecting_a_dataset() -> None:
    summary = json.loads(json.dumps(inspect_dataset(DatasetCheck(dataset=DIGITS))))
    assert {name: split["images"] for name, split in summary["splits"].items()} == SPLIT_SIZES
    assert summary["image_shape"] == [1, 8, 8]
    assert len(summary["classes"]) == 10


def test_a_dataset_without_a_contact_sheet_is_ready_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = DatasetCheck(dataset=DIGITS)
    assert inspect_dataset(check, tmp_path)["warnings"] == []
    (tmp_path / "out" / "contact_sheet.png").unlink()

    def odd(*_: object) -> None:
        raise ValueError("a secret path: /somewhere")

    monkeypatch.setattr(inspection, "write_contact_sheet", odd)
    summary = inspect_dataset(check, tmp_path)
    assert summary["warnings"] == ["no contact sheet could be made: an unexpected ValueError"]
    assert summary["images"] == 1797
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
