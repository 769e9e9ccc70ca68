"""`python -m bench.resume`: a job killed at random moments and started again ends in the same bits.

`python -m core.pipeline` on ResNet-20 and the digits, with a fine-tuning after each round, noise on weights, a teacher,
mixup, random crops, a guard and all three controls: once undisturbed, then `--kills` times killed (SIGKILL) at a moment
drawn evenly from the undisturbed run's length, started again, and left to end. Compared are the SHA-256 of
pruned.onnx, weights.safetensors and plan.json, the accuracies of every variant, and the epochs that were done twice: no
kill may cost more than one checkpoint interval. Prints the table, writes `docs/results/resume.md`; exits with 1 where
anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe
from core.training.trainer import CHECKPOINT_EPOCHS, CHECKPOINT_SECONDS

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples" / "digits_resnet20.onnx"
FILES = ("pruned.onnx", "weights.safetensors", "plan.json")
RECIPE = {
    "training": {"optimizer": {"name": "sgd", "lr": 0.02}, "batch_size": 64,
                 "augment": {"crop": True, "rotate": 5, "noise": 0.02, "mixup": 0.1}},
    "steps": [{
        "method": "filter_norm", "signal": "activations", "ratio_per_round": 0.2, "every_epochs": 2,
        "target": {"macs": 0.45, "max_accuracy_drop": 0.2},
        "fine_tune": {"policy": {"low": 1, "high": {"loops": 2}}, "epochs": 4, "noise": {"eta": 0.02},
                      "distill": {"weight": 0.5}},
    }],
    "baselines": ["unpruned", "random", {"scratch": {"budget": 6, "optimizer": {"name": "sgd", "lr": 0.1}}}],
}  # fmt: skip
HEADING = """# Killed and started again

Made by `{command}`: {kills} runs of one job (ResNet-20 on the digits, {seconds:.0f} s undisturbed, {epochs} epochs with
those of its three controls), each killed (SIGKILL) at a random moment and started again. *Epochs again*: done by the
killed run after its last checkpoint, and repeated; a checkpoint is written at least every {every} epochs, or once
{interval:.0f} s have passed.

"""


@dataclass
class Run:
    """What a run printed, and what it left where it came to its end."""

    seconds: float
    epochs: list[str]
    result: dict[str, Any] | None


def job(folder: Path, sha256: str) -> Path:
    inputs = JobInputs(
        model=ModelInput(path=MODEL, sha256=sha256, format="onnx"),
        datasets=(DatasetInput(path=None, sha256=None, format="digits"),),
        recipe=parse_recipe(RECIPE),
        threads=1,
    )
    path = folder / "job.json"
    path.write_text(inputs.model_dump_json())
    return path


def run(path: Path, workdir: Path, kill_after: float | None = None) -> Run:
    """One process; killed after so many seconds, unless it has ended before."""
    began = time.perf_counter()
    with (workdir.parent / f"{workdir.name}.events").open("wb") as events:
        process = subprocess.Popen(
            [sys.executable, "-m", "core.pipeline", str(path), str(workdir)], cwd=ROOT, stdout=events,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = (workdir.parent / f"{workdir.name}.events").read_bytes().splitlines(keepends=True)
    names = [json.loads(line)["name"] for line in lines if line.endswith(b"\n")]
    result = outcome(workdir) if process.returncode == 0 else None
    return Run(time.perf_counter() - began, [name for name in names if "/epoch/" in name], result)


def outcome(workdir: Path) -> dict[str, Any]:
    """All that must be the same."""
    out = workdir / "out"
    report = json.loads((out / "report.json").read_text())
    return {
        "files": {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES},
        "variants": {name: (each["sha256"], each["test"]["accuracy"]) for name, each in report["variants"].items()},
        "epochs": report["cost"]["epochs"] + sum(control["cost"]["epochs"] for control in report["controls"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draws = random.Random(arguments.seed)
    sha256 = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    lines = ["| killed after, s | epochs done | epochs again | same files | same variants |", "|---|---|---|---|---|"]
    failed = False
    with tempfile.TemporaryDirectory() as temporary, Progress() as bar:
        folder = Path(temporary)
        path = job(folder, sha256)
        task = bar.add_task("undisturbed", total=arguments.kills + 1)
        (folder / "whole").mkdir()
        whole = run(path, folder / "whole")
        if whole.result is None:
            raise SystemExit("the undisturbed run failed")
        for number in range(arguments.kills):
            bar.update(task, advance=1, description=f"kill {number + 1}")
            workdir = folder / str(number)
            workdir.mkdir()
            moment = draws.uniform(0.5, whole.seconds)
            first = run(path, workdir, moment)
            second = run(path, workdir) if first.result is None else first
            if second.result is None:
                raise SystemExit(f"the run after kill {number + 1} failed")
            again = len(first.epochs) + len(second.epochs) - len(whole.epochs) if second is not first else 0
            same = [second.result[key] == whole.result[key] for key in ("files", "variants")]
            failed |= not all(same) or again > CHECKPOINT_EPOCHS
            cells = [
                f"{moment:.1f}",
                f"{len(first.epochs)}",
                f"{again}",
                *("yes" if each else "**no**" for each in same),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        bar.update(task, advance=1)
    heading = HEADING.format(
        command=f"python -m bench.resume --kills {arguments.kills}", kills=arguments.kills, seconds=whole.seconds,
        epochs=len(whole.epochs), every=CHECKPOINT_EPOCHS, interval=CHECKPOINT_SECONDS,
    )  # fmt: skip
    text = "\n".join(lines) + "\n"
    (ROOT / "docs" / "results" / "resume.md").write_text(heading + text)
    print(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
