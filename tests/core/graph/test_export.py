"""What torch's two exporters write comes in, goes out drop-in, and computes the same all the way."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from core.errors import ParityFailed
from core.graph.architectures import ARCHITECTURES, build
from core.graph.cuts import cut
from core.graph.exactness import check_cut, relative_error
from core.graph.export import check_parity, run_onnx, to_onnx, write_onnx
from core.graph.importers import read_onnx
from core.graph.network import Network
from core.graph.onnx_checks import NEWEST_OPSET
from tests.core.graph.onnx_texts import model, saved
from tests.core.graph.topologies import SHAPE, TOPOLOGIES, random_removal, seeded, topology

# torch's exporters warn about themselves: the old one is deprecated, the new one calls what is
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Constant folding - Only steps=1:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
]


def architecture(name: str) -> nn.Module:
    """The plain module, its BatchNorms settled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ARCHITECTURES[name]().train()
        with torch.no_grad():
            for _ in range(2):
                module(torch.randn(4, 3, 32, 32))
    return module.eval()


def dynamo(module: nn.Module, example: torch.Tensor, path: Path, *, dynamic: bool = True) -> None:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            module, (example,), path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False
        )


def torchscript(module: nn.Module, example: torch.Tensor, path: Path, opset: int, *, fold: bool) -> None:
    mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
    torch.onnx.export(
        module, (example,), path, dynamo=False, opset_version=opset, dynamic_axes={"image": {0: "n"}},
        input_names=["image"], output_names=["scores"], training=mode, do_constant_folding=fold,
    )  # fmt: skip


def interface(path: Path) -> tuple[list[bytes], int, object]:
    made = onnx.load(path)
    items = [item.SerializeToString(deterministic=True) for item in (*made.graph.input, *made.graph.output)]
    return items, made.opset_import[0].version, (made.producer_name, made.producer_version, made.graph.name)


def comes_in_and_goes_out(path: Path, module: nn.Module, example: torch.Tensor, folder: Path) -> Network:
    network = read_onnx(path)
    with torch.no_grad():
        assert relative_error(module(example), network(example)) < 1e-5
    assert check_parity(network, path, example).passed
    write_onnx(network, folder / "same.onnx")
    assert check_parity(network, folder / "same.onnx", example).passed
    assert interface(folder / "same.onnx") == interface(path)

    removal = random_removal(network, 0.4)
    smaller, _ = cut(network, removal)
    assert check_cut(network, removal, smaller, example).passed
    write_onnx(smaller, folder / "cut.onnx")
    assert check_parity(smaller, folder / "cut.onnx", example).passed
    assert interface(folder / "cut.onnx") == interface(path)
    return network


@pytest.mark.parametrize("name", ["small_cnn", "resnet20", "vgg16"])
def test_dynamo_export_of_architectures(name: str, tmp_path: Path) -> None:
    module, example = architecture(name), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    dynamo(module, example, tmp_path / "model.onnx")
    network = comes_in_and_goes_out(tmp_path / "model.onnx", module, example, tmp_path)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.layers().values()), "folded stays folded"
    assert set(network.layers()) <= {item for item, _ in module.named_modules()}, "the names are the module's"


@pytest.mark.parametrize(
    ("name", "opset"),
    [
        *(("small_cnn", opset) for opset in range(9, 18)),
        *(("resnet20", opset) for opset in (9, 13, 14, 17)),
        ("vgg16", 9),
    ],
)
def test_torchscript_export_of_architectures(name: str, opset: int, tmp_path: Path) -> None:
    module, example = architecture(name), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    fold = opset % 4 != 1
    torchscript(module, example, tmp_path / "model.onnx", opset, fold=fold)
    network = comes_in_and_goes_out(tmp_path / "model.onnx", module, example, tmp_path)
    kept = sum(isinstance(layer, nn.BatchNorm2d) for layer in network.layers().values())
    wanted = sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    assert kept == (0 if fold else wanted)
    assert set(network.layers()) <= {item for item, _ in module.named_modules()}, "the names are the module's"


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_torchscript_export_of_topologies(name: str, tmp_path: Path) -> None:
    module, example = seeded(TOPOLOGIES[name]), torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    torchscript(module, example, tmp_path / "model.onnx", 13, fold=False)
    comes_in_and_goes_out(tmp_path / "model.onnx", module, example, tmp_path)


