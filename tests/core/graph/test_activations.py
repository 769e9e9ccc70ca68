"""Activation functions and softmaxes: read, compared with ONNX Runtime, written for old and new opsets, read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core.graph.export import check_parity, to_onnx, write_onnx
from core.graph.importers import read_onnx
from core.graph.lowering import trace
from core.graph.network import Network
from tests.core.graph.round_trips import OPSETS, read_case, refused, round_trip

aten = torch.ops.aten
FLAT: dict[str, Any] = {"inputs": "float[batch,12] x", "outputs": "float[batch,n] y"}
LINE: dict[str, Any] = {"inputs": "float[batch,4,9] x", "outputs": "float[batch,n,h] y"}
OPEN: dict[str, Any] = {"inputs": "float[batch,4,h,w] x", "outputs": "float[batch,n,h2,w2] y"}


def number(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


CASES: dict[str, dict[str, Any]] = {
    "celu": {"body": "y = Celu<alpha=2.0>(x)"},
    "celu of a negative alpha": {"body": "y = Celu<alpha=-0.5>(x)"},
    "elu": {"body": "y = Elu<alpha=0.7>(x)"},
    "gelu": {"body": "y = Gelu(x)", "opset": 20},
    "gelu by tanh": {"body": 'y = Gelu<approximate="tanh">(x)', "opset": 20},
    "gelu as exported before 20": {
        "body": "a = Div(x, r)  b = Erf(a)  c = Add(b, one)  d = Mul(x, c)  y = Mul(d, half)",
        "weights": {"r": number(2**0.5), "one": number(1), "half": number(0.5)},
    },
    "gelu by tanh as exported before 20": {
        "body": "a = Pow(x, three)  b = Mul(a, k)  c = Add(x, b)  d = Mul(c, r)  e = Tanh(d)  f = Add(e, one)  "
                "g = Mul(half, x)  y = Mul(g, f)",
        "weights": {"three": number(3), "k": number(0.044715), "r": number((2 / np.pi) ** 0.5), "one": number(1),
                    "half": number(0.5)},
    },
    "hard sigmoid": {"body": "y = HardSigmoid<alpha=0.16666667>(x)"},
    "hard sigmoid of another slope": {"body": "y = HardSigmoid<alpha=0.3, beta=0.4>(x)"},
    "hard swish": {"body": "y = HardSwish(x)"},
    "leaky relu": {"body": "y = LeakyRelu<alpha=0.2>(x)"},
    "mish": {"body": "y = Mish(x)", "opset": 18},
    "prelu": {"body": "y = PRelu(x, s)", "weights": {"s": (4, 1, 1)}},
    "prelu of rank 4": {"body": "y = PRelu(x, s)", "weights": {"s": (1, 4, 1, 1)}},
    "prelu of one slope": {"body": "y = PRelu(x, s)", "weights": {"s": (1,)}},
    "prelu of a number": {"body": "y = PRelu(x, s)", "weights": {"s": number(0.25)}},
    "prelu of vectors": {"body": "y = PRelu(x, s)", "weights": {"s": (12,)}, **FLAT},
    "prelu of lines": {"body": "y = PRelu(x, s)", "weights": {"s": (4, 1)}, **LINE},
    "prelu along the width": {"body": "y = PRelu(x, s)", "weights": {"s": (6,)}},
    "prelu of one slope per place": {"body": "y = PRelu(x, s)", "weights": {"s": (4, 6, 6)}},
    "prelu of computed slopes": {"body": "s = Sigmoid(x)  y = PRelu(x, s)"},
    "prelus of merged slopes": {"body": "a = PRelu(x, s)  y = PRelu(a, s)", "weights": {"s": (4, 1, 1)}},
    "relu": {"body": "y = Relu(x)"},
    "relu6": {"body": "y = Clip(x, low, high)", "weights": {"low": number(0), "high": number(6)}},
    "selu": {"body": "y = Selu(x)"},
    "selu of other numbers": {"body": "y = Selu<alpha=1.5, gamma=0.7>(x)"},
    "shrink": {"body": "y = Shrink<lambd=0.4, bias=0.3>(x)"},
    "shrink hard": {"body": "y = Shrink<lambd=0.4>(x)"},
    "shrink soft": {"body": "y = Shrink<lambd=0.4, bias=0.4>(x)"},
    "shrink backwards": {"body": "y = Shrink<lambd=-0.4, bias=0.3>(x)"},
    "sigmoid": {"body": "y = Sigmoid(x)"},
    "softplus": {"body": "y = Softplus(x)"},
    "softsign": {"body": "y = Softsign(x)"},
    "swish": {"body": "y = Swish<alpha=0.7>(x)", "opset": 24},
    "swish of alpha 1": {"body": "y = Swish(x)", "opset": 24},
    "swish as exported before 24": {"body": "a = Sigmoid(x)  y = Mul(x, a)"},
    "tanh": {"body": "y = Tanh(x)"},
    "thresholded relu": {"body": "y = ThresholdedRelu<alpha=0.3>(x)"},
    "clip": {"body": "y = Clip(x, low, high)", "weights": {"low": number(-0.5), "high": number(1)}},
    "clip by vectors of one": {
        "body": "y = Clip(x, low, high)", "weights": {"low": number([-0.5]), "high": number([1])},
    },
    "clip below": {"body": "y = Clip(x, low)", "weights": {"low": number(-0.5)}},
    "clip above": {"body": "y = Clip(x, , high)", "weights": {"high": number(0.5)}},
    "clip crossed": {"body": "y = Clip(x, low, high)", "weights": {"low": number(0.5), "high": number(-0.5)}},
    "clip to infinity": {"body": "y = Clip(x, low, high)", "weights": {"low": number(0), "high": number(np.inf)}},
    "clip as attributes": {"body": "y = Clip<min=0.0, max=6.0>(x)", "opset": 9},
    "clip below as attribute": {"body": "y = Clip<min=-0.2>(x)", "opset": 9},
    "clip of nothing": {"body": "a = Clip(x)  y = Relu(a)"},
    "dropout": {"body": "y = Dropout(x, r)", "weights": {"r": number(0.3)}},
    "dropout as attribute": {"body": "y = Dropout<ratio=0.3>(x)", "opset": 10},
    "softmax": {"body": "y = Softmax<axis=1>(x)"},
    "softmax in the middle": {"body": "y = Softmax<axis=2>(x)"},
    "softmax before 13": {"body": "y = Softmax(x)", "opset": 11, **FLAT},
    "softmax over several dimensions": {"body": "y = Softmax<axis=1>(x)", "opset": 11},
    "softmax over space": {"body": "y = Softmax<axis=2>(x)", "opset": 9},
    "softmax over space that is flat": {
        "body": "a = GlobalAveragePool(x)  b = Softmax<axis=1>(a)  y = Flatten(b)", "opset": 11,
        "outputs": "float[batch,n] y",
    },
    "softmax over open lines": {
        "body": "y = Softmax<axis=1>(x)", "opset": 11, "inputs": "float[batch,4,h] x", "outputs": "float[batch,n,h2] y",
    },
    "log softmax": {"body": "y = LogSoftmax<axis=-1>(x)"},
    "log softmax over several dimensions": {"body": "y = LogSoftmax<axis=-2>(x)", "opset": 12},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_read_written_read(name: str, tmp_path: Path) -> None:
    round_trip(CASES[name], tmp_path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hardmax": ({"body": "y = Hardmax(x)"}, "operator Hardmax at node 'n0' is not on the list in core/graph/op"),
    "a softmax over the batch": ({"body": "y = Softmax<axis=0>(x)", **FLAT}, "a softmax over the batch"),
    "an old softmax over the batch": (
        {"body": "y = Softmax<axis=0>(x)", "opset": 11, **FLAT}, "a softmax over the batch",
    ),
    "a softmax over open heights and widths": (
        {"body": "y = Softmax<axis=2>(x)", "opset": 11, **OPEN}, "several dynamic dimensions together",
    ),
    "celu of alpha 0": ({"body": "y = Celu<alpha=0.0>(x)"}, "alpha is 0, by which it divides"),
    "another gelu": ({"body": 'y = Gelu<approximate="sigmoid">(x)', "opset": 20}, "it is 'none' or 'tanh'"),
    "too many slopes": (
        {"body": "y = PRelu(x, s)", "weights": {"s": (1, 1, 4, 1, 1)}}, "slopes of rank 5 on an input of rank 4",
    ),
    "slopes that do not fit": ({"body": "y = PRelu(x, s)", "weights": {"s": (4,)}}, "operator PRelu at node 'n0'"),
    "computed bounds": ({"body": "a = Relu(x)  y = Clip(x, a)"}, "that is not one constant number"),
    "dropout in training": (
        {"body": "y = Dropout(x, r, t)", "weights": {"r": number(0.5), "t": np.array(True)}}, "in training mode",
    ),
    "all is dropped": ({"body": "y = Dropout(x, r)", "weights": {"r": number(1)}}, "a dropout ratio of 1.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_by_name(name: str, tmp_path: Path) -> None:
    refused(*REFUSED[name], tmp_path)


def called(target: Any, *args: Any, **options: Any) -> Network:
    """A network of the one call, as another importer may make it."""
    network = trace(nn.ReLU(), (4, 6, 6))
    (relu,) = network.module.graph.find_nodes(op="call_function", target=aten.relu.default)
    relu.target, relu.args, relu.kwargs = target, (relu.args[0], *args), options
    network.module.recompile()
    return network


@pytest.mark.parametrize(
    "network",
    [
        called(aten.elu.default, 0.8, 1.5, 0.5),
        called(aten.elu.default, 0.8, 1.5),
        called(aten.softplus.default, 2.0, 20.0),
        called(aten.softplus.default, 2.0, 0.5),
        called(aten.threshold.default, 0.3, -2.0),
        called(aten.hardshrink.default),
        called(aten.softshrink.default),
        called(aten.celu.default),
        called(aten.leaky_relu.default),
        called(aten.clamp.default, None, 0.5),
        called(aten.log_softmax.int, 1),
    ],
    ids=lambda network: str(network.output_nodes()[0].target) + str(network.output_nodes()[0].args[1:]),
)
def test_forms_with_arguments_that_onnx_has_not(network: Network, tmp_path: Path) -> None:
    inputs = network.example_input(3)
    for opset in OPSETS:
        write_onnx(network, tmp_path / "made.onnx", opset=opset)
        assert check_parity(network, tmp_path / "made.onnx", inputs).passed
        assert torch.allclose(read_onnx(tmp_path / "made.onnx")(inputs), network(inputs), atol=1e-5)


@pytest.mark.parametrize("opset", [20, 26])
def test_newer_operators_are_written_as_they_are(opset: int, tmp_path: Path) -> None:
    body = "a = Gelu(x)  b = Mish(a)  c = HardSwish(b)  d = Celu(c)  e = Round(d)  y = PRelu(e, s)"
    network = read_case({"body": body, "weights": {"s": (4, 1, 1)}, "opset": 20}, tmp_path)
    written = [node.op_type for node in to_onnx(network, opset=opset).graph.node]
    assert written == ["Gelu", "Mish", "HardSwish", "Celu", "Round", "PRelu"]


def test_slopes_per_channel_are_a_layer(tmp_path: Path) -> None:
    network = read_case(CASES["prelu"], tmp_path)
    (layer,) = network.layers().values()
    assert isinstance(layer, nn.PReLU)
    assert layer.num_parameters == 4


def test_merged_slopes_are_parted(tmp_path: Path) -> None:
    assert len(read_case(CASES["prelus of merged slopes"], tmp_path).layers()) == 2
