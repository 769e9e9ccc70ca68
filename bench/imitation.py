"""`python -m bench.imitation`: the detector of rapidocr pruned without labels, beside random removal.

PP-OCRv6's text detector, as the package rapidocr (zoo.txt) brings it, is pruned to say what it says itself about images
of text that Pillow draws: a zip of PNGs in no folder, without labels. The job is a whole one, with the control
`random`: the same widths, units chosen by chance, trained alike. Prints the table, keeps the raw numbers in
`docs/results/imitation.json`, writes `docs/results/imitation.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import os
import platform
import random
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.progress import Progress as Bar

from core import pipeline
from core.job import DatasetInput, DatasetOptions, JobInputs, ModelInput, Preprocess
from core.recipe import parse_recipe
from core.report import Report

RESULTS = Path(__file__).parent.parent / "docs" / "results"
DETECTOR = "models/PP-OCRv6_det_small.onnx"
SIZE = (64, 192)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:-/%"
HEADING = """# A text detector without labels

Made by `{command}`. PP-OCRv6's detector (rapidocr 3.10.0), {params:,} parameters; {train} images of
text for training, {validation} for validation, {test} for the test, {height}×{width}, drawn by Pillow: a flat folder
without labels. The steps remove filters until {target:.0%} of the MACs are left; `random` has the same widths, its
units chosen by chance, and the same training. The relative error is √(Σ(y − t)² / Σt²) of what the file says, y, and
what the original says, t, over all test images, in ONNX Runtime. {machine}; {minutes:.0f} minutes.

"""


def text_image(draws: random.Random) -> bytes:
    """One to three lines of letters in any size and place, in two colours, as PNG."""
    height, width = SIZE
    paper, ink = (tuple(draws.randrange(256) for _ in range(3)) for _ in range(2))
    image = Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(image)
    for _ in range(draws.randint(1, 3)):
        words = " ".join("".join(draws.choices(LETTERS, k=draws.randint(2, 8))) for _ in range(draws.randint(1, 3)))
        place = (draws.randint(-4, width // 2), draws.randint(-2, height - 12))
        pen.text(place, words, fill=ink, font=ImageFont.load_default(draws.randint(9, 26)))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def dataset(path: Path, images: int) -> DatasetInput:
    draws = random.Random(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(images):
            archive.writestr(f"{number:05}.png", text_image(draws))
    options = DatasetOptions(preprocess=Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return DatasetInput(path=path, sha256=sha256, format="image_folder", options=options)


def detector() -> ModelInput:
    found = importlib.util.find_spec("rapidocr")
    if found is None or found.origin is None:
        raise SystemExit("rapidocr is not installed: pip install --no-deps -r zoo.txt")
    path = Path(found.origin).parent / DETECTOR
    return ModelInput(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), format="onnx")


def job(workdir: Path, images: int, target: float, epochs: int) -> Report:
    recipe = parse_recipe(
        {
            "task": "imitation",
            "training": {"optimizer": {"name": "adamw", "lr": 5e-4}, "batch_size": 16},
            "steps": [
                {"method": "filter_norm", "signal": "activations", "normalize": "max", "ratio_per_round": 0.1,
                 "every_epochs": 2,
                 "target": {"macs": target}, "fine_tune": {"epochs": epochs}}
            ],
            "baselines": ["random"],
        }
    )  # fmt: skip
    inputs = JobInputs(model=detector(), datasets=(dataset(workdir / "text.zip", images),), recipe=recipe)
    with Bar() as bar:
        task = bar.add_task("the job", total=1.0)

        def emit(name: str, /, **body: Any) -> None:
            if name == "progress":
                bar.update(task, completed=body["fraction"], description=body["stage"])

        return pipeline.run(inputs, workdir, emit)


def table(report: Report) -> str:
    heads = ["", "parameters", "MACs", "relative error", "cosine", "latency p50, ms", "epochs"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    costs = {"pruned": report.cost, **{control.name: control.cost for control in report.controls}}
    for name, variant in report.variants.items():
        cells = [
            name,
            f"{variant.params:,}",
            f"{variant.macs:,}",
            f"{variant.test.measures['relative_error']:.4f}",
            f"{variant.test.measures['cosine']:.4f}",
            f"{variant.latency[0].latency_ms_p50:.2f}",
            f"{costs[name].epochs}" if name in costs else "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    (control,) = report.controls
    lines += [
        "",
        f"The pruned network's error is smaller than `random`'s by {control.accuracy_difference:.4f} (95 % interval "
        f"{control.accuracy_difference_low:.4f} to {control.accuracy_difference_high:.4f}, of the test images).",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--target", type=float, default=0.75, help="share of the MACs that remains at most")
    parser.add_argument("--epochs", type=int, default=6, help="of the fine-tuning at the end")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = job(Path(folder), arguments.images, arguments.target, arguments.epochs)
    splits = {name: split["images"] for name, split in report.inputs["datasets"][0]["splits"].items()}
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    seconds = report.cost.seconds + sum(control.cost.seconds for control in report.controls)
    heading = HEADING.format(
        command=f"python -m bench.imitation --images {arguments.images} --target {arguments.target} --epochs "
        f"{arguments.epochs}",
        params=report.variants["original"].params, height=SIZE[0], width=SIZE[1], target=arguments.target,
        machine=machine, minutes=seconds / 60, **splits,
    )  # fmt: skip
    print(table(report))
    raw = report.model_dump(mode="json", include={"ratios", "cost", "controls", "front", "warnings", "recipe"})
    raw["test"] = {name: variant.test.model_dump() for name, variant in report.variants.items()}
    (RESULTS / "imitation.json").write_text(json.dumps({"machine": machine, **raw}, indent=1) + "\n")
    (RESULTS / "imitation.md").write_text(heading + table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
