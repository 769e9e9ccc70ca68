"""`python -m bench.fashion_mnist`: ResNet-20 on Fashion-MNIST by `recipes/train_from_scratch.yaml`.

`make data` first. All 60,000 training images (10 % of them are the validation split) on a GPU; on a CPU 10,000, drawn
by a fixed seed, so labelled. Accuracy is that of the exported ONNX file on the 10,000 test images. Keeps every epoch in
`docs/results/fashion-mnist.json`, writes `docs/results/fashion-mnist.md`. Wanted: at least 93.5 % with all images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from core.graph.architectures import build
from core.graph.export import write_onnx
from core.job import DatasetInput, DatasetOptions, JobInputs, ModelInput, Preprocess
from core.pipeline import run
from core.recipe import load_recipe
from core.report import Report

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
DATA = ROOT / "data" / "fashion-mnist.npz"
RECIPE = ROOT / "recipes" / "train_from_scratch.yaml"
CPU_IMAGES = 10_000
HEADING = """# Fashion-MNIST from random weights

Made by `{command}`: ResNet-20 (16-32-64) by `recipes/train_from_scratch.yaml` on {images:,} of the 60,000 training
images (a tenth of them for validation){label}; every epoch is in `fashion-mnist.json`. {machine}.

"""


def dataset(folder: Path, images: int) -> Path:
    """Fashion-MNIST with that many of its training images, drawn by a fixed seed."""
    if not DATA.exists():
        raise SystemExit("data/fashion-mnist.npz is missing: `make data` writes it")
    with np.load(DATA) as arrays:
        whole = {name: arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    chosen = np.sort(np.random.default_rng(0).permutation(len(whole["x_train"]))[:images])
    whole |= {name: whole[name][chosen] for name in ("x_train", "y_train")}
    path = folder / "data.npz"
    np.savez(path, **whole)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train(images: int, device: str, epochs: int | None) -> tuple[Report, list[dict[str, Any]]]:
    recipe = load_recipe(RECIPE.read_text())
    if epochs is not None:
        recipe = recipe.model_copy(update={"steps": (recipe.steps[0].model_copy(update={"epochs": epochs}),)})
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary, Progress() as bar:
        folder = Path(temporary)
        task = bar.add_task("job", total=1.0)

        def emit(name: str, /, **body: Any) -> None:
            if "/epoch/" in name:
                records.append(body)
                told = f"epoch {body['epoch']}, validation {body['validation_accuracy']:.2%}"
                bar.update(task, description=told)
            elif name == "progress":
                bar.update(task, completed=body["fraction"])

        network = build("resnet20", num_classes=10, in_channels=1, image_size=(28, 28)).eval()
        write_onnx(network, folder / "resnet20.onnx", opset=20)
        data = dataset(folder, images)
        options = DatasetOptions(preprocess=Preprocess(mean=(0.286,), std=(0.353,)))
        inputs = JobInputs(
            model=ModelInput(path=folder / "resnet20.onnx", sha256=sha256(folder / "resnet20.onnx"), format="onnx"),
            datasets=(DatasetInput(path=data, sha256=sha256(data), format="npz", options=options),),
            recipe=recipe,
            device=device,
        )
        return run(inputs, folder / "work", emit), records


def table(report: Report, records: list[dict[str, Any]]) -> str:
    trained, seconds = report.variants["pruned"], report.cost.seconds
    lines = [
        "| | |",
        "|---|---|",
        f"| test accuracy (10,000 images, ONNX Runtime) | {trained.test.accuracy:.2%} |",
        f"| validation accuracy, best epoch | {trained.validation.accuracy:.2%} ({report.cost.epochs_kept}) |",
        f"| training accuracy ({trained.train.images:,} images, not augmented) | {trained.train.accuracy:.2%} |",
        f"| epochs | {report.cost.epochs} |",
        f"| seconds | {seconds:,.0f} ({report.cost.images / seconds:,.0f} images/s, validation included) |",
        "",
        "| epoch | rate | loss | training accuracy, augmented | validation accuracy |",
        "|---|---|---|---|---|",
    ]
    for record in records:
        if record["epoch"] % 5 == 0 or record["epoch"] == 1:
            lines.append(
                f"| {record['epoch']} | {record['lr']:.4f} | {record['loss']:.4f} | {record['train_accuracy']:.2%} | "
                f"{record['validation_accuracy']:.2%} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000 if on_gpu else CPU_IMAGES)
    parser.add_argument("--epochs", type=int, default=None, help="in place of the recipe's")
    arguments = parser.parse_args()
    device = "cuda:0" if on_gpu else "cpu"
    report, records = train(arguments.images, device, arguments.epochs)
    text = table(report, records)
    print(text)
    chip = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    machine = f"{chip}, {os.cpu_count()} cores, torch {torch.__version__}"
    command = f"python -m bench.fashion_mnist --images {arguments.images}"
    command += f" --epochs {arguments.epochs}" if arguments.epochs is not None else ""
    label = "" if arguments.images == 60_000 else ": **not all of them, to be done on a CPU**"
    RESULTS.joinpath("fashion-mnist.json").write_text(
        json.dumps({"machine": machine, "epochs": records}, indent=1) + "\n"
    )
    heading = HEADING.format(command=command, images=arguments.images, label=label, machine=machine)
    RESULTS.joinpath("fashion-mnist.md").write_text(heading + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
