"""A network of three residual blocks, the second of which changes shapes, and what it is scored with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from core.blocks.candidates import Candidates
from core.data.datasets import Dataset
from core.graph.lowering import trace
from core.graph.network import Network
from core.saliency.block_scores import Scoring
from core.training_settings import Training
from tests.core.fakes import Events, ScriptedTrainer, small_dataset

NAMES = ("one", "two", "three")
RELATIVE = 2e-5
"""Of float32: batches are summed in another order."""


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1)
        self.bn = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.projection: nn.Module = nn.Identity() if stride == 1 else nn.Conv2d(channels, out, 1, stride)

    def inside(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.bn(self.conv1(x))))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inside(x) + self.projection(x))

    def without(self, x: Tensor) -> Tensor:
        return torch.relu(self.projection(x))


class ThreeBlocks(nn.Module):
    def __init__(self, softmax: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.one, self.two, self.three = Residual(6, 6, 1), Residual(6, 8, 2), Residual(8, 8, 1)
        self.fc = nn.Linear(8, 4)
        self.end = nn.Softmax(1) if softmax else nn.Identity()

    def blocks(self) -> list[Residual]:
        return [self.one, self.two, self.three]

    def start(self, images: Tensor) -> Tensor:
        return torch.relu(self.stem(images))

    def logits(self, features: Tensor) -> Tensor:
        return self.fc(features.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.logits(self.three(self.two(self.one(self.start(images))))))


def made(softmax: bool = False) -> tuple[ThreeBlocks, Network]:
    """The module, its BatchNorms with statistics of their own, and the network of it."""
    torch.manual_seed(0)
    module = ThreeBlocks(softmax).train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, 1, 8, 8) + 1)
    module.eval()
    return module, trace(module, (1, 8, 8))


def scoring_of(
    network: Network,
    *,
    data: Dataset | None = None,
    split: str = "validation",
    batches: int | None = None,
    training: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Scoring:
    trainer = ScriptedTrainer()
    trainer.training = Training.model_validate(training or {})
    return Scoring(
        network=network,
        candidates=Candidates(network).of(network),
        data=small_dataset() if data is None else data,
        split=split,  # type: ignore[arg-type]
        batches=batches,
        trainer=trainer,
        round=0,
        seed=seed,
        emit=Events(),
    )


def images_of(data: Dataset, split: str = "validation") -> tuple[Tensor, Tensor]:
    """The whole split."""
    ((images, labels),) = data.batches(split, 10_000)  # type: ignore[arg-type]
    return images, labels


def fingerprint(network: Network) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def is_untouched(network: Network, before: Mapping[str, Tensor]) -> bool:
    """Whether weights and buffers are bit-equal, no gradient was left behind, and all parameters can be trained."""
    after = network.state_dict()
    same = before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    plain = all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    return same and plain and network.through is None and not network.training
