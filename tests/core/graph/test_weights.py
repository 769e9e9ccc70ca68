"""Weights of another model: the same network in whatever format and order, and every difference where it is another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from core.errors import CutRefused, RecipeInvalid
from core.graph.architectures import build
from core.graph.batch_norm_folding import fold
from core.graph.export import write_onnx
from core.graph.importers import load
from core.graph.initialise import reinitialised
from core.graph.network import Network, Origin, TensorSpec
from core.graph.plans import replay
from core.graph.weights import with_weights
from core.job import ModelInput


def trained(network: Network, seed: int = 1) -> Network:
    """Stands for a training: other weights, other statistics, nothing dead."""
    torch.manual_seed(seed)
    other = reinitialised(network, seed=seed)[0].train()
    with torch.no_grad():
        for _ in range(3):
            other(other.example_input(16, seed=seed))
    return other.eval()


def built(name: str, size: int = 32, channels: int = 3) -> Network:
    return build(name, num_classes=10, in_channels=channels, image_size=(size, size)).eval()


def through_onnx(network: Network, folder: Path, opset: int = 17) -> Network:
    write_onnx(network, folder / "model.onnx", opset=opset)
    return load(ModelInput(path=folder / "model.onnx", sha256="", format="onnx"))


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet20", 32), ("preresnet20", 32), ("small_inception", 32), ("small_cnn", 32), ("mobilenet_v2", 32),
     ("efficientnet_b0", 32), ("googlenet", 64), ("densenet121", 32)],
)  # fmt: skip
def test_a_checkpoint_of_every_kind_of_network(name: str, size: int, opset: int, tmp_path: Path) -> None:
    """Into the architecture, and into what ONNX makes of it: an export may write one operator as several."""
    network = built(name, size)
    checkpoint = through_onnx(trained(network), tmp_path, opset)
    x = network.example_input(4, seed=5)
    for target in (network, through_onnx(network, tmp_path, 17)):
        before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
        taken, check = with_weights(target, checkpoint)
        assert check.passed
        torch.testing.assert_close(taken(x), checkpoint(x), rtol=1e-4, atol=1e-5)
        assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items()), (
            "it stays as it was"
        )
        assert taken.state_dict().keys() == before.keys()


def test_scales_of_their_own_are_weights(tmp_path: Path) -> None:
    """ConvNeXt's layer scales are parameters here, and constants of the graph in ONNX."""
    network = built("convnext_tiny", 32)
    other = trained(network)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.endswith("layer_scale"):
                parameter.add_(torch.rand_like(parameter))
    taken, _ = with_weights(network, through_onnx(other, tmp_path))
    scales = {name: item for name, item in other.named_parameters() if name.endswith("layer_scale")}
    assert len(scales) > 10
    assert all(torch.equal(item, taken.state_dict()[name]) for name, item in scales.items())


# --- built by hand ---------------------------------------------------------------------------------------------------


def network_of(layers: dict[str, nn.Module], run: Callable[[fx.Graph, fx.Node], Any], size: int = 8) -> Network:
    root = nn.Module()
    for name, layer in layers.items():
        root.add_module(name, layer)
    graph = fx.Graph()
    graph.output(run(graph, graph.placeholder("x")))
    module = fx.GraphModule(root, graph).eval()
    outputs = (TensorSpec("y", "float32", ("n", 4)),)
    return Network(module, (TensorSpec("x", "float32", ("n", size)),), outputs, Origin("onnx", 17), ((size,),))


def two_branches(seed: int, *, first: str = "a", second: str = "b", swapped: bool = False) -> Network:
    """y = last(relu(first(x)) + second(x)), both of the same shape."""
    torch.manual_seed(seed)
    layers = {"a": nn.Linear(8, 6), "b": nn.Linear(8, 6), "last": nn.Linear(6, 4)}

    def run(graph: fx.Graph, x: fx.Node) -> fx.Node:
        one = graph.call_function(torch.ops.aten.relu.default, (graph.call_module(first, (x,)),))
        two = graph.call_module(second, (x,))
        pair = (two, one) if swapped else (one, two)
        return graph.call_module("last", (graph.call_function(torch.ops.aten.add.Tensor, pair),))

    return network_of(layers, run)


