"""`python -m bench.analysis`: how long it takes to find all channel groups and to make one cut of half of every width.

Billhook and Torch-Pruning 1.6.1 in one run, interleaved, both from a network that is in memory: ours a `Network`,
theirs an `nn.Module` with an example input. Neither scores anything: ours removes the first half of the units of every
group, theirs a random half (`RandomImportance`), the classifier left alone. Prints the table, keeps the raw numbers in
`docs/results/analysis.json`, writes `docs/results/analysis.md`.

Needs the models of torchvision, and Torch-Pruning: `make zoo`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from bench.zoo import import_zoo
from core.graph.cuts import cut
from core.graph.groups import channel_groups
from core.graph.importers import load
from core.graph.network import Network, grouped_cuts
from core.job import ModelInput

RESULTS = Path(__file__).parent.parent / "docs" / "results"
CHAIN_DEPTHS = (10, 20, 40, 80, 160)
HEADING = """# Finding all channel groups, and one cut of half of every width

Made by `{command}`; raw numbers in `analysis.json`. Billhook and Torch-Pruning 1.6.1, both from a
network in memory, in one run, interleaved; median (smallest–largest) seconds, median of the rounds' ratios. Neither
scores anything. *Left* is the share of the parameters that is left when half of every group goes (the classifier's
outputs stay): the less, the more can be removed. Grouped convolutions are cut inside their groups, as theirs are. """
OURS_ALONE = {"shufflenet_v2_x1_0"}
"""Where Torch-Pruning stops with an error (`ZeroDivisionError`)."""


class Block(nn.Module):
    """Two convolutions with BatchNorm and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(x + out)


class Chain(nn.Module):
    """`depth` residual blocks of one width, one behind the other."""

    def __init__(self, depth: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.blocks(self.stem(x)).mean((2, 3)))
        return out


def cases() -> dict[str, tuple[Callable[[], nn.Module], int]]:
    """Name -> (how to make the module, image size)."""
    names = (
        "resnet50", "vgg19_bn", "densenet201", "regnet_y_400mf", "regnet_x_400mf", "efficientnet_b0",
        "shufflenet_v2_x1_0",
    )  # fmt: skip
    found: dict[str, tuple[Callable[[], nn.Module], int]] = {}
    for name in names:
        found[name] = partial(_torchvision, name), 224
    for depth in CHAIN_DEPTHS:
        found[f"chain of {depth} blocks"] = partial(Chain, depth), 32
    return found


def _torchvision(name: str) -> nn.Module:
    module: nn.Module = getattr(import_zoo("torchvision").models, name)()
    return module


def as_network(module: nn.Module, size: int) -> Network:
    """The module as Billhook takes it in."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(torch.export.export(module, (torch.randn(1, 3, size, size),)), path)
        network = load(ModelInput(path=path, sha256="0" * 64, format="pt2"))
    network.grouped = grouped_cuts(network.module, "inside")
    return network


def ours(network: Network) -> tuple[float, int]:
    """(Seconds, parameters that are left.)"""
    began = time.perf_counter()
    groups = channel_groups(network)
    removal = {
        group.name: list(range(group.width // 2)) for group in groups.groups if group.cuttable and group.width > 1
    }
    smaller, _ = cut(network, removal, groups)
    return time.perf_counter() - began, sum(item.numel() for item in smaller.parameters())


def theirs(module: nn.Module, size: int) -> tuple[float, int]:
    """As `ours`, by Torch-Pruning. A fresh copy each time: it cuts in place, and its default arguments are shared."""
    import torch_pruning

    module = copy.deepcopy(module)
    example = torch.randn(1, 3, size, size)
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    began = time.perf_counter()
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example,
        importance=torch_pruning.importance.RandomImportance(),
        pruning_ratio=0.5,
        ignored_layers=[last],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        channel_groups={},
    )
    pruner.step()
    return time.perf_counter() - began, sum(item.numel() for item in module.parameters())


def measure(make: Callable[[], nn.Module], size: int, rounds: int, alone: bool, budget: float) -> dict[str, Any]:
    """Interleaved, one run of each beforehand. Past `budget` seconds no further round is begun, but there are three."""
    torch.manual_seed(0)
    module = make().eval()
    network = as_network(module, size)
    before = sum(item.numel() for item in network.parameters())
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    left: dict[str, int] = {}
    error = None
    began = time.perf_counter()
    for number in range(rounds + 1):
        if number > 3 and time.perf_counter() - began > budget:
            break
        seconds, left["ours"] = ours(network)
        if number:
            times["ours"].append(seconds)
        if error is None:
            try:
                seconds, left["theirs"] = theirs(module, size)
            except Exception as failure:  # what a peer's library raises is a result, not ours to name
                error = f"{type(failure).__name__}: {failure}"
                if not alone:
                    raise
            else:
                if number:
                    times["theirs"].append(seconds)
    return {"params": before, "left": left, "seconds": times, "error": error}


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| network | parameters | Billhook, s | Torch-Pruning, s | times faster | left: Billhook | Torch-Pruning |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        us, them = row["seconds"]["ours"], row["seconds"]["theirs"]
        ratio = f"{statistics.median(b / a for a, b in zip(us, them, strict=False)):.1f}" if them else "–"
        other = spread(them) if them else row["error"]
        kept = [f"{left / row['params']:.1%}" for left in row["left"].values()] + ["–"]
        lines.append(f"| {name} | {row['params']:,} | {spread(us)} | {other} | {ratio} | {kept[0]} | {kept[1]} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of each, after one that is thrown away")
    parser.add_argument("--budget", type=float, default=90, help="seconds per network after which three rounds do")
    parser.add_argument("--only", default="", help="networks whose name holds this")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    chosen = {name: case for name, case in cases().items() if arguments.only in name}
    if not chosen:
        parser.error(f"no network is called {arguments.only!r}; there are {', '.join(cases())}")
    rows: dict[str, dict[str, Any]] = {}
    with Progress() as progress:
        task = progress.add_task("networks", total=len(chosen))
        for name, (make, size) in chosen.items():
            progress.update(task, description=name)
            rows[name] = measure(make, size, arguments.rounds, name in OURS_ALONE, arguments.budget)
            progress.advance(task)
    print(table(rows))
    if not arguments.only:
        write(rows, f"python -m bench.analysis --rounds {arguments.rounds} --budget {arguments.budget:g}")
    return 0


def write(rows: dict[str, dict[str, Any]], command: str) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    (RESULTS / "analysis.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    (RESULTS / "analysis.md").write_text(HEADING.format(command=command) + machine + ".\n\n" + table(rows) + "\n")


if __name__ == "__main__":
    sys.exit(main())
