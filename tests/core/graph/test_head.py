"""A new classifier: found behind whatever follows it, the same from the same seed, refused where it is not clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from core.errors import CutRefused
from core.graph.architectures import build
from core.graph.batch_norm import insert_with
from core.graph.export import check_parity, write_onnx
from core.graph.head import HeadRefused, head_of, with_new_head
from core.graph.importers import load
from core.graph.network import Network
from core.graph.plans import replay
from core.job import ModelInput

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def built(name: str, channels: int = 3) -> Network:
    return build(name, num_classes=10, in_channels=channels, image_size=(32, 32)).eval()


def light(name: str) -> Network:
    return load(ModelInput(path=LIGHT / f"light_{name}.onnx", sha256="", format="onnx"))


def check_new_head(network: Network, folder: Path, classes: int) -> None:
    wide, entry = with_new_head(network, classes, seed=3)
    assert wide.outputs[0].shape == (network.outputs[0].shape[0], classes, *network.outputs[0].shape[2:])
    assert wide.logits(wide.example_input(2)).flatten(1).shape == (2, classes)
    write_onnx(wide, folder / "head.onnx")
    assert check_parity(wide, folder / "head.onnx", wide.example_input(2)).passed
    assert (
        load(ModelInput(path=folder / "head.onnx", sha256="", format="onnx")).outputs[0].shape == wide.outputs[0].shape
    )
    ours, before = wide.state_dict(), network.state_dict()
    changed = {name for name in before if not torch.equal(ours[name], before[name])}
    assert changed <= {f"{entry['layer']}.weight", f"{entry['layer']}.bias"}
    again = replay(network, [entry]).state_dict()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    other = with_new_head(network, classes, seed=4)[0].state_dict()
    assert not torch.equal(ours[f"{entry['layer']}.weight"], other[f"{entry['layer']}.weight"])


@pytest.mark.parametrize("classes", [2, 10, 37])
@pytest.mark.parametrize("name", ["resnet20", "vgg16_fc", "small_inception", "mobilenet_v2"])
def test_our_own_networks(name: str, classes: int, tmp_path: Path) -> None:
    check_new_head(built(name), tmp_path, classes)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("squeezenet", "a convolution, ReLU, a mean and Softmax"), ("resnet50", "a linear layer and Softmax"),
     ("densenet121", "a convolution alone")],
)  # fmt: skip
def test_networks_of_others(name: str, layer: str, tmp_path: Path) -> None:
    check_new_head(light(name), tmp_path, 7)


def small(folder: Path, sizes: list[int], extra: list[onnx.NodeProto], shape: list[Any]) -> Network:
    """A linear layer of 10 outputs, a Reshape to `sizes`, and what comes behind that, from "r" to "y"."""
    generator = np.random.default_rng(0)
    weights = {"w": generator.normal(size=(64, 10)).astype(np.float32), "b": np.zeros(10, np.float32),
               "to": np.array(sizes), "scale": generator.normal(size=(1, 10)).astype(np.float32)}  # fmt: skip
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["g"]),
             helper.make_node("Reshape", ["g", "to"], ["r"]), *extra]  # fmt: skip
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items() if name in used],
    )  # fmt: skip
    path = folder / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return load(ModelInput(path=path, sha256="", format="onnx"))


def test_a_reshape_with_its_size_written_out(tmp_path: Path) -> None:
    softmax = [helper.make_node("Softmax", ["r"], ["y"], axis=1)]
    check_new_head(small(tmp_path, [-1, 10, 1, 1], softmax, ["n", 10, 1, 1]), tmp_path, 12)


@pytest.mark.parametrize(
    ("sizes", "extra", "shape"),
    [
        ([-1, 10], [helper.make_node("Mul", ["r", "scale"], ["y"])], ["n", 10]),
        ([-1, 2, 5], [helper.make_node("Flatten", ["r"], ["y"])], ["n", 10]),
        ([-1, 2, 5], [helper.make_node("Identity", ["r"], ["y"])], ["n", 2, 5]),
    ],
    ids=["a scale for each class", "classes in two rows", "an output of two dimensions"],
)
def test_what_is_for_ten_classes_only(
    sizes: list[int], extra: list[onnx.NodeProto], shape: list[Any], tmp_path: Path
) -> None:
    network = small(tmp_path, sizes, extra, shape)
    with pytest.raises(HeadRefused, match=r"10 classes only|does not follow"):
        with_new_head(network, 12, seed=0)


def test_what_was_given_stays(tmp_path: Path) -> None:
    network = built("resnet20")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with_new_head(network, 4, seed=0)
    assert network.outputs[0].shape[1] == 10
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_random_state_stays() -> None:
    network = built("resnet20")
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with_new_head(network, 4, seed=0)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("entry", "pointer"),
    [
        ({"layer": "fc", "classes": 0, "seed": 1}, "/0/classes"),
        ({"layer": "fc", "classes": True, "seed": 1}, "/0/classes"),
        ({"layer": "fc", "classes": 3, "seed": -1}, "/0/seed"),
        ({"layer": "conv1", "classes": 3, "seed": 1}, "/0/layer"),
    ],
)
def test_plan_entries_that_do_not_fit(entry: dict[str, Any], pointer: str) -> None:
    with pytest.raises(CutRefused) as error:
        replay(built("resnet20"), [{"op": "head", **entry}])
    assert [fault.pointer for fault in error.value.faults] == [pointer]


def test_an_image_to_image_network_has_none() -> None:
    network = build("rgb_autoencoder", num_classes=None, in_channels=3, image_size=(32, 32)).eval()  # type: ignore[arg-type]
    with pytest.raises(HeadRefused):
        with_new_head(network, 10, seed=0)


def test_a_trained_layer_behind_it_is_no_part_of_it() -> None:
    """The classifier of a network that ends in a BatchNorm would need another BatchNorm, too."""
    network = built("small_cnn")
    name = head_of(network)
    zeros = {name: (torch.zeros(10), torch.ones(10))}
    ended, _ = insert_with(network, {name: "end"}, zeros)
    with pytest.raises(HeadRefused, match="trained layers are behind"):
        with_new_head(ended, 3, seed=0)
