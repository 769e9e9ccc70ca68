"""Every lowering: exported as it is and decomposed, read, compared with the module itself, written as ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.graph.cuts import cut
from core.graph.exactness import check_cut
from core.graph.export import check_parity, write_onnx
from tests.core.graph.exported import Around, differences, read_back
from tests.core.graph.topologies import random_removal

PLANE, LINE, SPACE, FLAT = (4, 8, 8), (4, 12), (2, 6, 6, 6), (12,)

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu in place": lambda x: torch.relu_(x),
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky relu in place": lambda x: F.leaky_relu_(x),
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 1.3),
    "silu": F.silu,
    "silu in place": lambda x: F.silu(x, inplace=True),
    "mish": F.mish,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardswish in place": lambda x: F.hardswish(x, inplace=True),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
    "softplus": F.softplus,
    "softplus of a slope": lambda x: F.softplus(x, beta=2.0),
    "softsign": F.softsign,
    "log sigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.125, 0.375),
    "rrelu": lambda x: F.rrelu(x, 0.1, 0.3),
    "glu": lambda x: F.glu(x, 1),
    "exp and log": lambda x: torch.log(torch.exp(x) + 1),
    "log1p and expm1": lambda x: torch.log1p(x.abs()) + torch.expm1(x),
    "sqrt and rsqrt": lambda x: torch.sqrt(x.abs() + 1) + torch.rsqrt(x.abs() + 2),
    "reciprocal": lambda x: 1 / (x.abs() + 1),
    "square and power": lambda x: x.square() + x**3 + x.abs().pow(0.5),
    "power of a number": lambda x: 2**x,
    "erf": torch.erf,
    "round, floor, ceil": lambda x: torch.floor(3 * x) + torch.ceil(2 * x) + torch.round(5 * x),
    "sine and cosine": lambda x: torch.sin(x) + torch.cos(x),
    "sign and neg": lambda x: torch.sign(x) - x.neg(),
    "clamp": lambda x: x.clamp(-0.3, 0.4) + x.clamp(min=0.1) + x.clamp_max(0.2),
    "softmax": lambda x: F.softmax(x, 1),
    "log softmax": lambda x: F.log_softmax(x, -1),
    "dropout": lambda x: F.dropout(x, 0.3, training=False),
    "numbers": lambda x: 3 - 2 * (x + 1) / 4,
    "rsub with a factor": lambda x: torch.rsub(x, 5, alpha=2),
    "sub with a factor": lambda x: torch.sub(x, x * x, alpha=3),
    "division rounded down": lambda x: torch.div(x * 7, 2, rounding_mode="floor"),
    "comparison": lambda x: torch.where(x > 0.1, x, x * 0.2) + torch.where(x <= 0, 1.0, x),
    "truth as numbers": lambda x: x * (x > 0).float(),
    "masked": lambda x: x.masked_fill(x < 0, 0.5),
    "maximum": lambda x: torch.maximum(x, x.sin()) + torch.minimum(x, x * x),
    "addcmul": lambda x: torch.addcmul(x, x, x.sin(), value=0.5) + torch.addcdiv(x, x, x.abs() + 1, value=0.3),
    "lerp": lambda x: torch.lerp(x, x.sin(), 0.25),
    "in place arithmetic": lambda x: (x * 2).add_(1).mul_(3).sub_(x).div_(2),
    "copies": lambda x: x.contiguous().clone().detach() + 0.0,
}

SHAPES: dict[str, Callable[[Tensor], Any]] = {
    "flatten": lambda x: x.flatten(1),
    "view of the batch": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(-1, 2, 3, 64),
    "unflatten": lambda x: x.unflatten(1, (2, -1)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 3),
    "movedim": lambda x: x.movedim(1, -1),
    "squeeze": lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1),
    "unsqueeze": lambda x: x.unsqueeze(1) + 0.0,
    "chunk": lambda x: torch.cat([part * place for place, part in enumerate(x.chunk(2, 1), 1)], 1),
    "split": lambda x: x.split(4, 1)[1] * 2,
    "split by sizes": lambda x: x.split([1, 2, 3], 1)[2] + 1,
    "unbind": lambda x: x.unbind(2)[3] * 1.0,
    "select": lambda x: x[:, 2] + x[:, -1],
    "slice": lambda x: x[:, 1:5, ::2, :-1] * 1,
    "narrow": lambda x: x.narrow(1, 2, 3) + 0.0,
    "stack": lambda x: torch.stack([x, x.sin()], 1),
    "stack in front": lambda x: torch.stack([x, x.sin()])[1] * 2,
    "tensor split": lambda x: x.tensor_split(4, 1)[0] * 1.0,
    "roll": lambda x: x.roll(3, 2).roll((-1, 2), (1, 3)),
    "expand": lambda x: x.mean(1, keepdim=True).expand(-1, 6, -1, -1) * 1,
    "expand as": lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "pad of channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "pad cuts off": lambda x: F.pad(x, (-1, 2)),
    "reflected": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "replicated": lambda x: F.pad(x, (1, 2, 1, 0), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 2, 1, 0), mode="circular"),
    "pixel shuffle": lambda x: F.pixel_shuffle(x.repeat(1, 2, 1, 1), 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "channel shuffle": lambda x: F.channel_shuffle(x, 3),
    "flip": lambda x: x.flip(2),
    "picked": lambda x: x[:, [4, 0, 3]] * 1,
    "picked in order": lambda x: x.index_select(1, torch.tensor([2, 3, 4])) + 1,
    "like zeros": lambda x: x + torch.zeros_like(x),
    "zeros through a pool": lambda x: x + F.max_pool2d(torch.zeros_like(x), 3, 1, 1),
    "ones through a pool": lambda x: x + F.avg_pool2d(torch.ones_like(x), 3, 1, 1),
    "joined with zeros": lambda x: torch.cat([x, torch.zeros_like(x[:, :2])], 1),
    "joined with zeros of the batch": lambda x: torch.cat([x.new_zeros(x.size(0), 1, 8, 8), x], 1),
    "turned and back": lambda x: x.permute(1, 0, 2, 3).sin().permute(1, 0, 2, 3),
    "heads": lambda x: torch.stack(tuple(x.flatten(2).reshape(x.size(0), 3, 2, 64).permute(1, 0, 2, 3).unbind(0)), 1),
    "folded batch": lambda x: x.reshape(-1, 64).mul(2).sigmoid().view(x.size(0), 6, 8, 8),
    "folded with groups": lambda x: x.reshape(x.size(0) * 3, 2, 64).softmax(-1).view(x.size(0), 6, 8, 8),
    "arange": lambda x: x + torch.arange(8, dtype=torch.float32) * 0.1,
    "meshed": lambda x: x * torch.linspace(0, 1, 8).view(8, 1),
}

REDUCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "mean": lambda x: x.mean((2, 3)),
    "mean of channels": lambda x: x.mean(1, keepdim=True),
    "sum": lambda x: x.sum(-1),
    "amax, amin": lambda x: x.amax((2, 3)) + x.amin((2, 3)),
    "maximum along": lambda x: x.max(2)[0],
    "product": lambda x: x.prod(3),
    "std": lambda x: x.std((2, 3)),
    "var": lambda x: x.var(1, correction=0, keepdim=True),
    "var and mean": lambda x: torch.add(*torch.var_mean(x, (2, 3), correction=1)),
    "norm": lambda x: x.norm(2, 1),
    "norm of order 1": lambda x: torch.linalg.vector_norm(x, 1, (2, 3), keepdim=True),
    "normalize": lambda x: F.normalize(x, dim=1),
    "logsumexp": lambda x: x.logsumexp(1),
    "global average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "even average": lambda x: F.adaptive_avg_pool2d(x, (4, 2)),
    "uneven average": lambda x: F.adaptive_avg_pool2d(x, 3),
    "half open average": lambda x: F.adaptive_avg_pool2d(x, (None, 1)),
    "global maximum": lambda x: F.adaptive_max_pool2d(x, 1),
    "even maximum": lambda x: F.adaptive_max_pool2d(x, 4),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max pool rounded up": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "average pool": lambda x: F.avg_pool2d(x, 2),
    "average pool not counting": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average pool with a divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "lp pool": lambda x: F.lp_pool2d(x.abs(), 2, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear to a size": lambda x: F.interpolate(x, (12, 10), mode="bilinear", align_corners=True),
    "local response": lambda x: F.local_response_norm(x, 3, alpha=0.1),
}


def tokens(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three heads of (64, 2)."""
    heads = x.flatten(2).transpose(1, 2).view(-1, 64, 3, 2).transpose(1, 2)
    return heads, heads.sin(), heads.cos()


