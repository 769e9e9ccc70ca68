"""Small modules saved as `.pt2`, with what is needed to try them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.graph.network import Network
from core.graph.pt2_reading import read_pt2


class Around(nn.Module):
    """A convolution, then each of `functions` of what it makes."""

    def __init__(self, functions: Sequence[Callable[[Tensor], Any]], shape: tuple[int, ...]) -> None:
        super().__init__()
        kinds: dict[int, Any] = {1: nn.Linear, 2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}
        self.conv = kinds[len(shape)](shape[0], 6, *[1] * (len(shape) > 1))
        self.functions = functions

    def forward(self, x: Tensor) -> Any:
        return tuple(function(self.conv(x)) for function in self.functions)


def saved(module: nn.Module, path: Path, *inputs: Tensor, decomposed: bool = False, dynamic: Any = "batch") -> Path:
    """`module` exported for `inputs`. `dynamic`: "batch", None, or what `torch.export` takes as dynamic shapes."""
    if dynamic == "batch":
        dynamic = tuple({0: torch.export.Dim("batch", min=1, max=512)} for _ in inputs)
    with warnings.catch_warnings():  # torch's own, about torch's own
        warnings.simplefilter("ignore")
        program = torch.export.export(module, inputs, dynamic_shapes=dynamic)
        torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


def differences(module: nn.Module, network: Network, *inputs: Tensor) -> list[float]:
    """The largest relative difference of each output, in float64."""
    wide = [item.double() for item in inputs]
    with torch.no_grad():
        expected = copy.deepcopy(module).double().eval()(*wide)
        found = network.clone().to(torch.float64)(*wide)
    ours, theirs = (list(item) if isinstance(item, tuple | list) else [item] for item in (found, expected))
    assert [item.shape for item in ours] == [item.shape for item in theirs]
    return [float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in zip(ours, theirs, strict=True)]


def read_back(module: nn.Module, folder: Path, *inputs: Tensor, **options: Any) -> Network:
    return read_pt2(saved(module, folder / "model.pt2", *inputs, **options))
