"""`python -m bench.blocks`: the comparisons of Velici 2022, chapters 3 and 4, on Fashion-MNIST.

`make data` first. On a CPU ResNet-20 (9 blocks) and 5,000 images, so labelled, a few hours; with `--images all --depth
110 --epochs 50 --device cuda` the whole on a GPU. Each row is one recipe on networks from different random weights,
trained once; each result is a file in the work folder, so that a run that was interrupted goes on with the row that it
was at. `--minutes` begins no row after so long, `--list` says what is done. Writes `docs/results/blocks.md` and
`blocks.json` (with the network's depth and images in their names, where those are others).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.blocks_originals import Images, Original, original
from bench.blocks_page import page, write
from bench.blocks_results import Results
from bench.blocks_rows import ALL_IMAGES, Row, Study, rows
from bench.blocks_running import run_row
from core.devices import require_device, torch_settings
from core.events import jsonable

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
WORK = ROOT / "build" / "bench-blocks"


def _images(text: str) -> int:
    number = ALL_IMAGES if text == "all" else int(text)
    if not 100 <= number <= ALL_IMAGES:
        raise argparse.ArgumentTypeError(f"all, or a number from 100 to {ALL_IMAGES}, not {text}")
    return number


def _at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"at least 1, not {text}")
    return number


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--images", type=_images, default=5_000, help="for training and validation, or all")
    found.add_argument("--depth", type=int, choices=(20, 32, 44, 56, 110), default=20)
    found.add_argument("--epochs", type=_at_least_one, default=3, help="of a whole fine-tuning; the thesis has 50")
    found.add_argument("--seeds", type=_at_least_one, default=3, help="networks, trained from different random weights")
    found.add_argument("--device", default="cpu", help="cpu or cuda")
    found.add_argument("--threads", type=int, default=None, help="torch threads; default: all cores")
    found.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help="as 'loops-4/*'")
    found.add_argument("--minutes", type=float, default=None, help="begins no row after so long; 0: only the page")
    found.add_argument("--again", choices=("failed", "all"), default=None, help="of these rows, those that are there")
    found.add_argument("--work", type=Path, default=WORK, help="folder of networks and results")
    found.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    found.add_argument("--list", action="store_true", help="says which rows there are and what is done, and ends")
    return found


def chosen(every: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """The rows that a pattern names. Raises `SystemExit` for one that names none."""
    for pattern in patterns:
        if not any(fnmatch.fnmatch(row.name, pattern) for row in every):
            raise SystemExit(f"no row is called {pattern}; --list names them")
    return [row for row in every if any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns)]


def to_do(results: Results, wanted: Sequence[Row], seeds: Sequence[int], again: str | None) -> list[tuple[Row, int]]:
    """What is to be run: row by row, each on all networks."""
    kept = {None: ("done", "failed"), "failed": ("done",), "all": ()}[again]
    return [(row, seed) for row in wanted for seed in seeds if results.status(row.name, seed) not in kept]


def listing(results: Results, wanted: Sequence[Row], seeds: Sequence[int]) -> str:
    lines = [
        f"{row.name:<40} " + ", ".join(results.status(row.name, seed) or "missing" for seed in seeds) for row in wanted
    ]
    return "\n".join(lines)


def run_all(
    results: Results,
    work: Sequence[tuple[Row, int]],
    folder: Path,
    *,
    device: str,
    threads: int | None,
    minutes: float | None,
) -> None:
    """Runs rows, each where an earlier attempt left it, until all are done or the time is over."""
    study, on = results.study, require_device(device)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    images, originals = Images(study.images, folder), dict[int, Original]()
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with torch_settings(on, threads), Progress(*columns) as bar:
        task = bar.add_task("rows", total=len(work))
        for row, seed in work:
            if deadline is not None and time.monotonic() >= deadline:
                break
            if seed not in originals:
                training = bar.add_task(f"network {seed}", total=study.original_epochs)
                own = folder / "originals" / str(seed)
                originals[seed] = original(study, seed, images.whole, own, on, lambda: bar.advance(training))  # noqa: B023
                bar.remove_task(training)
            bar.update(task, description=f"{row.name}, network {seed}")
            own = folder / "running" / f"{row.name.replace('/', '--')}.{seed}"
            results.add(run_row(row, study, originals[seed], images, own, on))
            bar.advance(task)


def command_of(arguments: argparse.Namespace) -> str:
    """The command that makes the same page, and goes on where it is not complete."""
    given = ["python", "-m", "bench.blocks"]
    defaults = parser().parse_args([])
    for name in ("images", "depth", "epochs", "seeds", "device", "work", "results"):
        if (value := getattr(arguments, name)) != getattr(defaults, name):
            given += [f"--{name}", "all" if name == "images" and value == ALL_IMAGES else str(value)]
    return shlex.join(given)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    device = "cuda:0" if arguments.device == "cuda" else arguments.device
    study = Study(arguments.images, arguments.depth, arguments.epochs, device)
    every, seeds = rows(study), range(arguments.seeds)
    wanted = chosen(every, arguments.rows)
    folder = arguments.work / study.name
    results = Results(study, folder / "results")
    results.read(every, seeds)
    if arguments.list:
        print(listing(results, wanted, seeds))
        return 0
    work = to_do(results, wanted, seeds, arguments.again)
    name = "blocks"
    if (study.depth, study.images) != (20, 5_000):
        name += f"-resnet{study.depth}-{study.images}-images"
    try:
        run_all(results, work, folder, device=device, threads=arguments.threads, minutes=arguments.minutes)
    finally:
        text = page(results, every, seeds, command=command_of(arguments), raw=f"{name}.json")
        write(arguments.results / f"{name}.md", text)
        write(
            arguments.results / f"{name}.json",
            json.dumps(jsonable({"study": vars(study), "rows": results.found}), indent=1) + "\n",
        )
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