PRODUCTS: dict[str, Callable[[Tensor], Any]] = {
    "attention": lambda x: F.scaled_dot_product_attention(*tokens(x)),
    "attention, causal": lambda x: F.scaled_dot_product_attention(*tokens(x), is_causal=True, scale=1.0),
    "attention, causal, fewer keys": lambda x: F.scaled_dot_product_attention(
        tokens(x)[0], tokens(x)[1][:, :, :40], tokens(x)[2][:, :, :40], is_causal=True
    ),
    "attention, masked": lambda x: F.scaled_dot_product_attention(
        *tokens(x), attn_mask=torch.arange(64)[:, None] % 3 != torch.arange(64) % 4
    ),
    "attention, with a bias": lambda x: F.scaled_dot_product_attention(
        *tokens(x), attn_mask=torch.eye(64, dtype=x.dtype)
    ),
    "einsum of two": lambda x: torch.einsum("bhid,bhjd->bhij", *tokens(x)[:2]),
    "einsum that turns": lambda x: torch.einsum("bchw, bdhw -> bdc", x, x.sin()),
    "einsum of elements": lambda x: torch.einsum("bchw,bc->bchw", x, x.mean((2, 3))),
    "einsum of one": lambda x: torch.einsum("bchw->bhc", x),
    "product of two": lambda x: x @ x.transpose(2, 3),
    "product of rows": lambda x: torch.bmm(x.flatten(2), x.flatten(2).mT),
}
LINES: dict[str, Callable[[Tensor], Any]] = {
    "max pool 1d": lambda x: F.max_pool1d(x, 2),
    "average pool 1d": lambda x: F.avg_pool1d(x, 3, 1, 1),
    "global average 1d": lambda x: F.adaptive_avg_pool1d(x, 1),
    "nearest 1d": lambda x: F.interpolate(x, scale_factor=2),
    "linear 1d": lambda x: F.interpolate(x, scale_factor=2, mode="linear"),
}
SPACES: dict[str, Callable[[Tensor], Any]] = {
    "max pool 3d": lambda x: F.max_pool3d(x, 2),
    "average pool 3d": lambda x: F.avg_pool3d(x, 2),
    "global average 3d": lambda x: F.adaptive_avg_pool3d(x, 1),
}

