"""What cannot end well is refused in the import stage, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from torch import nn

from core import pipeline
from core.errors import BillhookError, DatasetMismatch, ModelRefused, RecipeInvalid
from core.graph.architectures import build
from core.graph.export import write_onnx
from core.graph.lowering import trace
from core.inspection import inspect_model
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from tests.core.fakes import Events


def upload(path: Path, *, classes: int, declared: int | str) -> ModelInput:
    """small_cnn of so many classes, in a file that declares another number."""
    write_onnx(build("small_cnn", num_classes=classes, in_channels=1, image_size=(8, 8)).eval(), path)
    made = onnx.load(path)
    dimension = made.graph.output[0].type.tensor_type.shape.dim[1]
    dimension.Clear()
    if isinstance(declared, int):
        dimension.dim_value = declared
    else:
        dimension.dim_param = declared
    onnx.save(made, path)
    return ModelInput(path=path, sha256="0" * 64, format="onnx")


def refused(error: type[BillhookError], model: ModelInput, workdir: Path, **recipe: Any) -> BillhookError:
    document = {"steps": [{"method": "filter_norm", "target": {"params": 0.5}}], "allow_near_chance": True, **recipe}
    digits = DatasetInput(path=None, sha256=None, format="digits")
    events = Events()
    with pytest.raises(error) as raised:
        pipeline.run(
            JobInputs(model=model, datasets=(digits,), recipe=parse_recipe(document), threads=1), workdir, events
        )
    assert {name.partition("/")[0] for name, _ in events} <= {"import", "progress"}
    return raised.value


@pytest.mark.parametrize("classes", [5, 20])
def test_a_number_of_classes_that_the_file_leaves_open(classes: int, tmp_path: Path) -> None:
    model = upload(tmp_path / "open.onnx", classes=classes, declared="k")
    error = refused(DatasetMismatch, model, tmp_path / "work")
    (fault,) = error.faults
    assert fault.pointer == "/preprocess/class_order"
    assert fault.message == f"the dataset has 10 classes, the model's output output has {classes}"
    # the API finds it in the summary, before the job waits
    assert inspect_model(model)["outputs"][0]["shape"] == ["batch", classes]


def test_a_number_of_classes_that_the_file_says_falsely(tmp_path: Path) -> None:
    model = upload(tmp_path / "false.onnx", classes=5, declared=10)
    assert "is declared (batch, 10), but is (batch, 5)" in refused(ModelRefused, model, tmp_path / "work").message


def test_an_opset_that_cannot_hold_the_network(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.Upsample(scale_factor=2, mode="bicubic"), nn.Flatten(), nn.Linear(4096, 10)
    )
    write_onnx(trace(module, (1, 8, 8), format="onnx").eval(), tmp_path / "cubic.onnx", opset=17)
    model = ModelInput(path=tmp_path / "cubic.onnx", sha256="0" * 64, format="onnx")
    error = refused(RecipeInvalid, model, tmp_path / "work", export={"opset": 9})
    (fault,) = error.faults
    assert (fault.pointer, fault.expected) == ("/export/opset", "opset 11 or newer")
