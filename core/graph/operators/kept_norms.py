"""What a norm over channels is to compute where some of them are removed: the norm over those that stay.

A mean over channels changes with each that goes, zeroed or removed. So the proof of exactness puts one of these in the
place of the uncut norm: it takes the mean over the places that stay, with the whole tensors of the uncut layer. What it
makes at removed places is not read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.graph.ids import Booleans


class KeptNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, both means over the `keeps` places of the dimensions `dims`.

    `keeps` is broadcast against x, as weight and bias are. Without `centred` nothing is subtracted (RMSNorm).
    """

    def __init__(
        self,
        keeps: Tensor,
        dims: Sequence[int],
        eps: float,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        centred: bool = True,
    ) -> None:
        super().__init__()
        self.keeps, self.dims, self.eps, self.centred = keeps, tuple(dims), eps, centred
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        keeps = self.keeps.to(x.device, x.dtype).expand_as(x)
        count = keeps.sum(self.dims, keepdim=True)
        if self.centred:
            x = x - (x * keeps).sum(self.dims, keepdim=True) / count
        variance = (x * x * keeps).sum(self.dims, keepdim=True) / count
        x = x / torch.sqrt(variance + self.eps)
        x = x if self.weight is None else x * self.weight
        return x if self.bias is None else x + self.bias


def along(keeps: Sequence[Booleans | None], sizes: Sequence[int]) -> Tensor:
    """The places that stay of a box of `sizes`, from what stays along each dimension (None: all)."""
    box = torch.ones(*sizes, dtype=torch.bool)
    for dim, kept in enumerate(keeps):
        if kept is not None:
            view = [1] * len(sizes)
            view[dim] = sizes[dim]
            box = box & torch.from_numpy(kept).reshape(view)
    return box
