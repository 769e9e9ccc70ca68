"""`python -m bench.streaming`: an epoch on a dataset four times larger than the memory limit of the child.

Makes a zip of class folders of JPEGs whose decoded bytes are `--times` the limit, and trains one epoch on it in a real
child under the worker's guard, which kills it past the limit. Then, on fewer of the images, epochs streamed and held in
memory in turn. Prints the tables, keeps the raw numbers in `docs/results/streaming.json`, writes
`docs/results/streaming.md`. Needs disk for the zip and the decoded images, about `--times` the limit.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import shlex
import statistics
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from bench.streaming_child import Plan
from core.job import DatasetCheck, DatasetInput, Room
from worker.context import MEMORY_SHARE
from worker.guard import Limits
from worker.supervisor import Ended, supervise

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
CHILD = (sys.executable, "-m", "bench.streaming_child")
MIB = 2**20
DISK_BYTES = 64 * 2**30
CLASSES = 10
HEADING = """# Streaming a dataset that does not fit memory

Made by `{command}`; raw numbers in `streaming.json`. {machine}.

"""


def make_zip(path: Path, images: int, side: int) -> None:
    """JPEGs of soft noise, each another one, in ten class folders."""
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in track(range(images), f"{images:,} JPEGs"):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR).save(buffer, "JPEG")
            archive.writestr(f"class_{number % CLASSES}/{number}.jpg", buffer.getvalue())


def run(workdir: Path, plan: Plan, memory_bytes: int) -> Ended:
    """The child's end; its scratch files lie in `workdir`."""
    workdir.mkdir()
    (workdir / "job.json").write_text(plan.model_dump_json())
    limits = Limits(run_seconds=3600, memory_bytes=memory_bytes, disk_bytes=DISK_BYTES)
    return supervise("train", workdir, limits, order=lambda: None, store=lambda events: None, command=CHILD)


def result_of(ended: Ended) -> dict[str, Any]:
    if ended.verdict != "result":
        raise SystemExit(f"the child ended without a result: {dict(ended.body)}\n{ended.output_tail}")
    return {**ended.body, "peak_memory_bytes": ended.peak_memory_bytes}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    limit = arguments.limit_mib * MIB
    images = math.ceil(arguments.times * limit / (3 * arguments.side**2))
    large, small = folder / "large.zip", folder / "small.zip"
    make_zip(large, images, arguments.side)
    make_zip(small, arguments.sample, arguments.side)

    def plan(path: Path, room: Room, rounds: int = 0) -> Plan:
        check = DatasetCheck(
            dataset=DatasetInput(path=path, sha256=None, format="image_folder"), room=room, threads=arguments.threads
        )
        return Plan(check=check, architecture=arguments.architecture, batch_size=arguments.batch_size, rounds=rounds)

    print("what torch and the network need by themselves …", flush=True)
    alone = result_of(run(folder / "alone", plan(small, Room(memory_bytes=0)), 8 * limit))
    print(f"one epoch of {images:,} images within {arguments.limit_mib} MiB …", flush=True)
    room = Room(memory_bytes=int(limit * MEMORY_SHARE))
    within = result_of(run(folder / "within", plan(large, room), limit))
    print("what happens when they are held in memory all the same …", flush=True)
    held = run(folder / "held", plan(large, Room(memory_bytes=2 * math.ceil(arguments.times * limit))), limit)
    print("streamed and held in memory, in turn …", flush=True)
    turns = result_of(run(folder / "turns", plan(small, Room(), arguments.rounds), 16 * limit))
    return {"limit_bytes": limit, "alone": alone, "within": within, "held": dict(held.body), "turns": turns}


# --- telling ---------------------------------------------------------------------------------------------------------


