"""`python -m bench.oracle`: the oracle saliency against the naive way, one smaller network after the other.

ResNet-56 and ResNet-110 (16-32-64, 32×32) with random weights and settled BatchNorm, every block a candidate. Fast:
`core.saliency.block_oracle`, planning and all. Naive: each network without a block, made beforehand, is evaluated in
batches of the same size. The two take turns; the ratio is that of each pair. *Limit*: the ratio of the seconds that the
operators alone take which each way has to run, timed one by one. *Held*: the most bytes of activations at once.
Prints the table, keeps the raw numbers in `docs/results/oracle.json`, writes `docs/results/oracle.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress as Bar
from torch import Tensor, fx

from bench.live_bytes import LiveBytes
from core.blocks.candidates import Candidate, Candidates
from core.data.datasets import Dataset, Split
from core.data.source import SplitName
from core.graph.architectures.cifar_resnet import CifarResNet
from core.graph.bypass import without_blocks
from core.graph.counts import count
from core.graph.ids import operator_name
from core.graph.lowering import trace
from core.graph.network import Network
from core.graph.shared_runs import SharedRuns, without
from core.job import Preprocess
from core.progress import Progress
from core.saliency.block_oracle import MIB, batch_that_fits, oracle
from core.saliency.block_scores import Scoring
from core.tasks.task import Gathering, Task
from core.training.memory_format import images_channels_last, to_channels_last
from core.training.port import Score
from core.training.trainer import Trainer
from core.training_settings import Training

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
GOALS = {56: 0.60, 110: 0.55}
CLASSES = 10
CACHE_MIB = 256
HEADING = """# The oracle, fast and naive

Made by `{command}`; raw numbers in `oracle.json`. ResNets (16-32-64) on {images} random images of 32×32, random weights
with settled BatchNorm, every block a candidate, `cache_mib: {cache}`. *Naive*: one network without a block after the
other, made beforehand, evaluated in batches of the same size. *Time*: fast over naive, of {rounds} pairs that took
turns; median (smallest–largest). *Limit*: the same of the operators alone, timed one by one; *of it*: the
four kinds that take the most of the fast way's; *rest*: what it takes besides. *Held*: of activations at once, at most,
images included. {machine}.

"""


def silent(name: str, /, **body: Any) -> None:
    pass


def naive(
    network: Network, candidates: Sequence[Candidate], data: Dataset, split: SplitName, size: int, task: Task
) -> dict[str, Score]:
    """Each candidate's network after the other, in batches of `size`."""
    return {each.name: evaluated(smaller(network, each), data, split, size, task) for each in candidates}


def smaller(network: Network, candidate: Candidate) -> Network:
    """Without all blocks of the candidate."""
    made = without_blocks(network, [block.name for block in candidate.blocks]).eval()
    to_channels_last(made)
    return made


def evaluated(network: Network, data: Dataset, split: SplitName, size: int, task: Task) -> Score:
    """As `Trainer.evaluate`, in batches of `size`."""
    found = Gathering(len(data.splits[split]))
    with torch.inference_mode():
        for images, labels in data.batches(split, size, device=next(network.parameters()).device):
            images = images_channels_last(images, data.options.layout)
            found.add(task.figures(task.outputs(network, images), task.wanted(images, labels)))
    return task.score(found.figures())


# --- what is measured on ----------------------------------------------------------------------------------------------