UNDECOMPOSED = ("circular", "stack in front")
"""Decomposed they write into parts of an empty tensor or join along the batch, which is refused."""

Cases = dict[str, Callable[[Tensor], Any]]


def _grouped(cases: Cases, shape: tuple[int, ...], size: int = 12) -> dict[str, tuple[Cases, tuple[int, ...]]]:
    """Several in one export, which is what takes the time."""
    names = list(cases)
    groups = [names[start : start + size] for start in range(0, len(names), size)]
    return {f"{group[0]} to {group[-1]}": ({name: cases[name] for name in group}, shape) for group in groups}


GROUPS = {
    **_grouped(UNARY, PLANE),
    **_grouped(SHAPES, PLANE),
    **_grouped(REDUCTIONS, PLANE),
    **_grouped(PRODUCTS, PLANE),
    **_grouped(LINES, LINE),
    **_grouped(SPACES, SPACE),
    **_grouped({"flat": F.relu}, FLAT),
}


@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
@pytest.mark.parametrize("group", GROUPS)
def test_calls(group: str, decomposed: bool, tmp_path: Path) -> None:
    cases, shape = GROUPS[group]
    cases = {name: function for name, function in cases.items() if not (decomposed and name in UNDECOMPOSED)}
    torch.manual_seed(0)
    module = Around(list(cases.values()), shape).eval()
    network = read_back(module, tmp_path, torch.randn(2, *shape), decomposed=decomposed)
    errors = dict(zip(cases, differences(module, network, torch.randn(3, *shape)), strict=True))
    assert {name: error for name, error in errors.items() if not error <= 1e-10} == {}
    assert list(network.layers()) == ["conv"], "the same parameters used again are the same layer"
    write_onnx(network, tmp_path / "model.onnx")
    assert check_parity(network, tmp_path / "model.onnx", torch.randn(2, *shape)).passed


class Sums(nn.Module):
    """Weights that einsum sums with, in front and behind, along one dimension and two, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 1)
        self.behind = nn.Parameter(torch.randn(6, 5))
        self.front = nn.Parameter(torch.randn(4, 5, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bchw,cd->bdhw", self.conv(x), self.behind) + torch.einsum(
            "bchw,cd->bdhw", self.conv(x).relu(), self.behind
        )
        return torch.einsum("och,bchw->bow", self.front, x)


def test_einsum_with_weights_is_linear_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Sums().eval()
    network = read_back(module, tmp_path, torch.randn(2, 4, 8, 8))
    assert max(differences(module, network, torch.randn(3, 4, 8, 8))) <= 1e-10
    kinds = {name: type(layer).__name__ for name, layer in network.layers().items()}
    assert sorted(kinds.values()) == ["Conv2d", "Linear", "Linear"], "what is used twice is one layer"
    removal = random_removal(network, 0.4)
    smaller, _ = cut(network, removal)
    assert check_cut(network, removal, smaller, network.example_input(2, seed=1)).passed
    write_onnx(smaller, tmp_path / "model.onnx")
    assert check_parity(smaller, tmp_path / "model.onnx", torch.randn(2, 4, 8, 8)).passed
