"""`python -m bench.training`: the training loop against its own limit, and against the plain recipe.

On Fashion-MNIST (`make data`), ResNet-20 (or `--architecture`), batches of 128, interleaved, ratios of pairs:

- *limit*: the same network, optimizer and memory layout on one batch that lies ready on the device;
- *ours*: `Trainer.fit`, one epoch: order, crops and flips, preprocessing, schedule, accounts, the look at every loss;
- *plain*: `torch.utils.data.DataLoader` with two workers and PIL crops and flips, the same network and optimizer.

And how much memory a dataset takes that is held in memory, in a fresh process. Prints the tables, keeps the raw numbers
in `docs/results/training.json`, writes `docs/results/training.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.progress import Progress as Bar
from torch import Tensor
from torch.nn import functional

from core.data.datasets import Dataset, Split, load_dataset
from core.graph.architectures import build
from core.graph.network import Network
from core.job import DatasetInput, DatasetOptions, Preprocess
from core.progress import Progress
from core.state import State
from core.training.memory_format import images_channels_last, to_channels_last
from core.training.optimizers import build_optimizer
from core.training.trainer import Trainer
from core.training_settings import Augmentation, Sgd, Training

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
DATA = ROOT / "data" / "fashion-mnist.npz"
BATCH = 128
PREPROCESS = Preprocess(mean=(0.286,), std=(0.353,))
TRAINING = Training(optimizer=Sgd(lr=0.05), batch_size=BATCH, augment=Augmentation(crop=True, flip=True))
PAD = 3  # what `core.data.augment.crop_padding` gives for 28 pixels
HEADING = """# The training loop

Made by `{command}`; raw numbers in `training.json`. {network} on Fashion-MNIST, batches of {batch}, {images:,} images
a turn, interleaved, {rounds} rounds after one that is thrown away; median (smallest–largest). *limit*: the same network
on one batch that lies ready. *ours*: the whole loop of `Trainer.fit`, random crops and flips included. *plain*: torch's
DataLoader with two workers and PIL crops and flips. Ratios are medians of the rounds' ratios. {machine}.

"""


def loaded() -> Dataset:
    if not DATA.exists():
        raise SystemExit("data/fashion-mnist.npz is missing: `make data` writes it")
    options = DatasetOptions(preprocess=PREPROCESS)
    return load_dataset(DatasetInput(path=DATA, sha256=None, format="npz", options=options))


def part(dataset: Dataset, images: int) -> Dataset:
    """`images` of the training split, and so few others that scoring them takes no time."""
    whole = dataset.splits["train"]
    few = Split(whole.x[-BATCH:], whole.y[-BATCH:], given=True, index_sha256="")
    train = Split(whole.x[:images], whole.y[:images], given=True, index_sha256="")
    return Dataset(
        splits={"train": train, "validation": few, "test": few}, classes=dataset.classes, options=dataset.options,
        channels=dataset.channels, details={}, warnings=(),
    )  # fmt: skip


def fresh(architecture: str, device: torch.device) -> Network:
    torch.manual_seed(0)
    return build(architecture, num_classes=10, in_channels=1, image_size=(28, 28)).to(device).train()


def silent(name: str, /, **body: Any) -> None:
    pass


# --- the three of them, each: seconds for its images -----------------------------------------------------------------


def step(network: Network, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def limit(data: Dataset, architecture: str, device: torch.device) -> float:
    network = fresh(architecture, device)
    to_channels_last(network)
    optimizer = build_optimizer(TRAINING.optimizer, network.parameters())
    images, labels = next(iter(data.batches("train", BATCH, device=device)))
    images = images_channels_last(images, "NCHW")
    steps = data.batch_count("train", BATCH)

    def epoch() -> None:
        for _ in range(steps):
            step(network, optimizer, images, labels)

    return timed(epoch, device)


def ours(data: Dataset, architecture: str, device: torch.device) -> float:
    network = fresh(architecture, device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(data, training=TRAINING, device=device, seed=0, original_macs=1, emit=silent,
                          progress=Progress(silent))  # fmt: skip
        state = State.open(Path(folder), fingerprint={}, emit=silent)
        return timed(
            lambda: trainer.fit(network, training=TRAINING, epochs=1, label="train", state=state, restore_best=False),
            device,
        )


class Plain(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """One image at a time, by PIL, as most training scripts do it."""

    def __init__(self, split: Split) -> None:
        self.images = [Image.fromarray(image) for image in split.x[:, 0].numpy()]
        self.labels = split.y.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = ImageOps.expand(self.images[index], PAD)
        left, top = random.randint(0, 2 * PAD), random.randint(0, 2 * PAD)
        image = image.crop((left, top, left + 28, top + 28))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
        return ((pixels - PREPROCESS.mean[0]) / PREPROCESS.std[0])[None], self.labels[index]


def plain(data: Dataset, architecture: str, device: torch.device) -> float:
    network = fresh(architecture, device)
    optimizer = build_optimizer(TRAINING.optimizer, network.parameters())
    loader = torch.utils.data.DataLoader(Plain(data.splits["train"]), batch_size=BATCH, shuffle=True, num_workers=2)

    def epoch() -> None:
        for images, labels in loader:
            step(network, optimizer, images.to(device), labels.to(device))

    return timed(epoch, device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


KINDS: dict[str, Callable[[Dataset, str, torch.device], float]] = {"limit": limit, "ours": ours, "plain": plain}


def measure(architecture: str, images: int, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each kind, round by round; the order changes from round to round."""
    data = part(loaded(), images)
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    with Bar() as bar:
        task = bar.add_task("rounds", total=(rounds + 1) * len(KINDS))
        for number in range(rounds + 1):
            for name in _turned(list(KINDS), number):
                found = KINDS[name](data, architecture, device)
                if number:
                    seconds[name].append(found)
                bar.advance(task)
    return seconds