@pytest.mark.parametrize("name", ["Depthwise", "ZeroPaddedShortcut", "FlattenIntoLinear", "EndsInSoftmax"])
def test_dynamo_export_of_topologies(name: str, tmp_path: Path) -> None:
    module, example = seeded(TOPOLOGIES[name]), torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    dynamo(module, example, tmp_path / "model.onnx")
    comes_in_and_goes_out(tmp_path / "model.onnx", module, example, tmp_path)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_static_batch_is_freed_and_restored(batch: int, tmp_path: Path) -> None:
    module = seeded(TOPOLOGIES["FlattenIntoLinear"])
    dynamo(module, torch.randn(batch, *SHAPE), tmp_path / "model.onnx", dynamic=False)
    network = read_onnx(tmp_path / "model.onnx")
    assert network.origin.static_batch == batch
    example = network.example_input(6)
    with torch.no_grad():
        assert relative_error(module(example), network(example)) < 1e-5
    comes_in_and_goes_out(tmp_path / "model.onnx", module, example, tmp_path)
    shape = onnx.load(tmp_path / "cut.onnx").graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_value == batch


def test_a_constant_reshape_to_one_example_is_freed(tmp_path: Path) -> None:
    body = """
        a = Conv(x, w)  s = Constant<value=int64[2] {1,-1}>()  b = Reshape(a, s)
        y = MatMul(b, v)
    """
    weights = {"w": (5, 4, 3, 3), "v": (80, 3)}
    made = model(body, inputs="float[1,4,6,6] x", outputs="float[1,3] y", weights=weights)
    network = read_onnx(saved(made, tmp_path))
    assert network(network.example_input(5)).shape == (5, 3)
    removal = {"n0": [1, 2]}
    smaller, _ = cut(network, removal)
    assert check_cut(network, removal, smaller, network.example_input(5)).passed
    write_onnx(smaller, tmp_path / "cut.onnx")
    assert check_parity(smaller, tmp_path / "cut.onnx", network.example_input(5)).passed


def test_metadata_and_doc_strings_are_kept(tmp_path: Path) -> None:
    made = model("y = Relu(x)", outputs="float[batch,4,6,6] y")
    made.producer_name, made.producer_version, made.domain, made.model_version = "them", "1.2", "org.them", 7
    made.doc_string, made.graph.doc_string, made.graph.input[0].doc_string = "whole", "graph", "image"
    made.metadata_props.add(key="labels", value="cat,dog")
    made.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    again = to_onnx(read_onnx(saved(made, tmp_path)))
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
        assert getattr(again, field) == getattr(made, field)
    assert again.graph.doc_string == "graph"
    assert again.graph.input[0].doc_string == "image"
    assert [(item.key, item.value) for item in again.metadata_props] == [("labels", "cat,dog")]


def test_weights_that_are_inputs_too_are_only_weights(tmp_path: Path) -> None:
    made = model("y = Conv(x, w)", weights={"w": (5, 4, 3, 3)})
    made.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, (5, 4, 3, 3)))
    network = read_onnx(saved(made, tmp_path))
    assert [spec.name for spec in network.inputs] == ["x"]
    write_onnx(network, tmp_path / "again.onnx")
    assert check_parity(network, tmp_path / "again.onnx", network.example_input()).passed


def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    made = model(
        "a = Conv(x, w)  b = Conv(z, w)  y = Add(a, b)  same = Identity(y)  back = Identity(x)",
        inputs="float[n,4,6,6] x, float[n,4,6,6] z",
        outputs="float[n,5,4,4] y, float[n,5,4,4] same, float[n,4,6,6] back",
        weights={"w": (5, 4, 3, 3)},
    )
    path = saved(made, tmp_path)
    network = read_onnx(path)
    write_onnx(network, tmp_path / "again.onnx")
    inputs = network.example_inputs(3)
    assert check_parity(network, path, *inputs).passed
    assert check_parity(network, tmp_path / "again.onnx", *inputs).passed
    assert interface(tmp_path / "again.onnx") == interface(path)


def test_equal_networks_make_equal_bytes(tmp_path: Path) -> None:
    for index in range(2):
        write_onnx(build("resnet20").eval(), tmp_path / f"{index}.onnx")
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()
    again = read_onnx(tmp_path / "0.onnx")
    write_onnx(again, tmp_path / "2.onnx")
    assert onnx.load(tmp_path / "2.onnx").graph == onnx.load(tmp_path / "0.onnx").graph, "names survive a round trip"


