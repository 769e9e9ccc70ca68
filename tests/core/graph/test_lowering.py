"""Every entry of the lowering tables computes what torch computes; what is not taken is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import OperatorUnknown
from core.graph.lowering import trace
from core.graph.lowering_calls import FUNCTIONS, KEPT_LAYERS, METHODS, MODULES, ChannelLayerNorm

IMAGE, SIGNAL, VOLUME, ROWS = (4, 8, 8), (4, 8), (4, 4, 4, 4), (6,)

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Conv1d": (nn.Conv1d(4, 6, 3), SIGNAL),
    "Conv2d": (nn.Conv2d(4, 6, 3, groups=2), IMAGE),
    "Conv3d": (nn.Conv3d(4, 2, 3), VOLUME),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3, 2), SIGNAL),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 2, 2), IMAGE),
    "ConvTranspose3d": (nn.ConvTranspose3d(4, 2, 2, 2), VOLUME),
    "Linear": (nn.Linear(6, 3), ROWS),
    "BatchNorm1d": (nn.BatchNorm1d(6), ROWS),
    "BatchNorm2d": (nn.BatchNorm2d(4), IMAGE),
    "BatchNorm3d": (nn.BatchNorm3d(4), VOLUME),
    "InstanceNorm1d": (nn.InstanceNorm1d(4), SIGNAL),
    "InstanceNorm2d": (nn.InstanceNorm2d(4, affine=True), IMAGE),
    "InstanceNorm3d": (nn.InstanceNorm3d(4), VOLUME),
    "GroupNorm": (nn.GroupNorm(2, 4), IMAGE),
    "LayerNorm": (nn.LayerNorm(6), ROWS),
    "ChannelLayerNorm": (ChannelLayerNorm(4, eps=1e-6), IMAGE),
    "LocalResponseNorm": (nn.LocalResponseNorm(3), IMAGE),
    "PReLU": (nn.PReLU(4), IMAGE),
    "Dropout": (nn.Dropout(0.5), IMAGE),
    "ReLU": (nn.ReLU(), IMAGE),
    "LeakyReLU": (nn.LeakyReLU(0.2), IMAGE),
    "ReLU6": (nn.ReLU6(), IMAGE),
    "Hardtanh": (nn.Hardtanh(-0.5, 0.7), IMAGE),
    "Sigmoid": (nn.Sigmoid(), IMAGE),
    "Tanh": (nn.Tanh(), IMAGE),
    "Hardswish": (nn.Hardswish(), IMAGE),
    "Hardsigmoid": (nn.Hardsigmoid(), IMAGE),
    "SiLU": (nn.SiLU(), IMAGE),
    "Mish": (nn.Mish(), IMAGE),
    "GELU": (nn.GELU(), IMAGE),
    "Softmax": (nn.Softmax(1), ROWS),
    "LogSoftmax": (nn.LogSoftmax(1), ROWS),
    "Flatten": (nn.Flatten(), IMAGE),
    "Identity": (nn.Identity(), IMAGE),
    "Dropout1d": (nn.Dropout1d(), SIGNAL),
    "Dropout2d": (nn.Dropout2d(), IMAGE),
    "Dropout3d": (nn.Dropout3d(), VOLUME),
    "MaxPool1d": (nn.MaxPool1d(3, 2), SIGNAL),
    "MaxPool2d": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "MaxPool3d": (nn.MaxPool3d(2), VOLUME),
    "AvgPool1d": (nn.AvgPool1d(2), SIGNAL),
    "AvgPool2d": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "AvgPool3d": (nn.AvgPool3d(2), VOLUME),
    "AdaptiveAvgPool1d": (nn.AdaptiveAvgPool1d(3), SIGNAL),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d((None, 3)), IMAGE),
    "AdaptiveAvgPool3d": (nn.AdaptiveAvgPool3d(1), VOLUME),
    "Upsample": (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), IMAGE),
    "PixelShuffle": (nn.PixelShuffle(2), IMAGE),
    "PixelUnshuffle": (nn.PixelUnshuffle(2), IMAGE),
}

CALLS: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...]]] = {
    "relu": (lambda x: F.relu(torch.relu(x)), IMAGE),
    "relu6": (lambda x: F.relu6(4 * x), IMAGE),
    "silu, gelu": (lambda x: F.silu(x) + F.gelu(x), IMAGE),
    "hard": (lambda x: F.hardswish(x) + F.hardsigmoid(x), IMAGE),
    "sigmoid, tanh": (lambda x: torch.sigmoid(x) - torch.tanh(x), IMAGE),
    "softmax": (lambda x: torch.softmax(x, 1) + F.softmax(x, dim=1), ROWS),
    "log_softmax": (lambda x: F.log_softmax(torch.log_softmax(x, 1), dim=1), ROWS),
    "arithmetic": (lambda x: torch.sub(2 * x, x) / 3, IMAGE),
    "torch arithmetic": (lambda x: torch.div(torch.mul(torch.add(x, x), x), torch.add(torch.relu(x), 1.5)), IMAGE),
    "flatten": (lambda x: torch.flatten(x, 1) + x.flatten(1), IMAGE),
    "mean": (lambda x: torch.mean(x, (2, 3)) + x.mean([-2, -1]), IMAGE),
    "keepdim": (lambda x: x * x.mean((2, 3), keepdim=True), IMAGE),
    "reshape": (lambda x: torch.reshape(x, (-1, 2, 128)).reshape(-1, 256), IMAGE),
    "view": (lambda x: x.view(x.size(0), x.shape[1] // 2, -1), IMAGE),
    "size": (lambda x: x.view(x.size()[0], -1), IMAGE),
    "sizes": (lambda x: x.view(x.size(0), x.size(1) * 2 - 4, (x.size(2) + 8) // 4, -1), IMAGE),
    "permute": (lambda x: torch.permute(x, (0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous(), IMAGE),
    "transpose": (lambda x: torch.transpose(x, 1, 2).transpose(2, 3), IMAGE),
    "squeeze": (lambda x: torch.squeeze(x.unsqueeze(1), 1) + torch.unsqueeze(x, 2).squeeze(2), IMAGE),
    "chunk": (lambda x: torch.cat([torch.chunk(x, 2, 1)[1], x.chunk(2, dim=1)[0]], 1), IMAGE),
    "split": (lambda x: torch.concat([torch.split(x, 3, 1)[1], x.split([1, 3], dim=1)[1]], 1), IMAGE),
    "slices": (lambda x: x[:, 1:3] + x[:, ::2], IMAGE),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1)), IMAGE),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, (3, 5)), IMAGE),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2) + F.interpolate(x, size=(16, 16)), IMAGE),
    "bicubic": (lambda x: F.interpolate(x, size=(5, 6), mode="bicubic"), IMAGE),
    "methods": (lambda x: x.relu().sigmoid().tanh().add(x).mul(x), IMAGE),
    "softmax method": (lambda x: x.softmax(1), ROWS),
}


class Called(nn.Module):
    def __init__(self, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


def computes_the_same(module: nn.Module, shape: tuple[int, ...]) -> None:
    network = trace(nn.Sequential(module).eval(), shape)
    for batch in (1, 3):
        images = network.example_input(batch, seed=batch)
        with torch.no_grad():
            expected, found = module(images), network(images)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_modules(name: str) -> None:
    computes_the_same(*LAYERS[name])


def test_every_module_of_the_tables_has_a_case() -> None:
    assert {type(module) for module, _ in LAYERS.values()} == {*KEPT_LAYERS, *MODULES, ChannelLayerNorm}


@pytest.mark.parametrize("name", CALLS)
def test_functions_and_methods(name: str) -> None:
    call, shape = CALLS[name]
    computes_the_same(Called(call), shape)


def test_every_function_and_method_has_a_case() -> None:
    """By what symbolic tracing of the cases meets."""
    met: set[Any] = set()
    for call, _ in CALLS.values():
        for node in torch.fx.symbolic_trace(Called(call)).graph.nodes:
            if node.op in ("call_function", "call_method"):
                met.add(node.target)
    missing = {*FUNCTIONS, *METHODS} - met
    assert {getattr(item, "__name__", item) for item in missing} == {"iadd"}, "which tracing writes as add"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 14, (2, 9)])
@pytest.mark.parametrize("side", [1, 2, 6, 7, 9, 14])
def test_adaptive_averages_of_any_size_to_any_other(size: Any, side: int) -> None:
    computes_the_same(nn.AdaptiveAvgPool2d(size), (2, side, side))


REFUSED: dict[str, tuple[nn.Module | Callable[[Tensor], Any], str]] = {
    "a function": (lambda x: torch.cumsum(x, 1), "cumsum"),
    "a method": (lambda x: x.cumsum(1), "cumsum"),
    "an attribute": (lambda x: x.device, "attribute 'device'"),
    "an index": (lambda x: x[:, 0], "index"),
    "a number in front": (lambda x: 1 - x, "a number as the first"),
    "a reshape of the batch": (lambda x: x.reshape(4, -1), "a reshape of"),
    "a split of the batch": (lambda x: x.split(1, 0)[0], "a split of"),
    "the batch in a size": (lambda x: x.view(x.size(0) * 4, -1), "arithmetic on the batch size"),
    "a rounded division": (lambda x: x // 2, "a division that rounds down"),
    "a wide softmax": (lambda x: F.softmax(x, 1, dtype=torch.float64), "a softmax in"),
    "another padding": (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), "padding by 'circular'"),
    "antialiasing": (lambda x: F.interpolate(x, size=(4, 4), mode="bilinear", antialias=True), "antialiased"),
    "areas": (lambda x: F.interpolate(x, size=(4, 4), mode="area"), "interpolation by 'area'"),
    "approximate gelu": (nn.GELU(approximate="tanh"), "gelu approximated by 'tanh'"),
    "indices": (nn.MaxPool2d(2, return_indices=True), "return_indices"),
    "a circular convolution": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "padding by another rule"),
    "same padding": (nn.Conv2d(4, 4, 3, padding="same"), "padding by another rule"),
    "no statistics": (nn.BatchNorm2d(4, track_running_stats=False), "no running statistics"),
    "no scale": (nn.BatchNorm2d(4, affine=False), "no scale and bias"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_by_name(name: str) -> None:
    given, told = REFUSED[name]
    module = given if isinstance(given, nn.Module) else Called(given)
    wrapped = nn.Sequential(module) if isinstance(given, nn.Module) else module
    with pytest.raises(OperatorUnknown, match=told) as caught:
        trace(wrapped, IMAGE)
    assert " at '" in str(caught.value), "the node is named"


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.scale * self.conv(self.scale * x))


def test_layers_and_bare_parameters_are_the_modules_own() -> None:
    module = Shared().train()
    network = trace(module, IMAGE)
    assert dict(network.named_parameters()).keys() == dict(module.named_parameters()).keys()
    assert {id(item) for item in network.parameters()} == {id(item) for item in module.parameters()}
    assert network.training
    assert module.conv.training, "working out shapes leaves no layer in eval mode"
    computes_the_same(module, IMAGE)
