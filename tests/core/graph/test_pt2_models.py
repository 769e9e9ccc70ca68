"""Layers, names, sizes and cuts of networks that come as `.pt2`; what is refused in their graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from core.errors import ModelRefused, OperatorUnknown
from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.export import check_parity, write_onnx
from core.graph.importers import load
from core.graph.pt2_reading import read_pt2
from core.job import ModelInput, ModelOptions
from tests.core.graph.exported import differences, read_back, saved
from tests.core.graph.topologies import random_removal


class Block(nn.Module):
    """Squeeze-and-excite, a bare scale, a shortcut, everything in place that can be."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.gate = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 16, 1), nn.Hardsigmoid())
        self.conv2 = nn.Conv2d(16, 8, 3, padding="same", groups=2)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.drop = nn.Dropout(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.bn1(self.conv1(x)))
        y *= self.gate(y.mean((2, 3), keepdim=True))
        return self.drop(self.conv2(y) * self.scale).add_(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.PReLU(8))
        self.layer1 = nn.Sequential(Block(), Block())
        self.norm = nn.GroupNorm(1, 8)
        self.up = nn.ConvTranspose2d(8, 12, 2, 2)
        self.plain = nn.InstanceNorm2d(12, affine=True)
        self.head = nn.Linear(12, 5)
        self.register_buffer("shift", torch.linspace(0, 1, 12).view(12, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.up(self.norm(self.layer1(self.stem(x))))) + self.shift
        x = F.silu(x).permute(0, 2, 3, 1)
        return self.head(x).mean((1, 2)).view(x.size(0), -1)


def settled(module: nn.Module, *shape: int) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            module.train()(torch.randn(8, *shape))
    return module.eval()


@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
def test_a_network_keeps_names_and_values_and_can_be_cut(decomposed: bool, tmp_path: Path) -> None:
    module = settled(Net(), 3, 16, 16)
    if decomposed:
        module.plain = nn.Identity()  # decomposed for several examples at once, it mixes them
    network = read_back(module, tmp_path, torch.randn(2, 3, 16, 16), decomposed=decomposed)
    assert differences(module, network, torch.randn(3, 3, 16, 16)) < [1e-10]
    wanted = {name for name, layer in module.named_modules() if next(layer.parameters(recurse=False), None) is not None}
    assert set(network.layers()) == wanted - {"layer1.0", "layer1.1"} - ({"stem.2"} if decomposed else set())
    parameters = dict(module.named_parameters())
    assert decomposed or {name: tuple(item.shape) for name, item in network.named_parameters()} == {
        name: tuple(item.shape) for name, item in parameters.items()
    }
    assert network.inputs[0].shape == ("batch", 3, 16, 16)
    assert network.outputs[0].name == "output"
    assert (network.origin.format, network.origin.opset, network.origin.static_batch) == ("pt2", 20, None)
    removal = random_removal(network, 0.4)
    assert removal
    smaller, _ = cut(network, removal)
    inputs = network.example_input(4, seed=1)
    assert check_cut(network, removal, smaller, inputs).passed
    write_onnx(smaller, tmp_path / "cut.onnx")
    assert check_parity(smaller, tmp_path / "cut.onnx", inputs).passed


def test_exported_in_training_mode(tmp_path: Path) -> None:
    module = settled(Net(), 3, 16, 16).train()
    for decomposed in (False, True):
        if decomposed:  # a random mask, and a normalisation that mixes several examples, are refused
            module.plain = nn.Identity()
            module.layer1[0].drop = module.layer1[1].drop = nn.Identity()
        network = read_back(module, tmp_path, torch.randn(2, 3, 16, 16), decomposed=decomposed)
        assert not network.training
        assert differences(module, network, torch.randn(3, 3, 16, 16)) < [1e-10], "as in eval mode"
        assert decomposed or any(isinstance(layer, nn.Dropout) for layer in network.module.modules())


def test_a_static_batch_is_freed(tmp_path: Path) -> None:
    module = settled(Net(), 3, 16, 16)
    for batch in (1, 4):
        network = read_back(module, tmp_path, torch.randn(batch, 3, 16, 16), dynamic=None)
        assert network.origin.static_batch == batch
        assert network.inputs[0].shape == (batch, 3, 16, 16)
        assert differences(module, network, torch.randn(3, 3, 16, 16)) < [1e-10]
    decomposed = read_back(module, tmp_path, torch.randn(1, 3, 16, 16), dynamic=None, decomposed=True)
    assert isinstance(decomposed.layers()["plain"], nn.InstanceNorm2d)
    assert differences(module, decomposed, torch.randn(3, 3, 16, 16)) < [1e-10]


def test_dynamic_height_and_width(tmp_path: Path) -> None:
    module = settled(Net(), 3, 16, 16)
    dynamic = ({0: Dim("n", min=1), 2: 2 * Dim("h", min=4, max=64), 3: 2 * Dim("w", min=4, max=64)},)
    network = read_back(module, tmp_path, torch.randn(2, 3, 16, 20), dynamic=dynamic)
    assert network.inputs[0].shape == ("batch", 3, "height", "width")
    assert network.outputs[0].shape == ("batch", 5)
    assert differences(module, network, torch.randn(2, 3, 24, 32)) < [1e-10]


class Line(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.conv(x))


def test_several_outputs_and_inputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 4, 1)

        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            both = self.a(left) + self.b(right)
            return {"sum": both, "mean": both.mean((2, 3))}

    inputs = torch.randn(2, 3, 6, 6), torch.randn(2, 2, 6, 6)
    batch = Dim("batch")
    path = saved(Two(), tmp_path / "two.pt2", *inputs, dynamic=({0: batch}, {0: batch}))
    network = read_pt2(path)
    assert [spec.name for spec in network.inputs] == ["left", "right"]
    assert [(spec.name, spec.shape) for spec in network.outputs] == [
        ("output_0", ("batch", 4, 6, 6)),
        ("output_1", ("batch", 4)),
    ]


