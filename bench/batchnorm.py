"""`python -m bench.batchnorm`: a network whose BatchNorm an exporter folded, pruned without it and with it inserted.

ResNet-20 on the digits with every BatchNorm folded. The same filters (the least 2-norms of the weights, a share of
every group) are cut from it as it is (`batchnorm: keep`) and with BatchNorms inserted from measured statistics
(`insert`). Test accuracy right after the cut, after measuring the statistics again (recalibration alone, no training),
and after the same fine-tuning: of several learning rates the one that is best on validation, over several seeds. Prints
the table, keeps the raw numbers in `docs/results/batchnorm.json`, writes `docs/results/batchnorm.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress as Bar

from core.data.datasets import Dataset, load_dataset
from core.data.fit import check_fits
from core.errors import TrainingDiverged
from core.graph.batch_norm import insert
from core.graph.batch_norm_folding import fold
from core.graph.counts import count
from core.graph.cuts import cut
from core.graph.importers import load
from core.graph.network import Network
from core.job import DatasetInput, ModelInput
from core.progress import Progress
from core.rounds import filter_groups
from core.saliency.filter_norms import FilterNorms
from core.state import State
from core.training.trainer import Trainer
from core.training_settings import Augmentation, Sgd, Training

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
MODEL = ROOT / "examples" / "digits_resnet20.onnx"
RATES = (0.1, 0.03, 0.01)
HEADING = """# BatchNorm: kept folded, or inserted again

Made by `{command}`; raw numbers in `batchnorm.json`. ResNet-20 on the digits, every BatchNorm folded as exporters do
it: {accuracy:.2%} on test ({images} images: one is {image:.2f} points). The same filters are cut from it as it is
(`keep`) and with BatchNorms inserted from measured statistics (`insert`). *Recalibrated*: statistics measured again,
nothing trained. *Fine-tuned*: {epochs} epochs, of the rates {rates} the one best on validation for each; mean ±
standard deviation of {seeds} seeds. *Diverged*: rates at which a loss was not a number. {machine}.

"""


def silent(name: str, /, **body: Any) -> None:
    pass


def removal(network: Network, share: float) -> dict[str, list[int]]:
    """That share of every group of filters, those of the least norms."""
    groups = filter_groups(network)
    layers = dict.fromkeys(producer.layer for group in groups for producer in group.producers)
    norms = FilterNorms(layers, signal="weights", normalize="none")
    norms.add(network)
    chosen = {}
    for group in groups:
        scores = norms.scores(group)
        order = sorted(range(group.width), key=scores.__getitem__)
        chosen[group.name] = sorted(order[: int(share * group.width)])
    return {name: units for name, units in chosen.items() if units}


def trainer_of(data: Dataset, training: Training, seed: int) -> Trainer:
    return Trainer(data, training=training, device=torch.device("cpu"), seed=seed, original_macs=1, emit=silent,
                   progress=Progress(silent))  # fmt: skip


def fine_tuned(network: Network, data: Dataset, rate: float, seed: int, epochs: int) -> tuple[float, float]:
    """(validation, test) accuracy; -1 where the training diverges."""
    training = Training(optimizer=Sgd(lr=rate), batch_size=64, augment=Augmentation(crop=True))
    trainer, network = trainer_of(data, training, seed), network.clone()
    with tempfile.TemporaryDirectory() as folder:
        state = State.open(Path(folder), fingerprint={}, emit=silent)
        try:
            trainer.fit(network, training=training, epochs=epochs, label="fine_tune", state=state)
        except TrainingDiverged:
            return -1.0, -1.0
    return trainer.evaluate(network, "validation").accuracy, trainer.evaluate(network, "test").accuracy


def measure(share: float, epochs: int, seeds: int, bar: Bar, task: Any) -> dict[str, Any]:
    network = fold(load(ModelInput(path=MODEL, sha256="0" * 64, format="onnx")))[0]
    data = check_fits(load_dataset(DatasetInput(path=None, sha256=None, format="digits")), network.inputs,
                      network.outputs)  # fmt: skip
    trainer = trainer_of(data, Training(), 0)
    with_norms, _ = insert(network, trainer.sample(network, label="insert"))
    gone = removal(network, share)
    found: dict[str, Any] = {"original": trainer.evaluate(network, "test").accuracy, "images": 0, "kinds": {}}
    found["images"] = len(data.splits["test"])
    for kind, start in (("keep", network), ("insert", with_norms)):
        smaller, _ = cut(start, gone)
        row: dict[str, Any] = {"cut": trainer.evaluate(smaller, "test").accuracy, "recalibrated": None, "rates": {}}
        if kind == "insert":
            trainer.recalibrate(smaller, label="recalibrate")
            row["recalibrated"] = trainer.evaluate(smaller, "test").accuracy
        for rate in RATES:
            row["rates"][str(rate)] = []
            for seed in range(seeds):
                row["rates"][str(rate)].append(fine_tuned(smaller, data, rate, seed, epochs))
                bar.advance(task)
        found["params_left"] = count(smaller).params / count(start).params if kind == "keep" else found["params_left"]
        found["kinds"][kind] = row
    return found


def best(row: dict[str, Any]) -> tuple[str, list[float]]:
    """The rate with the best mean accuracy on validation, and its accuracies on test."""
    rate = max(row["rates"], key=lambda name: statistics.fmean(pair[0] for pair in row["rates"][name]))
    return rate, [pair[1] for pair in row["rates"][rate]]


def table(rows: dict[float, dict[str, Any]]) -> str:
    heads = ["filters cut", "parameters left", "BatchNorm", "after the cut", "recalibrated", "fine-tuned", "at rate",
             "diverged"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for share, found in rows.items():
        for kind, row in found["kinds"].items():
            rate, accuracies = best(row)
            again = "–" if row["recalibrated"] is None else f"{row['recalibrated']:.2%}"
            spread = f"{statistics.fmean(accuracies):.2%} ± {100 * statistics.stdev(accuracies):.2f}"
            lost = ", ".join(name for name, pairs in row["rates"].items() if min(pairs)[0] < 0) or "–"
            cells = [
                f"{share:.0%}",
                f"{found['params_left']:.0%}",
                kind,
                f"{row['cut']:.2%}",
                again,
                spread,
                rate,
                lost,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5])
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # images of 8×8: a second thread mostly waits
    with Bar() as bar:
        task = bar.add_task("trainings", total=len(arguments.shares) * 2 * len(RATES) * arguments.seeds)
        rows = {share: measure(share, arguments.epochs, arguments.seeds, bar, task) for share in arguments.shares}
    first = next(iter(rows.values()))
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    heading = HEADING.format(
        command=f"python -m bench.batchnorm --epochs {arguments.epochs} --seeds {arguments.seeds}",
        accuracy=first["original"], images=first["images"], image=100 / first["images"], epochs=arguments.epochs,
        rates=", ".join(map(str, RATES)), seeds=arguments.seeds, machine=machine,
    )  # fmt: skip
    print(table(rows))
    (RESULTS / "batchnorm.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    (RESULTS / "batchnorm.md").write_text(heading + table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
