"""`python -m bench.filter_norm_digits`: the table "Results" of docs/methods/filter_norm.md.

The demo's network and recipe, with the signal and scope of each row, 5 epochs of fine-tuning, three seeds, one thread;
accuracy of the ONNX file in ONNX Runtime. Prints the table and keeps the raw numbers in
`docs/results/filter_norm_digits.json`. About six minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from core.job import DatasetInput, JobInputs, ModelInput
from core.pipeline import run
from core.recipe import parse_recipe
from core.report import Report

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples" / "digits_resnet20.onnx"
ROWS = [(signal, *how) for signal in ("weights", "activations") for how in (("local", "none"), ("global", "max"))]
SEEDS = (0, 1, 2)


def prune(signal: str, scope: str, normalize: str, seed: int) -> Report:
    """The demo's recipe with these choices."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "recipes" / "digits_demo.yaml").read_text())
    document["seed"] = seed
    document["steps"][0] |= {"signal": signal, "scope": scope, "normalize": normalize}
    document["steps"][0]["fine_tune"]["epochs"] = 5
    inputs = JobInputs(
        model=ModelInput(path=MODEL, sha256=hashlib.sha256(MODEL.read_bytes()).hexdigest(), format="onnx"),
        datasets=(DatasetInput(path=None, sha256=None, format="digits"),),
        recipe=parse_recipe(document),
        threads=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        return run(inputs, Path(folder), lambda name, /, **body: None)


def spread(shares: list[float]) -> str:
    """The least and the greatest, in whole percent."""
    least, most = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return least if least == most else f"{least} to {most}"


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    raw = []
    print("| `signal` | `scope`, `normalize` | rounds | parameters left | MACs left | test accuracy | mean |")
    print("|---|---|---|---|---|---|---|")
    for signal, scope, normalize in ROWS:
        reports = [prune(signal, scope, normalize, seed) for seed in SEEDS]
        accuracies = [report.variants["pruned"].test.accuracy for report in reports]
        ratios = {name: [report.ratios[name] for report in reports] for name in ("params_ratio", "macs_ratio")}
        rounds = sorted({len(report.front) - 1 for report in reports})
        raw.append({"signal": signal, "scope": scope, "normalize": normalize, "seeds": SEEDS, "rounds": rounds,
                    "test_accuracy": accuracies, **ratios})  # fmt: skip
        print(
            f"| {signal} | {scope}, {normalize} | {' to '.join(map(str, rounds))} | {spread(ratios['params_ratio'])} "
            f"| {spread(ratios['macs_ratio'])} | {', '.join(f'{100 * value:.2f}' for value in accuracies)} "
            f"| {100 * statistics.fmean(accuracies):.2f} |",
            flush=True,
        )
    results = ROOT / "docs" / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "filter_norm_digits.json").write_text(json.dumps(raw, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
