"""`python -m bench.overhead`: what the service costs, beside the engine alone.

The same job is run in pairs, in alternating order: once over HTTP (from `POST /v1/jobs`, uploads ready, until the
job is `succeeded`) and once by `core.pipeline` called directly in a fresh process. Prints the table, keeps the raw
numbers in `docs/results/overhead.json`, writes `docs/results/overhead.md`. Wanted: at most 5 % on a job of one
minute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from billhook import Client
from core.data.datasets import load_dataset
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import parse_recipe

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples" / "digits_resnet20.onnx"


def recipe(epochs: int) -> dict[str, object]:
    """Pruning to half, then `epochs` of fine-tuning: the length of the job is set by them alone."""
    step = {"method": "filter_norm", "signal": "weights", "ratio_per_round": 0.3, "every_epochs": 1,
            "target": {"params": 0.5}, "fine_tune": {"policy": "once", "epochs": epochs}}  # fmt: skip
    return {"version": 1, "seed": 0, "training": {"batch_size": 64, "augment": "crop"}, "steps": [step]}


def direct(document: dict[str, object], sha256: str) -> float:
    """Seconds of one run of the engine alone, its process's start included."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        inputs = JobInputs(
            model=ModelInput(path=MODEL, sha256=sha256, format="onnx"),
            datasets=(DatasetInput(path=None, sha256=None, format="digits"),),
            recipe=parse_recipe(document),
        )
        (work / "job.json").write_text(inputs.model_dump_json())
        began = time.perf_counter()
        command = [sys.executable, "-m", "core.pipeline", str(work / "job.json"), str(work)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def over_http(client: Client, document: dict[str, object], model: str, dataset: str) -> float:
    """Seconds from `POST /v1/jobs` until the answer that says `succeeded`."""
    began = time.perf_counter()
    job = client.submit_job(model, [dataset], document, name="bench/overhead")
    client.wait_for_job(job.id)
    return time.perf_counter() - began


def serve(data: Path) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).parent / "billhook-server"), "--data-dir", str(data), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not (data / "address").exists():
        if server.poll() is not None:
            raise SystemExit("the server did not start")
        time.sleep(0.1)
    return server


def table(pairs: list[tuple[float, float]], epochs: int) -> str:
    ratios = [http / alone for http, alone in pairs]
    lines = ["| pair | over HTTP, s | engine alone, s | ratio |", "|---|---|---|---|"]
    lines += [f"| {n} | {http:.1f} | {alone:.1f} | {http / alone:.3f} |" for n, (http, alone) in enumerate(pairs, 1)]
    https, alones = zip(*pairs, strict=True)
    lines.append(
        f"| median | {statistics.median(https):.1f} | {statistics.median(alones):.1f} "
        f"| {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f}) |"
    )
    return (
        "\n".join(lines)
        + f"\n\nFine-tuning epochs: {epochs}. {platform.processor() or platform.machine()}, "
        + (f"{os.cpu_count()} cores, Python {platform.python_version()}.\n")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=165, help="of fine-tuning; sets the length of the job")
    arguments = parser.parse_args()
    document = recipe(arguments.epochs)
    data = Path(tempfile.mkdtemp())
    server = serve(data)
    pairs = []
    try:
        address, key = (data / "address").read_text().strip(), (data / "key").read_text().strip()
        with Client(address, key) as client:
            model = client.upload_model(MODEL)
            dataset = client.add_dataset("builtin:digits")
            load_dataset(DatasetInput(path=None, sha256=None, format="digits"))  # both find the files in the page cache
            for number in range(arguments.pairs):
                runs = {}
                for side in ("http", "alone") if number % 2 == 0 else ("alone", "http"):
                    if side == "http":
                        runs[side] = over_http(client, document, model.id, dataset.id)
                    else:
                        runs[side] = direct(document, model.sha256)
                pairs.append((runs["http"], runs["alone"]))
                print(f"pair {number + 1}: {runs['http']:.1f} s over HTTP, {runs['alone']:.1f} s alone", flush=True)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        shutil.rmtree(data, ignore_errors=True)
    results = ROOT / "docs" / "results"
    results.mkdir(parents=True, exist_ok=True)
    text = table(pairs, arguments.epochs)
    (results / "overhead.json").write_text(json.dumps({"epochs": arguments.epochs, "pairs_s": pairs}) + "\n")
    command = f"python -m bench.overhead --pairs {arguments.pairs} --epochs {arguments.epochs}"
    (results / "overhead.md").write_text(
        "# What the service costs beside the engine alone\n\n"
        f"Made by `{command}`; raw numbers in `overhead.json`. One job (digits, ResNet-20)"
        "\nis run in pairs in alternating order: from `POST /v1/jobs` with uploads ready until `succeeded`, and by\n"
        "`python -m core.pipeline` in a fresh process. Wanted: a ratio of at most 1.05 on a job of one\nminute.\n\n"
        + text
    )
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