def test_a_network_that_was_not_onnx_gets_opset_20(tmp_path: Path) -> None:
    write_onnx(build("small_cnn").eval(), tmp_path / "model.onnx")
    made = onnx.load(tmp_path / "model.onnx")
    assert made.opset_import[0].version == 20
    assert [item.name for item in (*made.graph.input, *made.graph.output)] == ["input", "output"]
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {item.name for item in made.graph.initializer} >= {"conv1.weight", "bn1.running_var", "fc.bias"}


def test_training_mode_does_not_leak_into_the_file(tmp_path: Path) -> None:
    network = build("small_cnn").train()
    write_onnx(network, tmp_path / "model.onnx")
    assert check_parity(network, tmp_path / "model.onnx", network.example_input(4)).passed
    assert network.training


def test_parity_can_fail(tmp_path: Path) -> None:
    network = topology("FlattenIntoLinear")
    write_onnx(network, tmp_path / "model.onnx")
    with torch.no_grad():
        network.layers()["fc2"].get_parameter("bias")[0] += 1e-3
    with pytest.raises(ParityFailed, match="differs from torch"):
        check_parity(network, tmp_path / "model.onnx", network.example_input(4))


def test_a_static_batch_is_fed_in_pieces(tmp_path: Path) -> None:
    made = model("y = Relu(x)", inputs="float[4,4,6,6] x", outputs="float[4,4,6,6] y")
    path = saved(made, tmp_path)
    x = torch.randn(10, 4, 6, 6)
    (y,) = run_onnx(path, 4, x)
    assert torch.equal(y, torch.relu(x))


def test_names_that_mean_something_to_python_or_torch(tmp_path: Path) -> None:
    body = """
        a = Conv(lambda, class.weight)  b = Conv(a, forward.weight)  c = Conv(b, train.graph.weight)
        d = Conv(c, train.weight)  y = Mul(d, state_dict)
    """
    names = ("class", "forward", "train.graph", "train")
    weights: dict[str, tuple[int, ...] | np.ndarray] = {f"{name}.weight": (4, 4, 1, 1) for name in names}
    for name in ("lambda", "class.weight", "forward.weight", "train.graph.weight", "train.weight", "state_dict"):
        body = body.replace(name, name.replace(".", "_"), 1)
    made = model(
        body, inputs="float[n,4,6,6] lambda",
        weights={**{key.replace(".", "_"): value for key, value in weights.items()}, "state_dict": (4, 1, 1)},
    )  # fmt: skip
    renamed = {key.replace(".", "_"): key for key in weights}
    for item in (*made.graph.initializer,):
        item.name = renamed.get(item.name, item.name)
    for node in made.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    path = saved(made, tmp_path)
    network = read_onnx(path)
    assert list(network.layers()) == ["class_", "forward_", "train_.graph_", "train__2"]
    assert check_parity(network, path, network.example_input(2)).passed
    write_onnx(network.clone(), tmp_path / "again.onnx")
    assert check_parity(network, tmp_path / "again.onnx", network.example_input(2)).passed


def test_a_layer_called_self(tmp_path: Path) -> None:
    made = model("a = Conv(x, w)  y = Conv(a, v)", weights={"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)})
    for old, name in (("w", "self.weight"), ("v", "self2.weight")):
        for item in made.graph.initializer:
            item.name = name if item.name == old else item.name
        for node in made.graph.node:
            node.input[:] = [name if item == old else item for item in node.input]
    network = read_onnx(saved(made, tmp_path))
    assert list(network.layers()) == ["self_", "self2"]
    assert check_parity(network, tmp_path / "model.onnx", network.example_input(2)).passed


@pytest.mark.skipif(NEWEST_OPSET < 28, reason="this onnx knows no opset that the runtime does not")
def test_a_model_that_the_runtime_cannot_open_is_told(tmp_path: Path) -> None:
    path = saved(model("y = Relu(x)", opset=NEWEST_OPSET), tmp_path)
    network = read_onnx(path)
    with pytest.raises(ParityFailed, match="cannot open the model") as caught:
        check_parity(network, path, network.example_input())
    assert str(tmp_path) not in caught.value.message
