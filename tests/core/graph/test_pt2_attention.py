"""Attention blocks in a `.pt2`: the batch behind the places, heads folded into it, tokens in front of the places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from core.errors import OperatorUnknown
from core.graph.groups import channel_groups
from core.graph.pt2_reading import read_pt2
from tests.core.graph.exported import differences, saved
from tests.core.graph.round_trips import cut_and_check

WIDTH, PLACES = 8, 16
Body = Callable[["Attending", Tensor], Tensor]


class Attending(nn.Module):
    """A convolution, its places as a sequence with the batch behind them, what `body` makes of that, (N, `WIDTH`)."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.stem, self.conv, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, WIDTH, 1), nn.Linear(WIDTH, 5)
        self.behind, self.front = nn.MultiheadAttention(WIDTH, 2), nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, dropout=0.0)
        self.norm, self.rms, self.linear = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH, eps=1e-5), nn.Linear(WIDTH, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.place = nn.Parameter(torch.randn(PLACES + 1, 1, WIDTH))
        self.hidden = nn.Buffer(torch.ones(PLACES, PLACES, dtype=torch.bool).triu(1))

    def maps(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.stem(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, self.maps(x).flatten(2).permute(2, 0, 1)))


def attended(net: Attending, tokens: Tensor) -> Tensor:
    return net.behind(tokens, tokens, tokens)[0].mean(0)


def layer(net: Attending, tokens: Tensor) -> Tensor:
    return net.layer(tokens).amax(0)


def pooled(net: Attending, tokens: Tensor) -> Tensor:
    """As CLIP pools: the mean asks."""
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + net.place
    return net.behind(tokens[:1], tokens, tokens, need_weights=False)[0].squeeze(0)


def class_token(net: Attending, tokens: Tensor) -> Tensor:
    tokens = torch.cat([net.token.expand(-1, tokens.shape[1], -1), tokens]) + net.place
    return net.behind(tokens, tokens, tokens, need_weights=False)[0][0]


def class_token_behind_the_batch(net: Attending, tokens: Tensor) -> Tensor:
    tokens = tokens.transpose(0, 1)
    tokens = torch.cat([net.token.expand(tokens.shape[0], -1, -1), tokens], 1)
    return net.front(tokens, tokens, tokens)[0][:, 0]


def masked(net: Attending, tokens: Tensor) -> Tensor:
    return net.norm(tokens + net.behind(tokens, tokens, tokens, attn_mask=net.hidden, need_weights=False)[0]).mean(0)


def masked_for_every_example(net: Attending, tokens: Tensor) -> Tensor:
    heads = tokens.permute(1, 0, 2).unsqueeze(1)
    seen = (~net.hidden).expand(heads.shape[0], 1, PLACES, PLACES)
    return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=seen).mean((1, 2))