def _turned(names: list[str], number: int) -> Iterator[str]:
    first = number % len(names)
    yield from names[first:] + names[:first]


# --- memory ----------------------------------------------------------------------------------------------------------


_MEMORY = """
import psutil
from bench.training import loaded
from core.data.datasets import load_dataset
from core.job import DatasetInput
load_dataset(DatasetInput(path=None, sha256=None, format="digits"))  # what is imported late
before = psutil.Process().memory_info().rss
dataset = loaded()
after = psutil.Process().memory_info().rss
print(before, after, sum(split.x.numel() for split in dataset.splits.values()))
"""


def memory() -> dict[str, float]:
    """Resident bytes that the whole dataset adds to a fresh process, and its uint8 bytes."""
    found = []
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", _MEMORY], cwd=ROOT, check=True, capture_output=True, text=True)
        before, after, pixels = map(int, out.stdout.split())
        found.append(after - before)
    return {"resident_bytes": statistics.median(found), "uint8_bytes": pixels}


# --- telling ---------------------------------------------------------------------------------------------------------


def spread(values: list[float], form: str = ",.0f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def table(seconds: dict[str, list[float]], images: int, held: dict[str, float]) -> str:
    rates = {name: [images / value for value in values] for name, values in seconds.items()}
    lines = ["| | images/s | ours / it |", "|---|---|---|"]
    for name, values in rates.items():
        ratios = [mine / other for mine, other in zip(rates["ours"], values, strict=True)]
        lines.append(f"| {name} | {spread(values)} | {spread(ratios, '.3f') if name != 'ours' else '–'} |")
    resident, pixels = (held[name] / 2**20 for name in ("resident_bytes", "uint8_bytes"))
    wanted = "Wanted: ours / limit at least 0.95 on a CPU, 0.90 on a GPU; ours / plain above 1."
    memory = (
        f"Memory of the dataset (70,000 images): {resident:.1f} MiB resident for {pixels:.1f} MiB of uint8 pixels, "
        f"× {resident / pixels:.3f} (median of three processes; wanted: at most 1.1)."
    )
    return "\n".join([*lines, "", wanted, "", memory, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="resnet20")
    parser.add_argument("--images", type=int, default=16 * BATCH, help="a turn")
    parser.add_argument("--rounds", type=int, default=15, help="after one that is thrown away")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    seconds = measure(arguments.architecture, arguments.images, arguments.rounds, device)
    held = memory()
    text = table(seconds, arguments.images, held)
    print(text)
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    machine = f"{chip}, {os.cpu_count()} cores, torch {torch.__version__}"
    raw = {"machine": machine, "arguments": vars(arguments), "seconds": seconds, "memory": held}
    (RESULTS / "training.json").write_text(json.dumps(raw, indent=1) + "\n")
    command = f"python -m bench.training --images {arguments.images} --rounds {arguments.rounds}"
    heading = HEADING.format(command=command, network=arguments.architecture, batch=BATCH, images=arguments.images,
                             rounds=arguments.rounds, machine=machine)  # fmt: skip
    (RESULTS / "training.md").write_text(heading + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
