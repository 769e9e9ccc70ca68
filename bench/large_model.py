"""`python -m bench.large_model`: a network past the 2 GiB of one ONNX file, cut, written, proved and read again.

Four convolutions of 4096 channels hold 2.4 GB of weights. A few channels are cut, and the result is written as
`pruned.onnx` and `pruned.onnx.data`, checked by `onnx.checker` and run in ONNX Runtime, both by path, zipped without
packing and imported again. Prints seconds, bytes and the peak of resident memory, and writes
`docs/results/large-model.md`. Needs 8 GB of disk and 14 GB of memory.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from core.graph.cuts import cut
from core.graph.export import check_parity, write_onnx
from core.graph.external_data import parts
from core.graph.groups import channel_groups
from core.graph.importers import read_onnx
from core.graph.lowering import trace
from core.graph.network import Network

PAGE = Path(__file__).parent.parent / "docs" / "results" / "large-model.md"
WIDTH, DEPTH, REMOVED = 4096, 4, 64
Result = TypeVar("Result")


def network(width: int, depth: int) -> nn.Module:
    """conv 3x3, ReLU, `depth` times, between a stem and a classifier."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 1)]
    for _ in range(depth):
        layers += [nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


def cut_network(width: int) -> Network:
    large = trace(network(width, DEPTH), (3, 4, 4), format="onnx")
    groups = channel_groups(large)
    return cut(large, {group.name: list(range(REMOVED)) for group in groups.groups if group.cuttable}, groups)[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where the result is one file, which would prove nothing."""
    parser = argparse.ArgumentParser(prog="python -m bench.large_model", description="past 2 GiB")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    rows: list[tuple[str, str]] = []

    def timed(what: str, work: Callable[[], Result]) -> Result:
        began = time.perf_counter()
        result = work()
        rows.append((what, f"{time.perf_counter() - began:.1f} s"))
        print(*rows[-1], flush=True)
        return result

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.onnx"
        smaller = timed("make, analyse and cut", lambda: cut_network(given.width))
        timed("write, with the full check of onnx.checker by path", lambda: write_onnx(smaller, path))
        files = parts(path)
        sizes = ", ".join(f"{file.name} {file.stat().st_size:,} bytes" for file in files)
        inputs = smaller.example_input(1)
        check = timed("parity in ONNX Runtime by path", lambda: check_parity(smaller, path, inputs))
        zipped = Path(folder) / "pruned.zip"
        with zipfile.ZipFile(zipped, "w") as archive:
            for file in files:
                archive.write(file, file.name)
        again = timed("import of a zip of both files", lambda: read_onnx(zipped))
        same = torch.equal(again(inputs), smaller(inputs))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    text = (
        "# Past 2 GiB\n\n"
        f"`python -m bench.large_model`: {DEPTH} convolutions of {given.width} channels, {REMOVED} of each removed.\n\n"
        f"Written: {sizes}. Parity error {check.error:.2g} (bound {check.bound:.2g}). Read again it computes"
        f" {'the same bits' if same else 'something else'}. Peak of resident memory: {peak / 2**30:.1f} GiB,"
        f" {peak / sum(parameter.numel() * 4 for parameter in smaller.parameters()):.1f} times the weights.\n\n"
        "| step | time (two cores, shared with other work) |\n|---|---|\n"
        + "".join(f"| {what} | {seconds} |\n" for what, seconds in rows)
    )
    print(text)
    given.page.write_text(text)
    return int(len(files) != 2 or not same)


if __name__ == "__main__":
    sys.exit(main())