def test_layers_used_twice_and_weights_computed_from_weights(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.tied = nn.Conv2d(4, 4, 3, padding=1)
            self.tied.weight, self.tied.bias = self.conv.weight, self.conv.bias
            self.last = nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.last.weight - self.last.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(self.tied(self.conv(self.conv(x))), weight, self.last.bias)

    module = Shared()
    network = read_back(module, tmp_path, torch.randn(2, 4, 5, 5))
    assert sorted(network.layers()) in (["conv", "last"], ["last", "tied"]), "torch keeps one of a tied weight's names"
    assert max(differences(module, network, torch.randn(2, 4, 5, 5))) <= 1e-6, "standardised in float32"
    unlike = Line(lambda self, x: F.conv2d(x[:, :3], self.conv.weight, stride=2))
    with pytest.raises(OperatorUnknown, match=r"the weight 'conv.weight' of node 'conv2d' in an unlike layer"):
        read_back(unlike, tmp_path, torch.randn(2, 3, 6, 6))


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown operators": (lambda self, x: torch.special.i0(x).cummax(1)[0], r"special_i0.*nor are 1 more.*cummax"),
    "a sort": (lambda self, x: x.sort(1)[0], r"aten.sort.default at node 'sort'"),
    "half precision": (lambda self, x: x.half().float(), r"conversion to float16"),
    "double precision": (lambda self, x: x.double().float(), r"conversion to float64"),
    "the batch turned": (lambda self, x: x.transpose(0, 1), r"does not have the batch in front"),
    "the batch reduced": (lambda self, x: x - x.mean(0), r"a reduction over the batch"),
    "the batch flipped": (lambda self, x: x.flip(0), r"a flip of the batch"),
    "a part of the batch": (lambda self, x: x + x[:1], r"a part of the batch"),
    "an unfold": (lambda self, x: F.unfold(x, 3), r"im2col"),
    "a weight that is computed": (lambda self, x: F.conv2d(x, x[:1, :, :3, :3].mean(0, keepdim=True)), r"batch"),
    "a constant": (lambda self, x: torch.ones(2, 3) + self.conv.bias.sum(), r"is a constant|constant"),
    "no float32": (lambda self, x: x.argmax(1), r"is not a float32 tensor"),
    "changed through a view": (
        lambda self, x: (lambda y: (y[:, :2].relu_(), y * 2)[1])(x.clone()),
        r"changed it in place, through",
    ),
    "an attention that sees nothing": (
        lambda self, x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(6, 6).triu(1) > 0),
        r"_attention.default at node '.*' has a mask that hides every key from a query",
    ),
    "an attention that the input masks": (
        lambda self, x: F.scaled_dot_product_attention(x, x, x, attn_mask=x > 0),
        r"_attention.default at node '.*' has a mask of truth values that depends on the input",
    ),
    "an attention of grouped queries": (
        lambda self, x: F.scaled_dot_product_attention(x, x[:, :3], x[:, :3], enable_gqa=True),
        r"grouped queries",
    ),
    "an einsum over the batch": (
        lambda self, x: torch.einsum("bchw,bchw->chw", x, x),
        r"einsum.default at node '.*' has the equation .*, which moves the batch or sums over it",
    ),
    "an einsum of an ellipsis": (
        lambda self, x: torch.einsum("b...w,b...w->b...", x, x),
        r"einsum.default at node '.*' has the equation",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(ModelRefused, match=reason) as caught:
        read_back(Line(function), tmp_path, torch.randn(2, 3, 6, 6), dynamic=None if name == "a constant" else "batch")
    if name == "unknown operators":
        assert isinstance(caught.value, OperatorUnknown)
        assert [fault.pointer for fault in caught.value.faults] == ["/graph/node/special_i0", "/graph/node/cummax"]


def test_a_norm_without_statistics_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(OperatorUnknown, match="no running statistics"):
        read_back(module, tmp_path, torch.randn(2, 3, 6, 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    path = saved(nn.Conv2d(3, 4, 1).to(dtype), tmp_path / "m.pt2", torch.randn(2, 3, 4, 4, dtype=dtype))
    with pytest.raises(ModelRefused, match="'input' is not a float32 tensor"):
        read_pt2(path)


def test_weights_of_other_types_are_refused(tmp_path: Path) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 1, 1).half())

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight.float())

    with pytest.raises(ModelRefused, match=r"'weight' is of type float16; weights are float32"):
        read_back(Half(), tmp_path, torch.randn(2, 3, 4, 4))


def test_it_is_a_format(tmp_path: Path) -> None:
    path = saved(nn.Conv2d(3, 4, 1), tmp_path / "m.pt2", torch.randn(2, 3, 4, 4))
    given = ModelInput(path=path, sha256="0" * 64, format="pt2")
    assert load(given).origin.format == "pt2"
    options = ModelOptions(architecture="resnet20")
    with pytest.raises(ModelRefused, match=r"architecture is not for \.pt2 archives"):
        load(given.model_copy(update={"options": options}))
