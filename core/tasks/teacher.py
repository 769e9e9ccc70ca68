"""The original, asked what it says to a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.graph.network import Network
from core.training.memory_format import to_channels_last


class Teacher:
    """A copy of `original` in eval mode on `device`, made when it is first asked."""

    def __init__(self, original: Network, device: torch.device) -> None:
        self._original = original
        self._device = device
        self._copy: Network | None = None

    def replace(self, original: Network) -> None:
        """From now on it is `original`, as it is now, that is asked."""
        self._original, self._copy = original.clone(), None

    @property
    def network(self) -> Network:
        if self._copy is None:
            self._copy = self._original.clone().to(self._device).eval()
            to_channels_last(self._copy)
        return self._copy

    def ask(self, answer: Callable[[Network, Tensor], tuple[Tensor, ...]], images: Tensor) -> tuple[Tensor, ...]:
        """`answer(network, images)`, without gradients; on the device of `images`, wherever the copy is."""
        with torch.no_grad():
            answers = answer(self.network, images.to(self._device))
        return tuple(each.to(images.device) for each in answers)
