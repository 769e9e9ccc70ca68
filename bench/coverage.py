"""`python -m bench.coverage`: which networks come in, are cut exactly and go out again.

Over the networks of `bench/zoo.py` (`make zoo` installs them), each in a process of its own with a limit on time and
memory. Every row is added to `docs/results/coverage.jsonl` as soon as it is done, and is not run again unless it is
asked for; then `docs/results/coverage.md` is written. Exits with 1 where a row went through with an error above its
bound: that is a defect, whatever the percentage.

    python -m bench.coverage --list --only 'timm/*'      names, and what is known of them
    python -m bench.coverage --only 'torchvision/*'      the rows that are not there yet
    python -m bench.coverage --failed                    and those that did not pass, again
    python -m bench.coverage --stale                     and those of another version of core/graph
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
CONTEXT = multiprocessing.get_context("fork")
POLL_S = 0.2


def code_version(kind: str) -> str:
    """Changes with anything in core/graph that a file of this kind may pass: the readers of `.pt2` read no ONNX, and no
    row replays a plan."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "core" / "graph").rglob("*.py")):
        if path.name in ("plans.py", "initialise.py"):
            continue
        if kind == "pt2" or not path.name.startswith(("aten", "pt2_")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def known(path: Path) -> dict[str, dict[str, Any]]:
    """The last result of each row. A line that was cut off by a crash is left out."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[result["row"]] = result
    return found


class Run:
    """One row in a process of its own."""

    def __init__(self, row: Any, cache: Path, seconds: float, memory: float) -> None:
        self.row, self.seconds, self.memory = row, seconds, memory
        self.work = tempfile.TemporaryDirectory()
        self.receiver, sender = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=_child, args=(row, cache, Path(self.work.name), sender))
        self.began = time.perf_counter()
        self.most = 0.0
        self.process.start()
        sender.close()

    def result(self) -> dict[str, Any] | None:
        """What came of it, None while it runs."""
        spent = time.perf_counter() - self.began
        found: dict[str, Any] | None = None
        if self.receiver.poll():
            try:
                found = self.receiver.recv()
            except EOFError:
                self.process.join()
                found = self._lost("crash", f"the process ended with code {self.process.exitcode}")
        elif spent > self.seconds:
            found = self._lost("time", f"not done after {self.seconds:.0f} s")
        elif self._gib() > self.memory:
            found = self._lost("memory", f"more than {self.memory:g} GiB")
        if found is None:
            return None
        if self.process.is_alive() and "error" in found and found["stage"] in ("time", "memory"):
            self.process.kill()
        self.process.join()
        self.receiver.close()
        self.work.cleanup()
        return {**found, "seconds": round(spent, 1), "memory_gib": round(self.most, 2)}

    def _lost(self, stage: str, error: str) -> dict[str, Any]:
        return {"row": self.row.name, "stage": stage, "error": error}

    def _gib(self) -> float:
        try:
            own = psutil.Process(self.process.pid).memory_info().rss / 2**30
        except psutil.NoSuchProcess:
            return 0.0
        self.most = max(self.most, own)
        return own


def _child(row: Any, cache: Path, work: Path, sender: Connection) -> None:
    import contextlib
    import os

    from bench.coverage_row import measure

    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        sender.send(measure(row, cache, work))
    sender.close()
    os._exit(0)  # torch's own threads and caches need no tidying


def run_all(rows: list[Any], cache: Path, jobs: int, seconds: float, memory: float) -> Iterator[dict[str, Any]]:
    """The results, as they come."""
    waiting = list(reversed(rows))
    running: list[Run] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(Run(waiting.pop(), cache, seconds, memory))
        time.sleep(POLL_S)
        for run in list(running):
            result = run.result()
            if result is not None:
                running.remove(run)
                yield result


def warm_up() -> None:
    """Loads what every row needs before processes part: torch's exporter and meta kernels take seconds."""
    import torch

    import bench.coverage_row  # noqa: F401
    from core.graph.groups import channel_groups
    from core.graph.lowering import trace

    torch.set_num_threads(1)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    channel_groups(trace(module, (3, 8, 8)))
    torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},))


def bar(done: int, total: int, passed: int, began: float) -> str:
    filled = 30 * done // max(total, 1)
    spent = time.perf_counter() - began
    left = spent / done * (total - done) / 60 if done else 0
    return f"[{'#' * filled}{'.' * (30 - filled)}] {done}/{total}, {passed} passed, about {left:.0f} min left"


def main() -> int:
    from bench.coverage_table import defects, passed, summary, write
    from bench.zoo import missing, rows

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", action="append", help="rows like this; may be given several times")
    parser.add_argument("--redo", metavar="PATTERN", action="append", default=[], help="run these again")
    parser.add_argument("--failed", action="store_true", help="run again what did not pass")
    parser.add_argument("--stale", action="store_true", help="run again what another version of core/graph made")
    parser.add_argument("--list", action="store_true", help="print the rows, run nothing")
    parser.add_argument("--table", action="store_true", help="write the table, run nothing")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=900, help="limit on one row")
    parser.add_argument("--memory", type=float, default=8, metavar="GIB", help="limit on one row")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "coverage", help="keeps the exported networks")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where coverage.jsonl and coverage.md go")
    given = parser.parse_args()
    if missing():
        parser.error(f"{', '.join(missing())} not installed: make zoo")
    store = given.results / "coverage.jsonl"
    every, results = rows(), known(store)
    versions = {row.name: code_version(row.format) for row in every}

    def like(name: str, patterns: list[str]) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    def wanted(name: str) -> bool:
        if name not in results or like(name, given.redo):
            return True
        return (given.failed and not passed(results[name])) or (
            given.stale and results[name].get("code") != versions[name]
        )

    chosen = [row for row in every if given.only is None or like(row.name, given.only)]
    if given.list:
        for row in chosen:
            result = results.get(row.name)
            told = "" if result is None else result["stage"] + (f": {result['error']}" if "error" in result else "")
            print(f"{row.name:55} {told}")
        return 0
    todo = [] if given.table else [row for row in chosen if wanted(row.name)]
    if todo:
        warm_up()
        given.results.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    done: list[dict[str, Any]] = []
    with store.open("a") if todo else tempfile.TemporaryFile("w") as log:
        for result in run_all(todo, given.cache, given.jobs, given.seconds, given.memory):
            result["code"] = versions[result["row"]]
            done.append(result)
            results[result["row"]] = result
            log.write(json.dumps(result) + "\n")
            log.flush()
            print(("\r\033[K" if sys.stdout.isatty() else "") + summary(result), flush=True)
            print(
                bar(len(done), len(todo), sum(map(passed, done)), began),
                end="\r" if sys.stdout.isatty() else "\n",
                flush=True,
            )
    if todo:
        results = known(store)  # with what another run has added meanwhile
    names = {row.name: position for position, row in enumerate(every)}
    kept = sorted((result for name, result in results.items() if name in names), key=lambda r: names[r["row"]])
    store.write_text("".join(json.dumps(result) + "\n" for result in kept))
    write(kept, every, given.results / "coverage.md")
    wrong = [result for result in kept if defects(result)]
    for result in wrong:
        print(f"DEFECT {result['row']}: {'; '.join(defects(result))}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