def spread(values: list[float], form: str = ",.0f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def text_of(found: dict[str, Any], arguments: argparse.Namespace) -> str:
    limit, within, alone, turns = (found[name] for name in ("limit_bytes", "within", "alone", "turns"))

    def mib(size: int) -> str:
        return f"{size / MIB:,.0f} MiB"

    peak = max(within["peak_memory_bytes"], within["highest_resident_bytes"])
    lines = [
        "## One epoch inside the limit",
        "",
        f"{arguments.architecture}, batches of {arguments.batch_size}, {within['threads']} threads, crops and flips; "
        f"{within['images']:,} JPEGs of {arguments.side}×{arguments.side} in a zip; in a child of the worker's under "
        "its guard, which kills it past the limit.",
        "",
        "| | |",
        "|---|---|",
        f"| memory limit of the child | {mib(limit)} |",
        f"| images, decoded | {mib(within['decoded_bytes'])}, {within['decoded_bytes'] / limit:.2f} × the limit |",
        f"| most of the limit that was resident (guard's and kernel's figure) | {mib(peak)}, {peak / limit:.0%} |",
        f"| the same training on {alone['images']:,} images, streamed | "
        f"{mib(max(alone['peak_memory_bytes'], alone['highest_resident_bytes']))} |",
        f"| the same images, told to be held in memory | {found['held'].get('message', 'ended well')} |",
        f"| decoding all, splitting, looking for images in two splits | {within['load_seconds']:,.0f} s |",
        f"| mean, deviation and hashes | {within['summary_seconds']:,.0f} s |",
        f"| the epoch, its validation included | {within['epoch_seconds']:,.0f} s, "
        f"{within['train_images'] / within['epoch_seconds']:,.0f} images of train a second |",
        "",
        "## Streamed against held in memory",
        "",
        f"{turns['train_images']:,} images of train, an epoch each in turn, {arguments.rounds} rounds after one that "
        "is thrown away: median (smallest–largest); ratios are medians of the rounds' ratios. *cold*: the page cache "
        "has nothing of the images when the epoch begins.",
        "",
        "| | images/s | of held |",
        "|---|---|---|",
    ]
    seconds = turns["seconds"]
    for name in ("held", "streamed", "cold"):
        rates = [turns["train_images"] / value for value in seconds[name]]
        ratios = [theirs / ours for ours, theirs in zip(seconds[name], seconds["held"], strict=True)]
        lines.append(f"| {name} | {spread(rates)} | {'–' if name == 'held' else spread(ratios, '.3f')} |")
    plain = {name: [turns["images"] / value for value in seconds[name]] for name in ("decoding", "reading")}
    lines += [
        "",
        "Why images are decoded once, into a file, and not anew in each epoch: without a network to wait for, "
        f"{spread(plain['decoding'])} images a second are decoded out of the zip (split and compared, too), and "
        f"{spread(plain['reading'])} read out of the file in a random order and normalised.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-mib", type=int, default=1024, help="memory limit of the child")
    parser.add_argument("--times", type=float, default=4, help="decoded bytes of the dataset over the limit")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--architecture", default="small_cnn")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, help="torch threads; default: all cores")
    parser.add_argument("--sample", type=int, default=2_560, help="images of the turns")
    parser.add_argument("--rounds", type=int, default=5, help="after one that is thrown away")
    parser.add_argument("--remark", default="", help="for the page, as that the machine was busy")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="billhook-streaming-") as folder:
        found = measure(arguments, Path(folder))
    chip = platform.processor() or platform.machine()
    machine = f"{chip}, {os.cpu_count()} cores, torch {torch.__version__}"
    machine += f"; {arguments.remark}" if arguments.remark else ""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    raw = {"machine": machine, "arguments": options, **found}
    (arguments.results / "streaming.json").write_text(json.dumps(raw, indent=1) + "\n")
    text = text_of(found, arguments)
    print(text)
    command = " ".join(["python -m bench.streaming", *map(shlex.quote, sys.argv[1:])])
    heading = HEADING.format(command=command, machine=machine)
    (arguments.results / "streaming.md").write_text(heading + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
