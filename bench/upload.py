"""`python -m bench.upload`: how fast large files are taken, beside `cp` of the same file on the same disk.

For each size, in turn: `cp` of a file whose bytes are in the page cache, and `sync` of the copy; an upload as a raw
body; one as a form. Each upload is a new content over a real socket to a real server process on this machine, from the
first byte of the request until the answer that says 201: received, hashed, on the disk (fsync) and recorded. Prints the
table, keeps the raw numbers in `docs/results/upload.json`, writes `docs/results/upload.md`. `--s3`: with the storage in
S3, moto's server on this machine, once more, as information.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import psutil

from bench.sending import ROOT, Content, Form, Server, answer, send, serving

RESULTS = ROOT / "docs" / "results"
MB = 10**6
SIZES = {16 * MB: 9, 256 * MB: 5, 2_000 * MB: 3}  # bytes: rounds
HEADING = """# Uploads beside cp

Made by `{command}`; raw numbers in `upload.json`. {machine}.

`cp` copies a file that is in the page cache and `sync`s the copy. An upload is timed from its first byte until the
answer that says 201, through a socket on this machine: received, hashed, on the disk and recorded. In turn, each upload
a new content: median (smallest–largest); ratios are medians of the rounds' ratios of seconds. Growth is that of the
API's resident memory from before the upload to its peak.

"""


@dataclass
class Upload:
    """One upload: seconds on the clock; of processor time, of the thread of the loop and of all; bytes of memory."""

    seconds: float
    loop_seconds: float
    processor_seconds: float
    growth_bytes: int


def copy(source: Path) -> float:
    """Seconds of `cp` and `sync`."""
    target = source.with_name("copy")
    began = time.perf_counter()
    subprocess.run(["cp", source, target], check=True)
    subprocess.run(["sync", target], check=True)
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def upload(server: Server, size: int, form: Form) -> Upload:
    content = Content.new(size)
    api = server.api()
    before, times = api.memory_info().rss, _processor(api)
    peak, over = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, api.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        began = time.perf_counter()
        status, document = answer(send(server, content, form))
        seconds = time.perf_counter() - began
    finally:
        over.set()
        watcher.join()
    if status != 201 or document["bytes"] != size:
        raise SystemExit(f"the upload was not taken: {document}")
    used = {thread: spent - times.get(thread, 0) for thread, spent in _processor(api).items()}
    for stored in (server.data_dir / "artifacts").glob("sha256/*/*"):
        stored.unlink()
    return Upload(seconds, used[api.pid], sum(used.values()), peak - before)


def _processor(process: psutil.Process) -> dict[int, float]:
    return {thread.id: thread.user_time + thread.system_time for thread in process.threads()}


def sha256_rate() -> float:
    """Bytes that SHA-256 does in a second of processor time."""
    block, digest = os.urandom(2**20), hashlib.sha256()
    began = time.process_time()
    for _ in range(512):
        digest.update(block)
    return 512 * len(block) / (time.process_time() - began)


def measure(folder: Path, variables: Mapping[str, str], rounds: Mapping[int, int]) -> list[dict[str, Any]]:
    found = []
    with serving(folder / "data", {"BILLHOOK_MIN_FREE_BYTES": "0", **variables}) as server:
        for form in get_args(Form):
            upload(server, 10 * MB, form)  # the first one is slower: imports, threads
        for size, number in rounds.items():
            source = folder / "source"
            with source.open("wb") as file:
                for block in Content.new(size).blocks():
                    file.write(block)
            os.sync()
            turns: dict[str, Any] = {"cp": [], **{form: [] for form in get_args(Form)}}
            for turn in range(number):
                names = list(turns)
                for name in names[turn % 3 :] + names[: turn % 3]:
                    if name == "cp":
                        turns[name].append(copy(source))
                    else:
                        turns[name].append(asdict(upload(server, size, name)))  # type: ignore[arg-type]
                print(f"{size / MB:,.0f} MB, round {turn + 1} of {number}", flush=True)
            source.unlink()
            found.append({"bytes": size, **turns})
    return found


@contextlib.contextmanager
def bucket() -> Iterator[dict[str, str]]:
    """Settings with the storage in a bucket of moto's server."""
    from tests.s3_server import BUCKET
    from tests.s3_server import serving as s3_serving

    with s3_serving() as s3:
        yield {"BILLHOOK_STORAGE_URL": f"s3://{BUCKET}", **s3.variables()}


