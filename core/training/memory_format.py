"""One memory layout for training and evaluation: channels last.

Measured on CPU (oneDNN, AVX-512, 1 and 2 threads, ResNet-like networks of widths 8-24-48 to 64-128-256 on 8×8 and 32×32
images): evaluation takes 0.67 to 0.92 of the contiguous time, a training step mostly 0.72 to 0.95; but training the
narrowest (8-24-48) on 32×32 with 2 threads was slower than contiguous. On GPUs it is the layout that tensor cores want.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.graph.network import Network


def to_channels_last(network: Network) -> None:
    """Rewrites every parameter and buffer of `network` in place: rank 4 as channels last, all others contiguous.

    Always a fresh copy: of a tensor with a dimension of 1, `Tensor.to` keeps whatever strides it has, and strides
    choose kernels, so that a network read from a checkpoint could differ in the last bit from one that was trained on.
    """
    with torch.no_grad():
        for tensor in [*network.module.parameters(), *network.module.buffers()]:
            if tensor.dim() == 4:
                fresh = torch.empty(
                    tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=torch.channels_last
                )
                tensor.data = fresh.copy_(tensor)
            else:
                tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)


def images_channels_last(images: Tensor, layout: str) -> Tensor:
    """Model input (B, C, H, W) as channels last. An NHWC input already is, once the model transposes it."""
    return images.contiguous(memory_format=torch.channels_last) if layout == "NCHW" and images.dim() == 4 else images