def random_images(images: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = Split(x, torch.arange(images) % CLASSES, given=True, index_sha256="")
    options = Preprocess(mean=(0.5,) * 3, std=(0.3,) * 3)
    return Dataset(
        splits=dict.fromkeys(("train", "validation", "test"), split), options=options, channels="RGB",
        classes=tuple(map(str, range(CLASSES))), details={}, warnings=(),
    )  # fmt: skip


def settled(depth: int, device: torch.device) -> Network:
    """BatchNorm statistics are those of twenty random batches, so that activations have a scale."""
    torch.manual_seed(0)
    network = trace(CifarResNet(depth, num_classes=CLASSES), (3, 32, 32)).to(device).train()
    with torch.no_grad():
        for seed in range(20):
            network(network.example_input(32, seed).to(device))
    return network.eval()


# --- what is measured -------------------------------------------------------------------------------------------------


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    found = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, found


class Timed(fx.Interpreter):
    """The least seconds of each operator in any run: what else the machine did is left out."""

    def __init__(self, module: fx.GraphModule, device: torch.device) -> None:
        super().__init__(module)
        self.seconds: defaultdict[str, float] = defaultdict(lambda: math.inf)
        self._device = device

    def run_node(self, n: fx.Node) -> Any:
        seconds, value = timed(lambda: super(Timed, self).run_node(n), self._device)
        self.seconds[n.name] = min(seconds, self.seconds[n.name])
        return value


def held_bytes(runs: SharedRuns, images: Tensor) -> int:
    """The most of activations at once, `images` (B, C, H, W) included."""
    with torch.inference_mode(), LiveBytes() as live:
        deque(runs(images), maxlen=0)
    held: int = live.most + images.nbytes
    return held


def limit(
    network: Network, candidates: Sequence[Candidate], size: int, device: torch.device
) -> tuple[float, float, dict[str, float]]:
    """Seconds that the operators of the fast and of the naive way take for a batch of `size`: each operator's, times
    how often that way runs it; and shares of the fast way's, by kind of operator."""
    images = images_channels_last(network.example_input(size).to(device), "NCHW")
    timing = Timed(network.module, device)
    with torch.inference_mode():
        timing.run(images)
        timing.seconds.clear()
        for _ in range(5):
            timing.run(images)
    variants = {each.name: without(network, each.blocks) for each in candidates}
    often: list[Counter[str]] = [SharedRuns(network.module, variants).often(), Counter()]
    for each in candidates:
        alone = {each.name: variants[each.name]}
        often[1].update(SharedRuns(network.module, alone).often())
    fast, slow = (sum(timing.seconds[name] * times for name, times in found.items()) for found in often)
    kinds: defaultdict[str, float] = defaultdict(float)
    for node in network.module.graph.nodes:
        kinds[operator_name(network.module, node)] += timing.seconds[node.name] * often[0][node.name] / fast
    return fast, slow, dict(sorted(kinds.items(), key=lambda item: -item[1]))


def measure(depth: int, data: Dataset, rounds: int, cache: int, device: torch.device, bar: Bar) -> dict[str, Any]:
    network = settled(depth, device)
    to_channels_last(network)
    candidates = Candidates(network).of(network)
    trainer = Trainer(data, training=Training(), device=device, seed=0, original_macs=count(network).macs, emit=silent,
                      progress=Progress(silent))  # fmt: skip
    scoring = Scoring(network=network, candidates=candidates, data=data, split="validation", trainer=trainer, round=0,
                      seed=0, emit=silent, cache_mib=cache)  # fmt: skip
    variants = {each.name: without(network, each.blocks) for each in candidates}
    sharing, size = batch_that_fits(network, variants, cache * MIB, step=0)
    images = len(data.splits["validation"])
    size = min(size, images)
    built, networks = timed(lambda: {each.name: smaller(network, each) for each in candidates}, device)

    def slow() -> dict[str, Score]:
        return {name: evaluated(made, data, "validation", size, trainer.task) for name, made in networks.items()}

    pairs = []
    task = bar.add_task(f"ResNet-{depth}", total=rounds + 1)
    for round in range(rounds + 1):
        ways: list[Callable[[], Any]] = [lambda: oracle(scoring), slow]
        found = [timed(way, device) for way in (ways if round % 2 else ways[::-1])]
        (fast_s, scores), (slow_s, expected) = found if round % 2 else found[::-1]
        if scores != {name: 1 - score.accuracy for name, score in expected.items()}:
            raise SystemExit(f"ResNet-{depth}: the scores differ")
        if round:  # the first warms up
            pairs.append((fast_s, slow_s))
        bar.advance(task)
    batches = data.batch_count("validation", size)
    least, most, shares = limit(network, candidates, -(-images // batches), device)
    example = images_channels_last(network.example_input(size).to(device), "NCHW")
    held = held_bytes(SharedRuns(network.module, variants, sharing), example)
    if held > cache * MIB:
        raise SystemExit(f"ResNet-{depth}: {held / MIB:.0f} MiB are held, and {cache} may be")
    fast_s = statistics.median(pair[0] for pair in pairs)
    return {
        "depth": depth, "candidates": len(candidates), "batch": size, "sharing": sharing, "pairs_seconds": pairs,
        "naive_building_seconds": built, "limit_fast_seconds": least * batches, "limit_naive_seconds": most * batches,
        "ratio": statistics.median(fast / slow for fast, slow in pairs),
        "ratio_least": min(fast / slow for fast, slow in pairs),
        "ratio_most": max(fast / slow for fast, slow in pairs), "limit": least / most,
        "besides": 1 - least * batches / fast_s, "shares": shares, "goal": GOALS.get(depth), "held_mib": held / MIB,
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    heads = ["network", "blocks", "batch", "time", "goal", "limit", "of it", "rest", "held, MiB", "equal scores"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        reached = "met" if row["goal"] is not None and row["ratio"] <= row["goal"] else "missed"
        cells = [
            f"ResNet-{row['depth']}", row["candidates"], row["batch"],
            f"{row['ratio']:.3f} ({row['ratio_least']:.3f}–{row['ratio_most']:.3f})",
            "–" if row["goal"] is None else f"≤ {row['goal']:.2f}, {reached}", f"{row['limit']:.3f}",
            ", ".join(f"{kind} {share:.0%}" for kind, share in list(row["shares"].items())[:4]),
            f"{row['besides']:.0%}", f"{row['held_mib']:.0f}", "yes",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depths", type=int, nargs="+", default=[56, 110])
    parser.add_argument("--cache-mib", type=int, default=CACHE_MIB)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as many as it takes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    data = random_images(arguments.images)
    with Bar() as bar:
        rows = [measure(depth, data, arguments.rounds, arguments.cache_mib, device, bar) for depth in arguments.depths]
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} thread(s)"
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {where}, torch {torch.__version__}"
    )
    heading = HEADING.format(
        command="python -m bench.oracle " + " ".join(sys.argv[1:]), images=arguments.images, cache=arguments.cache_mib,
        rounds=arguments.rounds, machine=machine,
    )  # fmt: skip
    print(table(rows))
    (arguments.results / "oracle.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    (arguments.results / "oracle.md").write_text(heading + table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
