"""Weights as safetensors: with their architecture they are a model, else the reason says what is amiss."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.errors import ModelRefused, ModelUnreadable
from core.graph.architectures import build
from core.graph.export import write_onnx
from core.graph.importers import load, read_safetensors
from core.job import ModelInput, ModelOptions
from tests.core.graph.wrong_models import Trap, conv

RESNET = ModelOptions(architecture="resnet20", input_shape=(3, 32, 32))


def weights() -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in build("resnet20", num_classes=7).state_dict().items()}


def test_safetensors_come_in(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    source = ModelInput(path=tmp_path / "model.safetensors", sha256="0" * 64, format="safetensors", options=RESNET)
    network = load(source)
    original = build("resnet20", num_classes=7).eval()
    assert torch.equal(network(network.example_input()), original(network.example_input()))
    assert network.outputs[0].shape == ("batch", 7)
    write_onnx(network, tmp_path / "model.onnx")


def test_safetensors_need_their_options(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    with pytest.raises(ModelRefused) as caught:
        read_safetensors(tmp_path / "model.safetensors", ModelOptions())
    assert [fault.pointer for fault in caught.value.faults] == ["/architecture", "/input_shape"]


def test_safetensors_of_another_architecture_list_every_difference(tmp_path: Path) -> None:
    state = weights()
    del state["layer1.0.conv1.weight"]
    state["bn1.weight"] = torch.ones(3)
    state["bn1.bias"] = torch.full((16,), float("nan"))
    state["extra"] = torch.ones(1)
    state["layer2.0.bn1.weight"] = torch.ones(32, dtype=torch.float16)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelRefused) as caught:
        read_safetensors(tmp_path / "model.safetensors", RESNET)
    assert [fault.pointer for fault in caught.value.faults] == [
        "/bn1.bias", "/bn1.weight", "/extra", "/layer1.0.conv1.weight", "/layer2.0.bn1.weight",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        (ModelOptions(architecture="resnet21", input_shape=(3, 32, 32)), "/architecture"),
        (ModelOptions(architecture="resnet20", input_shape=(1, 32, 32)), "/input_shape/0"),
        (ModelOptions(architecture="vgg16", input_shape=(3, 32, 32)), "/features.0.weight"),
    ],
)
def test_safetensors_with_wrong_options(options: ModelOptions, pointer: str, tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    with pytest.raises(ModelRefused) as caught:
        read_safetensors(tmp_path / "model.safetensors", options)
    assert caught.value.faults[0].pointer == pointer


@pytest.mark.parametrize("content", [b"", b"123", pickle.dumps(Trap()), conv().SerializeToString()])
def test_a_file_that_is_no_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelUnreadable):
        read_safetensors(tmp_path / "model.safetensors", RESNET)


def test_an_image_too_small_for_the_architecture(tmp_path: Path) -> None:
    save_file({key: value.contiguous() for key, value in build("vgg16").state_dict().items()}, tmp_path / "m")
    with pytest.raises(ModelRefused, match="does not fit the shapes"):
        read_safetensors(tmp_path / "m", ModelOptions(architecture="vgg16", input_shape=(3, 8, 8)))
