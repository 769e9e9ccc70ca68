"""Random scores of units: the control that every criterion has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from core.data.augment import seeded
from core.graph.groups import ChannelGroup
from core.graph.network import Network


class RandomScores:
    """Scores uniform in [0, 1), of (seed, round, the group's name and width) alone. Used as `FilterNorms` is."""

    def __init__(self, *, seed: int, round: int) -> None:
        self._seed = seed
        self._round = round

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        pass

    @contextmanager
    def recording(self, network: Network) -> Iterator[None]:
        yield

    def add(self, network: Network) -> None:
        pass

    def scores(self, group: ChannelGroup) -> list[float]:
        """Per unit of the group."""
        generator = seeded(self._seed, self._round, f"random scores of {group.name}")
        found: list[float] = torch.rand(group.width, generator=generator, dtype=torch.float64).tolist()
        return found
