"""Files that are not what they claim, and models that ask for too much: each is refused for its own reason, quickly."""

from __future__ import annotations

import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from safetensors.torch import save_file

from core.errors import ModelRefused, ModelTooLarge, ModelUnreadable, OperatorUnknown
from core.graph.architectures import build
from core.graph.export import write_onnx
from core.graph.importers import load, read_onnx, read_safetensors
from core.job import ModelInput, ModelOptions
from tests.core.graph.onnx_texts import model, saved

RESNET = ModelOptions(architecture="resnet20", input_shape=(3, 32, 32))


class Trap:
    """A pickle that says so when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle was loaded",))


# --- files that are something else -----------------------------------------------------------------------------------


def whole() -> bytes:
    return model("y = Conv(x, w)", weights={"w": (5, 4, 3, 3)}).SerializeToString()


def zipped(folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Trap()))
    return (folder / "a.zip").read_bytes()


FILES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda folder: b"", "the file is empty"),
    "truncated": (lambda folder: whole()[:-40], "truncated, damaged or no ONNX model"),
    "cut in half": (lambda folder: whole()[: len(whole()) // 2], "truncated, damaged or no ONNX model"),
    "a pickle": (lambda folder: pickle.dumps(Trap()), "the file is a pickle"),
    "a zip": (zipped, "the file is a zip archive"),
    "text": (lambda folder: b"this is not a model, it is a sentence", "truncated, damaged or no ONNX model"),
    "zeros": (lambda folder: bytes(1000), "truncated, damaged or no ONNX model"),
    "a model of nothing": (lambda folder: ModelProto(ir_version=8).SerializeToString(), "no ONNX graph"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_onnx_model(name: str, tmp_path: Path) -> None:
    make, message = FILES[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(make(tmp_path))
    with pytest.raises(ModelUnreadable) as caught:
        load(ModelInput(path=path, sha256="0" * 64, format="onnx"))
    assert message in caught.value.message
    assert "it should hold an ONNX model" in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = whole()
    for size in range(1, len(data), 37):
        (tmp_path / "model.onnx").write_bytes(data[:size])
        with pytest.raises(ModelRefused):
            read_onnx(tmp_path / "model.onnx")


# --- models that are wrong -------------------------------------------------------------------------------------------


def conv() -> ModelProto:
    return model("a = Conv(x, w)  y = Relu(a)", weights={"w": (5, 4, 3, 3)})


def huge_initializer(made: ModelProto) -> None:
    made.graph.initializer[0].dims[:] = [2**20, 2**20]


def huge_constant(made: ModelProto) -> None:
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[2**40])
    made.graph.node.insert(0, helper.make_node("Constant", [], ["c"], name="big", value=tensor))


def huge_fill(made: ModelProto) -> None:
    shape = onnx.numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "shape")
    made.graph.initializer.append(shape)
    made.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["c"], name="fill"))
    made.graph.node[1].input[1] = "c"


def folded_over_and_over(made: ModelProto) -> None:
    shape = onnx.numpy_helper.from_array(np.array([2**24], np.int64), "shape")
    made.graph.initializer.append(shape)
    for index in range(8):
        node = helper.make_node("ConstantOfShape", ["shape"], [f"c{index}"], name=f"fill{index}")
        made.graph.node.insert(0, node)
    made.graph.node.insert(8, helper.make_node("Concat", [f"c{i}" for i in range(8)], ["all"], name="all", axis=0))
    made.graph.node[9].input[1] = "all"


def huge_input(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**40


def huge_activation(made: ModelProto) -> None:
    for index in (2, 3):
        made.graph.input[0].type.tensor_type.shape.dim[index].dim_value = 2**20


def many_dimensions(made: ModelProto) -> None:
    made.graph.initializer[0].dims[:] = [1] * 100


def negative_dimension(made: ModelProto) -> None:
    made.graph.initializer[0].dims[0] = -5


def short_data(made: ModelProto) -> None:
    made.graph.initializer[0].raw_data = b"1234"


def other_file(made: ModelProto) -> None:
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def name_twice(made: ModelProto) -> None:
    made.graph.node[0].output[0] = "y"


def cycle(made: ModelProto) -> None:
    made.graph.node[0].input[0] = "y"


def from_nowhere(made: ModelProto) -> None:
    made.graph.node[0].input[0] = "elsewhere"


def control_flow(made: ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [made.graph.output[0]])
    node = helper.make_node("If", ["x"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    made.graph.node[1].CopyFrom(node)


def custom_domain(made: ModelProto) -> None:
    made.graph.node[1].domain = "com.example"
    made.opset_import.append(helper.make_opsetid("com.example", 1))


def half_weights(made: ModelProto) -> None:
    made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((5, 4, 3, 3), np.float16), "w"))


def half_input(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def no_rank(made: ModelProto) -> None:
    made.graph.input[0].type.tensor_type.ClearField("shape")


def no_dependence(made: ModelProto) -> None:
    made.graph.node[1].CopyFrom(helper.make_node("Identity", ["w"], ["y"], name="weights"))


def text_weights(made: ModelProto) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.STRING, dims=[1], string_data=[b"one"])
    made.graph.initializer[0].CopyFrom(tensor)


def too_many_nodes(made: ModelProto) -> None:
    made.graph.node.extend(helper.make_node("Relu", ["x"], [f"z{i}"]) for i in range(20_000))


def old_opset(made: ModelProto) -> None:
    made.opset_import[0].version = 8


def new_opset(made: ModelProto) -> None:
    made.opset_import[0].version = 1_000


def unknown_attribute(made: ModelProto) -> None:
    made.graph.node[0].attribute.append(helper.make_attribute("strdes", [1, 1]))


WRONG: dict[Callable[[ModelProto], None], tuple[type[ModelRefused], str]] = {
    huge_initializer: (ModelTooLarge, "initialiser 'w' has 1099511627776 elements"),
    huge_constant: (ModelTooLarge, "node 'big'"),
    huge_fill: (ModelTooLarge, "elements are folded"),
    folded_over_and_over: (ModelTooLarge, "folding constants makes more than"),
    huge_input: (ModelTooLarge, "'x' has a dimension of 1099511627776"),
    huge_activation: (ModelTooLarge, "numbers"),
    many_dimensions: (ModelTooLarge, "100 dimensions"),
    negative_dimension: (ModelRefused, "negative dimension"),
    short_data: (ModelRefused, "has 4 bytes for 180 elements"),
    other_file: (ModelRefused, "keeps its data in another file"),
    name_twice: (ModelRefused, "the name 'y' is used twice: by node 'n0' and by node 'n1'"),
    cycle: (ModelRefused, "operator Conv at node 'n0' reads 'y', which node 'n1' makes later: the graph has a cycle"),
    from_nowhere: (ModelRefused, "operator Conv at node 'n0' reads 'elsewhere', which nothing makes"),
    control_flow: (OperatorUnknown, "operator If at node 'choice' is control flow"),
    custom_domain: (OperatorUnknown, "operator Relu at node 'n1' is of the domain 'com.example'"),
    half_weights: (ModelRefused, "w"),
    half_input: (ModelRefused, "'x' is not a float32 tensor"),
    no_rank: (ModelRefused, "'x' has no shape"),
    no_dependence: (ModelRefused, "the output 'y' is a constant"),
    text_weights: (ModelRefused, "of type STRING"),
    too_many_nodes: (ModelTooLarge, "20002 nodes"),
    old_opset: (ModelRefused, "opset 8; 9 to"),
    new_opset: (ModelRefused, "opset 1000; 9 to"),
    unknown_attribute: (ModelRefused, "strdes"),
}


@pytest.mark.parametrize("spoil", WRONG, ids=lambda item: item.__name__)
def test_a_wrong_model_is_refused_quickly(spoil: Callable[[ModelProto], None], tmp_path: Path) -> None:
    kind, message = WRONG[spoil]
    made = conv()
    spoil(made)
    path = saved(made, tmp_path)
    start = time.perf_counter()
    with pytest.raises(kind) as caught:
        read_onnx(path)
    assert time.perf_counter() - start < 5
    assert message in caught.value.message
    assert "/tmp" not in caught.value.message


def test_options_of_another_format_are_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="architecture is not for ONNX models"):
        read_onnx(saved(conv(), tmp_path), RESNET)


# --- safetensors -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("content", [b"", b"123", pickle.dumps(Trap()), whole()])
def test_a_file_that_is_no_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelUnreadable):
        read_safetensors(tmp_path / "model.safetensors", RESNET)


def test_an_image_too_small_for_the_architecture(tmp_path: Path) -> None:
    save_file({key: value.contiguous() for key, value in build("vgg16").state_dict().items()}, tmp_path / "m")
    with pytest.raises(ModelRefused, match="does not fit the shapes"):
        read_safetensors(tmp_path / "m", ModelOptions(architecture="vgg16", input_shape=(3, 8, 8)))