def test_names_do_not_matter() -> None:
    """Nor does the order of a sum's operands."""
    network = two_branches(0)
    other = two_branches(1, first="b", second="a", swapped=True)
    taken, _ = with_weights(network, other)
    theirs = other.state_dict()
    assert torch.equal(taken.state_dict()["a.weight"], theirs["b.weight"])
    assert torch.equal(taken.state_dict()["b.weight"], theirs["a.weight"])


def test_the_answers_are_the_proof() -> None:
    """The same layers with another operator between them is another network."""
    torch.manual_seed(0)

    def chain(operator: Any) -> Network:
        layers = {"a": nn.Linear(8, 6), "b": nn.Linear(6, 4)}
        return network_of(layers, lambda graph, x: graph.call_module(
            "b", (graph.call_function(operator, (graph.call_module("a", (x,)),)),)))  # fmt: skip

    with_weights(chain(torch.ops.aten.relu.default), chain(torch.ops.aten.relu.default))
    with pytest.raises(RecipeInvalid, match="other answers") as error:
        with_weights(chain(torch.ops.aten.relu.default), chain(torch.ops.aten.gelu.default))
    assert [fault.pointer for fault in error.value.faults] == ["/weights"]


def test_a_layer_used_twice_is_not_two_layers() -> None:
    def chain(names: list[str]) -> Network:
        torch.manual_seed(0)

        def run(graph: fx.Graph, x: fx.Node) -> fx.Node:
            for name in [*names, "last"]:
                x = graph.call_module(name, (x,))
            return x

        return network_of({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "last": nn.Linear(8, 4)}, run)

    for one, two in ((["a", "b"], ["a", "a"]), (["a", "a"], ["a", "b"])):
        with pytest.raises(RecipeInvalid, match="not the same network"):
            with_weights(chain(one), chain(two))
    with_weights(chain(["a", "a"]), chain(["b", "b"]))


def test_every_difference_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid) as error:
        with_weights(built("resnet20"), built("resnet32"))
    told = [fault.message for fault in error.value.faults]
    assert len(told) == 24, "six blocks of two convolutions and BatchNorms"
    assert all(text.startswith("nothing; in the other ") for text in told)
    network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8)).eval()
    plain = fold(network)[0]
    with pytest.raises(RecipeInvalid) as error:
        with_weights(network, through_onnx(plain, tmp_path))
    assert any("BatchNorm2d" in fault.message and "nothing" in fault.message for fault in error.value.faults)
    with pytest.raises(RecipeInvalid) as error:
        with_weights(network, build("small_cnn", num_classes=7, in_channels=3, image_size=(8, 8)).eval())
    told = [fault.message for fault in error.value.faults]
    assert "input 0 of shape (1, 8, 8); in the other input 0 of shape (3, 8, 8)" in told
    assert any("Linear" in text and "(10" in text and "(7" in text for text in told)


def test_differences_are_not_listed_without_end() -> None:
    with pytest.raises(RecipeInvalid) as error:
        with_weights(built("resnet20"), built("resnet110"))
    assert len(error.value.faults) == 31
    assert "more differences" in error.value.faults[-1].message


def test_another_network_has_other_layers() -> None:
    with pytest.raises(RecipeInvalid):
        with_weights(built("resnet20"), built("mobilenet_v2"))


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_is_replayed_with_the_weights_and_without() -> None:
    network = built("small_cnn")
    other = trained(network)
    entry = {"op": "weights", "sha256": "0" * 64}
    x: Tensor = network.example_input(4)
    assert torch.equal(replay(network, [entry], weights=other)(x), other(x))
    assert torch.equal(replay(network, [entry])(x), network(x))
    for wrong, weights in (({"op": "weights"}, None), (entry, built("resnet20"))):
        with pytest.raises(CutRefused) as error:
            replay(network, [wrong], weights=weights)
        assert error.value.faults[0].pointer.startswith("/0")
