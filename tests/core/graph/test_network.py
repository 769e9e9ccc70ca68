"""The Network object and the architectures by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from core.comparison import output_kind
from core.errors import ModelRefused, OperatorUnknown
from core.graph.architectures import build
from core.graph.counts import COUNTED, count
from core.graph.export import write_onnx
from core.graph.importers import read_onnx
from core.graph.lowering import trace
from tests.core.graph.onnx_texts import model, saved
from tests.core.graph.topologies import SHAPE, topology


def test_counts_of_resnet20_by_hand() -> None:
    counts = count(build("resnet20"))
    pixels = 32 * 32
    first = pixels * 16 * 27
    one = 6 * pixels * 16 * 16 * 9
    two = (pixels // 4) * (32 * 16 * 9 + 5 * 32 * 32 * 9 + 32 * 16)
    three = (pixels // 16) * (64 * 32 * 9 + 5 * 64 * 64 * 9 + 64 * 32)
    assert counts.macs == first + one + two + three + 640
    assert counts.filters == 16 + 6 * 16 + 7 * 32 + 7 * 64
    assert counts.layers["bn1"].macs == 0
    assert counts.layers["fc"].params == 650
    assert COUNTED


def test_a_layer_used_twice_counts_its_parameters_once() -> None:
    counts = count(topology("Shared"))
    assert counts.layers["shared"].params == 8 * 8 * 9 + 8
    assert counts.layers["shared"].macs == 2 * 64 * 8 * 8 * 9
    assert counts.params == sum(layer.params for layer in counts.layers.values())


def test_clone_shares_nothing() -> None:
    network = topology("EndsInSoftmax")
    network.logits(network.example_input())
    twin = network.clone()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    twin.train()
    inputs = network.example_input()
    assert not network.training
    assert not torch.equal(network.logits(inputs), twin.eval().logits(inputs))
    assert {id(item) for item in network.parameters()}.isdisjoint({id(item) for item in twin.parameters()})
    assert network.module is not twin.module


def test_clone_to_float64_leaves_the_original() -> None:
    network = topology("SqueezeExcite")
    wide = network.clone().to(torch.float64)
    assert wide(wide.example_input(dtype=torch.float64)).dtype == torch.float64
    assert network(network.example_input()).dtype == torch.float32


def test_logits_are_in_front_of_the_softmax_and_follow_training() -> None:
    network = topology("EndsInSoftmax")
    inputs = network.example_input(4)
    assert network.origin.ends_in_softmax
    assert torch.allclose(torch.softmax(network.logits(inputs), 1), network(inputs))
    with torch.no_grad():
        network.layers()["fc"].get_parameter("weight").mul_(2)
    assert torch.allclose(torch.softmax(network.logits(inputs), 1), network(inputs))
    network.to(torch.float64)
    assert network.logits(inputs.double()).dtype == torch.float64
    assert not topology("Shared").origin.ends_in_softmax


MOVED = {
    "flattened": "c = Softmax<axis=1>(b)  y = Flatten(c)",
    "reshaped": "s = Constant<value_ints=[-1,4]>()  c = LogSoftmax<axis=1>(b)  y = Reshape(c, s)",
    "squeezed": "s = Constant<value_ints=[2,3]>()  c = Softmax<axis=1>(b)  y = Squeeze(c, s)",
    "there and back": """
        s = Constant<value_ints=[2]>()  f = Flatten(b)  c = Softmax<axis=1>(f)  d = Unsqueeze(c, s)
        e = Transpose<perm=[0,2,1]>(d)  y = Flatten(e)
    """,
}


@pytest.mark.parametrize("name", MOVED)
def test_a_softmax_is_final_in_whatever_shape_it_leaves(name: str, tmp_path: Path) -> None:
    body = "a = Conv(x, w)  b = GlobalAveragePool(a)  " + MOVED[name]
    network = read_onnx(saved(model(body, outputs="float[batch,4] y", weights={"w": (4, 4, 3, 3)}), tmp_path))
    inputs = network.example_input(3)
    assert network.origin.ends_in_softmax
    assert output_kind(network) == ("log_probabilities" if name == "reshaped" else "probabilities")
    logits, outputs = network.logits(inputs), network(inputs)
    assert logits.shape == outputs.shape == (3, 4)
    assert not torch.allclose(logits.exp().sum(1), torch.ones(3), atol=1e-3)
    given = torch.log_softmax(logits, 1) if name == "reshaped" else torch.softmax(logits, 1)
    assert torch.allclose(given, outputs)


def test_a_softmax_along_the_channels_is_final_in_every_opset(tmp_path: Path) -> None:
    body = "a = Conv(x, w)  y = Softmax<axis=1>(a)"
    network = read_onnx(saved(model(body, weights={"w": (4, 4, 3, 3)}), tmp_path))
    write_onnx(network, tmp_path / "old.onnx", opset=11)  # between two Transposes
    old, inputs = read_onnx(tmp_path / "old.onnx"), network.example_input(3)
    assert output_kind(old) == "probabilities"
    assert torch.equal(old.logits(inputs), network.logits(inputs))


def test_several_softmaxes_in_one_output_are_no_final_one(tmp_path: Path) -> None:
    body = "a = Conv(x, w)  b = Reshape(a, s)  c = Softmax<axis=2>(b)  y = Flatten(c)"
    weights = {"w": (4, 4, 6, 6), "s": np.array([0, 2, 2])}
    network = read_onnx(saved(model(body, outputs="float[batch,4] y", weights=weights), tmp_path))
    assert not network.origin.ends_in_softmax
    assert output_kind(network) == "logits"


def test_an_output_that_is_read_elsewhere_keeps_its_softmax_there(tmp_path: Path) -> None:
    body = "a = Conv(x, w)  b = Softmax<axis=1>(a)  y = Flatten(b)  z = Mul(y, y)"
    made = model(body, outputs="float[batch,4] y, float[batch,4] z", weights={"w": (4, 4, 6, 6)})
    network = read_onnx(saved(made, tmp_path))
    logits, square = network.logits(network.example_input(3))
    assert torch.allclose(torch.softmax(logits, 1).square(), square)


def test_gradients_reach_the_parameters() -> None:
    network = build("small_cnn").train()
    network.logits(network.example_input(4)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_state_dict_round_trip() -> None:
    one, two = build("small_cnn", seed=0).eval(), build("small_cnn", seed=1).eval()
    inputs = one.example_input()
    assert not torch.equal(one(inputs), two(inputs))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(inputs), two(inputs))
    with pytest.raises(RuntimeError, match="Missing key"):
        two.load_state_dict({})


def test_example_input_is_seeded() -> None:
    network = build("small_cnn")
    assert torch.equal(network.example_input(3, seed=4), network.example_input(3, seed=4))
    assert not torch.equal(network.example_input(3, seed=4), network.example_input(3, seed=5))


def test_layers_are_in_execution_order_each_once() -> None:
    assert list(topology("Shared").layers()) == ["stem", "shared", "head"]


def test_a_module_outside_the_tables_is_refused_by_name() -> None:
    with pytest.raises(OperatorUnknown, match="cumsum"):
        trace(_Odd(), SHAPE)


def test_a_size_that_does_not_fit_is_refused_by_node() -> None:
    with pytest.raises(ModelRefused, match="does not fit the shapes that reach it"):
        build("vgg16", image_size=(8, 8))


def test_an_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(ModelRefused) as caught:
        build("resnet19")
    assert "resnet20" in str(caught.value.faults[0].expected)


class _Odd(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 1)