def heads_in_the_batch(net: Attending, tokens: Tensor) -> Tensor:
    length, batch, width = tokens.shape
    heads = tokens.reshape(length, 2 * batch, width // 2).transpose(0, 1)
    shares = torch.bmm(heads, heads.transpose(1, 2)).softmax(-1)
    rows = torch.bmm(shares, heads).transpose(0, 1).reshape(length * batch, width)
    return net.linear(rows).view(length, batch, width).mean(0)


def windows_in_the_batch(net: Attending, tokens: Tensor) -> Tensor:
    length, batch, width = tokens.shape
    parts = tokens.permute(1, 0, 2).reshape(batch * 4, length // 4, width)
    return net.front(parts, parts, parts)[0].reshape(batch, length, width).mean(1)


def norms_and_parts(net: Attending, tokens: Tensor) -> Tensor:
    left, right = net.rms(tokens).chunk(2, -1)
    tokens = torch.cat([right, left], -1) * tokens.softmax(0) + tokens.std(0)
    first, last = tokens.unsqueeze(1).squeeze(1).roll(1, 0).split([3, PLACES - 3])
    return first.sum(0) + torch.cat([torch.full_like(last[:1], 0.5), last]).amax(0)


BODIES: list[Body] = [
    attended, layer, pooled, class_token, class_token_behind_the_batch, masked,
    heads_in_the_batch, windows_in_the_batch, norms_and_parts,
]  # fmt: skip


def read(body: Body, folder: Path, batch: int | None, **options: Any) -> tuple[Attending, Any]:
    torch.manual_seed(0)
    module = Attending(body).eval()
    dynamic = {} if batch is None else {"dynamic": None}
    return module, read_pt2(saved(module, folder / "net.pt2", torch.randn(batch or 2, 3, 4, 4), **dynamic, **options))


@pytest.mark.parametrize(
    ("body", "batch", "decomposed"),
    [
        *((body, batch, decomposed) for body in BODIES for batch, decomposed in [(None, False), (3, True)]),
        (masked_for_every_example, None, False),
    ],
)
def test_it_computes_what_the_module_computes_and_what_stands_before_it_is_cut(
    body: Body, batch: int | None, decomposed: bool, tmp_path: Path
) -> None:
    module, network = read(body, tmp_path, batch, decomposed=decomposed)
    for size in [batch] if batch else [1, 2, 5]:
        assert max(differences(module, network, torch.randn(size, 3, 4, 4))) < 1e-12
    groups = channel_groups(network)
    assert "stem" in {producer.layer for group in groups.groups if group.cuttable for producer in group.producers}
    assert cut_and_check(network, tmp_path).layers()["stem"].get_parameter("weight").shape[0] < 12


@pytest.mark.parametrize("body", [attended, heads_in_the_batch, class_token])
def test_an_export_of_one_image_is_good_for_many(body: Body, tmp_path: Path) -> None:
    module, network = read(body, tmp_path, 1)
    for size in (1, 4):
        assert max(differences(module, network, torch.randn(size, 3, 4, 4))) < 1e-12


@pytest.mark.parametrize("decomposed", [False, True])
def test_images_of_any_size(decomposed: bool, tmp_path: Path) -> None:
    open_sizes = ({0: Dim("batch", max=64), 2: Dim("h", min=2, max=64), 3: Dim("w", min=2, max=64)},)
    torch.manual_seed(0)
    module = Attending(attended).eval()
    path = saved(module, tmp_path / "net.pt2", torch.randn(2, 3, 4, 6), dynamic=open_sizes, decomposed=decomposed)
    network = read_pt2(path)
    for shape in ((1, 3, 5, 7), (3, 3, 2, 9)):
        assert max(differences(module, network, torch.randn(shape))) < 1e-12


def heads_of_a_repeated_weight(net: Attending, tokens: Tensor) -> Tensor:
    """A stack of one matrix for all heads, as large as what it meets."""
    heads = tokens.permute(1, 0, 2).unflatten(1, (4, 4))
    return torch.matmul(heads, net.linear.weight.expand(4, WIDTH, WIDTH)).mean((1, 2))


def summed_rows(net: Attending, tokens: Tensor) -> Tensor:
    """Rows of a constant as many as the batch, and not its rows."""
    return tokens.mean(0) + net.place[0].expand(3, -1).sum(0) + net.token[0].repeat(3, 1).cumsum(0)[2]


def repeated_token(net: Attending, tokens: Tensor) -> Tensor:
    return torch.cat([net.token.repeat(1, tokens.shape[1], 1), tokens]).mean(0)


def squeezed(net: Attending, tokens: Tensor) -> Tensor:
    return tokens.sum(0, keepdim=True).squeeze().tanh()


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize(
    ("body", "decomposed"),
    [
        (heads_of_a_repeated_weight, False),
        *((body, decomposed) for body in (summed_rows, repeated_token, squeezed) for decomposed in (False, True)),
    ],
)
def test_repeated_constants(body: Body, batch: int | None, decomposed: bool, tmp_path: Path) -> None:
    module, network = read(body, tmp_path, batch, decomposed=decomposed)
    for size in [batch] if batch else [2, 5]:  # sums of constants are folded in float32
        assert max(differences(module, network, torch.randn(size, 3, 4, 4))) < 1e-6


def one_row(net: Attending, tokens: Tensor) -> Tensor:
    return tokens.mean(1)


def batch_joined(net: Attending, tokens: Tensor) -> Tensor:
    return torch.cat([tokens, tokens], 1)[:, : tokens.shape[1]].mean(0)


def across_examples(net: Attending, tokens: Tensor) -> Tensor:
    return torch.bmm(tokens, tokens.transpose(1, 2)).softmax(-1).bmm(tokens).mean(0)


def softmax_over_examples(net: Attending, tokens: Tensor) -> Tensor:
    return tokens.softmax(1).mean(0)


def examples_for_places(net: Attending, tokens: Tensor) -> Tensor:
    """Attention that takes the batch for the places: the batch is in front, and the block expects it behind."""
    tokens = tokens.transpose(0, 1)
    return net.behind(tokens, tokens, tokens)[0].mean(1)


def a_row_of_its_own(net: Attending, tokens: Tensor) -> Tensor:
    return (tokens + torch.arange(3.0).view(3, 1)).mean(0)


def more_matrices(net: Attending, tokens: Tensor) -> Tensor:
    """A stack that makes three products of one."""
    return torch.matmul(tokens.permute(1, 0, 2).unsqueeze(1), net.linear.weight.expand(3, WIDTH, WIDTH)).mean((1, 2))


def weight_in_front(net: Attending, tokens: Tensor) -> Tensor:
    return (net.linear.weight[:3, :3] @ tokens).mean(0)


def squeezed_beside_the_batch(net: Attending, tokens: Tensor) -> Tensor:
    return tokens.sum(0, keepdim=True).squeeze().sum(0).expand(3, -1)


def bias_for_each_example(net: Attending, tokens: Tensor) -> Tensor:
    return torch.addmm(net.place[:3, 0, :1], tokens.mean(0), net.linear.weight)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (more_matrices, "a stack of matrices that is larger than what it meets"),
        (weight_in_front, "a product along the batch"),
        (squeezed_beside_the_batch, "a reduction over the batch"),
        (bias_for_each_example, "not one number for each output"),
        (one_row, "a reduction over the batch"),
        (batch_joined, "a concatenation along the batch"),
        (across_examples, "a product along the batch"),
        (softmax_over_examples, "a softmax over the batch"),
        (examples_for_places, "a product along the batch, which mixes the examples"),
        (a_row_of_its_own, "a constant that meets the batch"),
    ],
)
def test_what_mixes_examples_is_refused(body: Body, reason: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorUnknown) as caught:
        read(body, tmp_path, 3)
    assert reason in caught.value.message
    assert "node" in caught.value.message