# --- telling ---------------------------------------------------------------------------------------------------------


def spread(values: list[float], form: str = ",.0f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "| file | way | MB/s | seconds, of cp's | growth, MB | processor, s/GB: loop | all threads |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        size = row["bytes"]
        rates = spread([size / MB / seconds for seconds in row["cp"]])
        lines.append(f"| {size / MB:,.0f} MB | `cp` + `sync` | {rates} | 1 | | | |")
        for form in get_args(Form):
            turns = row[form]
            ratios = [turn["seconds"] / seconds for turn, seconds in zip(turns, row["cp"], strict=True)]
            loop = [1e9 * turn["loop_seconds"] / size for turn in turns]
            threads = [1e9 * turn["processor_seconds"] / size for turn in turns]
            growth = max(turn["growth_bytes"] for turn in turns) / MB
            lines.append(
                f"| | {form} | {spread([size / MB / turn['seconds'] for turn in turns])} | {spread(ratios, '.2f')} "
                f"| {growth:.1f} | {statistics.median(loop):.2f} | {statistics.median(threads):.2f} |"
            )
    return "\n".join(lines) + "\n"


def text_of(local: list[dict[str, Any]], s3: list[dict[str, Any]], sha256: float) -> str:
    text = f"""## Local storage

{table(local)}
What the limit is: one thread runs the event loop, which receives (its processor seconds are the column *loop*);
another one hashes and writes what came in before. Neither can be faster than its core, and the sender wants one, too.
SHA-256 alone takes {1e9 / sha256:.2f} s/GB of a core here. The disk is told to begin writing every 16 MiB, so that
little is left for the fsync at the end; the file is then moved into the storage, not copied.
"""
    if s3:
        text += f"""
## S3

moto's server (Python, in memory, on the same cores): this says what Billhook's memory does, and nothing of S3's rate.

{table(s3)}"""
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="of every size; default: 9, 5 and 3")
    parser.add_argument("--largest-mb", type=int, default=2_000, help="leave out what is larger")
    parser.add_argument("--s3", action="store_true", help="in S3 (moto's server) too")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's temporary folder")
    parser.add_argument("--remark", default="", help="for the page, as that the machine was busy")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the page")
    arguments = parser.parse_args()
    rounds = {size: arguments.rounds or number for size, number in SIZES.items() if size <= arguments.largest_mb * MB}
    folder = Path(tempfile.mkdtemp(prefix="billhook-upload-", dir=arguments.folder))
    s3: list[dict[str, Any]] = []
    try:
        local = measure(folder, {}, rounds)
        if arguments.s3:
            with bucket() as variables:
                s3 = measure(folder, variables, dict.fromkeys(rounds, 1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sha256 = sha256_rate()
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    machine += f"; {arguments.remark}" if arguments.remark else ""
    raw = {"machine": machine, "sha256_bytes_per_second": sha256, "local": local, "s3": s3}
    (arguments.results / "upload.json").write_text(json.dumps(raw, indent=1) + "\n")
    text = text_of(local, s3, sha256)
    print(text)
    given = sys.argv[1:]
    if arguments.folder is not None and "--folder" in given:  # it says nothing to others
        given[given.index("--folder") + 1] = "…"
    command = " ".join(["python -m bench.upload", *map(shlex.quote, given)])
    (arguments.results / "upload.md").write_text(HEADING.format(command=command, machine=machine) + text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
