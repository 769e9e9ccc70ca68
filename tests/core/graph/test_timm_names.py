"""timm's networks by name: the same values, cut exactly, written; and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from core.errors import ModelRefused
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.export import check_parity, write_onnx
from core.graph.importers import read_safetensors
from core.graph.network import Network
from core.graph.timm_names import from_timm_weights, import_timm
from core.job import ModelOptions
from tests.core.graph.exported import differences
from tests.core.graph.topologies import random_removal


@pytest.fixture(scope="module")
def timm() -> Any:
    if find_spec("timm") is None or find_spec("torchvision") is None:
        assert not os.environ.get("CI"), "timm is not installed"
        pytest.skip("timm is not installed: make zoo")
    return import_timm()


def made(timm: Any, name: str, classes: int, channels: int, size: int = 64) -> nn.Module:
    """A network whose statistics are of its own activations."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = timm.create_model(name, num_classes=classes, in_chans=channels)
        with torch.no_grad():
            for _ in range(3):
                module.train()(torch.randn(8, channels, size, size))
    return module.eval()


def read(path: Path, name: str, shape: tuple[int, int, int]) -> Network:
    return read_safetensors(path, ModelOptions(architecture=name, input_shape=shape))


@pytest.mark.parametrize(
    ("name", "classes", "channels"),
    [("test_resnet", 7, 1), ("test_byobnet", 5, 3)],
)
def test_weights_become_the_network(timm: Any, name: str, classes: int, channels: int, tmp_path: Path) -> None:
    module = made(timm, name, classes, channels)
    state = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "weights.safetensors")
    network = read(tmp_path / "weights.safetensors", f"timm:{name}", (channels, 64, 64))
    assert (network.origin.format, network.origin.opset, network.origin.static_batch) == ("safetensors", 20, None)
    assert network.inputs[0].shape == ("batch", channels, 64, 64)
    assert network.outputs[0].shape == ("batch", classes)
    (difference,) = differences(module, network, torch.randn(3, channels, 64, 64))
    assert difference < 1e-10
    removal = random_removal(network, 0.4)
    smaller, _ = cut(network, removal)
    inputs = network.example_input(2, seed=1)
    assert check_cut(network, removal, smaller, inputs).passed
    write_onnx(smaller, tmp_path / "cut.onnx")
    assert check_parity(smaller, tmp_path / "cut.onnx", inputs).passed


def test_faults_of_weights_are_told_together(timm: Any) -> None:
    state = dict(made(timm, "test_resnet", 4, 3).state_dict())
    del state["bn1.bias"]
    state["conv1.0.weight"] = state["conv1.0.weight"].half()
    state["bn1.weight"] = torch.full_like(state["bn1.weight"], float("nan"))
    state["fc.weight"] = torch.zeros(9, 5)
    state["more"] = torch.zeros(1)
    with pytest.raises(ModelRefused, match=r"not those of timm:test_resnet: 6 fault") as caught:
        from_timm_weights("timm:test_resnet", state, (64, 64))
    told = {fault.pointer: (fault.message, fault.expected) for fault in caught.value.faults}
    assert told.keys() == {"/bn1.bias", "/conv1.0.weight", "/bn1.weight", "/fc.weight", "/fc.bias", "/more"}
    assert "missing" in told["/bn1.bias"][0]
    assert told["/conv1.0.weight"] == ("the weight 'conv1.0.weight' is float16", "float32")
    assert "NaN" in told["/bn1.weight"][0]
    assert "is not a weight of" in told["/more"][0]
    assert told["/fc.bias"] == ("the weight 'fc.bias' has shape [4]", "shape [9]")


def test_weights_of_another_network_are_refused(timm: Any) -> None:
    for state in ({}, {"x": torch.zeros(1)}, {"fc.weight": torch.zeros(()), "conv1.0.weight": torch.zeros(0, 3, 3, 3)}):
        with pytest.raises(ModelRefused, match="not those of timm:test_resnet"):
            from_timm_weights("timm:test_resnet", state, (64, 64))


@pytest.mark.parametrize(("size", "known"), [(16, True), (32, True), (17, False)])
def test_channels_of_a_stem_that_makes_them_of_places(timm: Any, size: int, known: bool) -> None:
    """The first convolution of a TResNet sees 4 x 4 places of every channel."""
    state = {"body.conv1.conv.weight": torch.zeros(64, size, 3, 3), "head.fc.weight": torch.zeros(5, 2048)}
    with pytest.raises(ModelRefused, match="not those of timm:tresnet_m") as caught:
        from_timm_weights("timm:tresnet_m", state, (64, 64))
    faults = {fault.pointer: fault.expected for fault in caught.value.faults}
    assert "/head.fc.weight" not in faults
    assert faults["/head.fc.bias"] == "a tensor of shape [5]"
    assert faults.get("/body.conv1.conv.weight") == (None if known else "shape [64, 48, 3, 3]")


def test_a_classifier_on_what_has_none_by_itself(timm: Any) -> None:
    state = {"head.fc.weight": torch.zeros(5, 2048)}
    with pytest.raises(ModelRefused, match="not those of timm:resnet50_clip_gap") as caught:
        from_timm_weights("timm:resnet50_clip_gap", state, (64, 64))
    faults = {fault.pointer: fault.expected for fault in caught.value.faults}
    assert "/head.fc.weight" not in faults
    assert faults["/head.fc.bias"] == "a tensor of shape [5]"


@pytest.mark.parametrize(
    "name",
    [
        "resnet18.a1_in1k",
        "hf-hub:timm/resnet18",
        "hf_hub:timm/resnet18",
        "local-dir:/tmp/x",
        "",
        "../resnet18",
        "RESNET18",
    ],
)
def test_names_that_timm_does_not_list_are_refused(timm: Any, name: str) -> None:
    with pytest.raises(ModelRefused, match="unknown architecture"):
        from_timm_weights(f"timm:{name}", {}, (64, 64))


def test_a_name_that_is_nearly_right(timm: Any) -> None:
    with pytest.raises(ModelRefused) as caught:
        from_timm_weights("timm:resnet81", {}, (64, 64))
    (fault,) = caught.value.faults
    assert fault.pointer == "/architecture"
    assert "timm:resnet18" in str(fault.expected)


def test_images_that_it_cannot_take_are_refused(timm: Any, tmp_path: Path) -> None:
    module = timm.create_model("test_vit", num_classes=3)
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ModelRefused, match="timm:test_vit does not take images of 3,50,64") as caught:
        read(tmp_path / "weights.safetensors", "timm:test_vit", (3, 50, 64))
    assert caught.value.faults[0].pointer == "/input_shape"
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ModelRefused, match="input_shape") as caught:
        read(tmp_path / "weights.safetensors", "timm:test_resnet", (1, 64, 64))
    assert caught.value.faults[0].pointer == "/input_shape/0"


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_what_to_install_where_it_is_missing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelRefused, match="timm is not installed beside this service") as caught:
        from_timm_weights("timm:test_resnet", {}, (64, 64))
    (fault,) = caught.value.faults
    assert package in fault.message
    assert "pip install" in str(fault.expected)


def test_a_process_of_its_own_imports_it_offline(timm: Any) -> None:
    """Without the operators that other tests may have defined for torchvision."""
    code = "from core.graph.timm_names import import_timm; import_timm()"
    if find_spec("huggingface_hub") is not None:
        code += "; from huggingface_hub import constants; assert constants.HF_HUB_OFFLINE"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
