"""`docs/results/coverage.md` from the rows of `bench.coverage`."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from pathlib import Path
from typing import Any

from bench.zoo_names import LEFT_OUT

WANTED = {"light": 1.0, "pretrained": 1.0, "torchvision": 0.95, "timm": 0.90, "pytorchcv": 0.95}
BOUNDS = {
    "import": "the imported network against its source",
    "exactness": "zero, then remove",
    "parity": "ONNX Runtime against torch",
}
HEAD = """\
# Coverage: which networks come in, are cut exactly and go out again

Made by `python -m bench.coverage` (`make zoo` installs the networks); raw numbers in `coverage.jsonl`, one row a line.

Every network is imported and compared with its own code (`.pt2`: float64, at most 1e-9; at most the parity bound for
ONNX, which ONNX Runtime runs in float32, and where weights are computed from weights or values are cast to float32).
Then 40 % of the units of every free channel group go, chosen at random with a fixed seed, and the cut network is
compared in float64 with the uncut one whose consumers read zero from what went (at most 1e-9); it is written as ONNX,
checked, run in ONNX Runtime and compared with torch (at most the larger of 1e-5 and ten times the network's own error
from float32 to float64). A cut that does not move the output proves nothing, and fails. A row passes where all of that
holds, and where at least half of the convolutions' weights have an input or output channel that may go; where fewer
have, the table says which operator forbids it. **A network that goes through with an error above its bound is a defect,
and is marked DEFECT.**

Random weights, but for the family *pretrained*: He's for the light models (theirs are all 0.02), the zoos' own
initialisation else; whatever is one number all over (fresh BatchNorms, layer scales, biases) becomes seeded random
numbers, and twenty batches in training mode settle the BatchNorms' statistics. Images are as small as the network
takes. Networks are exported by `torch.export` and `torch.onnx.export` (dynamo) with a dynamic batch (FractalNet, whose
code computes with the batch size, with a batch of one).

`can go`: the share of all parameters that goes when half of every free group is cut. `analysis`: seconds to find all
channel groups, one thread.
"""


def passed(result: dict[str, Any]) -> bool:
    return result["stage"] == "passed" and (result["free_conv"] >= 0.5 or bool(result["forbidden_by"]))


def defects(result: dict[str, Any]) -> list[str]:
    """The errors above their bounds."""
    return [
        f"{told}: {result[f'{name}_error']:.3g}, at most {result[f'{name}_bound']:.3g} is allowed"
        for name, told in BOUNDS.items()
        if f"{name}_error" in result and not result[f"{name}_error"] <= result[f"{name}_bound"]
    ]


def summary(result: dict[str, Any]) -> str:
    """One row for the terminal."""
    mark = "DEFECT" if defects(result) else "passed" if passed(result) else f"FAILED ({result['stage']})"
    numbers = [
        f"{told} {result[key]:{form}}"
        for key, told, form in (("free_conv", "free", ".0%"), ("removed_at_half", "can go", ".0%"),
                                ("exactness_error", "exactness", ".1e"), ("parity_error", "parity", ".1e"))
        if key in result
    ]  # fmt: skip
    more = result.get("error", "")
    return f"{result['row']}: {mark} in {result['seconds']:.0f} s; {', '.join(numbers)} {more}".rstrip(" ;")


def write(results: list[dict[str, Any]], rows: list[Any], path: Path) -> None:
    """The page: totals, defects, failures by cause, what forbids cutting, then every row."""
    parts = [HEAD, _totals(results, rows), _defects(results), _failures(results), _forbidden(results)]
    parts += [_family(family, results) for family in WANTED]
    parts += [_left_out(), _made(results)]
    path.write_text("\n".join(part for part in parts if part))


def _family_of(result: dict[str, Any]) -> str:
    return str(result["row"]).partition("/")[0]


def _totals(results: list[dict[str, Any]], rows: list[Any]) -> str:
    lines = ["| family | rows | done | passed | share of done | wanted | defects |", "|---|---|---|---|---|---|---|"]
    for family, share in WANTED.items():
        total = sum(row.family == family for row in rows)
        mine = [result for result in results if _family_of(result) == family]
        good = sum(map(passed, mine))
        reached = f"{good / len(mine):.1%}" if mine else "–"
        wrong = sum(bool(defects(result)) for result in mine)
        lines.append(f"| {family} | {total} | {len(mine)} | {good} | {reached} | {share:.0%} | {wrong} |")
    return "## Totals\n\n" + "\n".join(lines) + "\n"


def _defects(results: list[dict[str, Any]]) -> str:
    lines = [f"- **DEFECT** `{r['row']}`: {'; '.join(defects(r))}" for r in results if defects(r)]
    return (
        "## Defects\n\n" + "\n".join(lines or ["None: no network went through with an error above its bound."]) + "\n"
    )


def _failures(results: list[dict[str, Any]]) -> str:
    failed = [result for result in results if not passed(result)]
    if not failed:
        return ""
    lines = ["| row | fails at | operator | reason |", "|---|---|---|---|"]
    lines += [
        f"| {r['row']} | {r['stage']} | {r.get('operator', '')} | {_cell(r.get('error', 'nothing forbids it'))} |"
        for r in failed
    ]
    return "## What does not pass\n\n" + "\n".join(lines) + "\n"


def _forbidden(results: list[dict[str, Any]]) -> str:
    few = [result for result in results if result["stage"] == "passed" and result["free_conv"] < 0.5]
    if not few:
        return ""
    lines = ["| row | free | forbidden by |", "|---|---|---|"]
    for r in few:
        told = "; ".join(f"{operator} ({share:.0%}): {reason}" for operator, reason, share in r["forbidden_by"])
        lines.append(f"| {r['row']} | {r['free_conv']:.0%} | {_cell(told)} |")
    intro = (
        "Less than half of the convolutions' weights are free. The shares are of the convolutions' parameters, in\n"
        "layers some of whose channels the operator holds.\n\n"
    )
    return "## Where an operator forbids most cuts\n\n" + intro + "\n".join(lines) + "\n"


def _family(family: str, results: list[dict[str, Any]]) -> str:
    mine = [result for result in results if _family_of(result) == family]
    if not mine:
        return ""
    lines = [
        "| network | image | parameters | imported | groups, free | 40 % cut | free convolutions | can go "
        "| zero-then-remove error | ONNX Runtime error | analysis, s | result |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in mine:
        result = "**DEFECT**" if defects(r) else "passed" if passed(r) else f"fails at {r['stage']}"
        lines.append(
            f"| {r['row'].partition('/')[2]} | {'×'.join(map(str, r.get('image', [])))} | {_number(r, 'params', ',')} "
            f"| {_number(r, 'import_error', '.1e')} | {_number(r, 'groups', '')}, {_number(r, 'free_groups', '')} "
            f"| {_number(r, 'removed', '.0%')} | {_number(r, 'free_conv', '.0%')} "
            f"| {_number(r, 'removed_at_half', '.0%')} "
            f"| {_number(r, 'exactness_error', '.1e')} | {_number(r, 'parity_error', '.1e')} "
            f"| {_number(r, 'analysis_s', '.2f')} | {result} |"
        )
    return f"## {family}\n\n`imported` is the error against the network's own code.\n\n" + "\n".join(lines) + "\n"


def _left_out() -> str:
    lines = [f"- {family}: {count} ({why})" for family, (count, why) in LEFT_OUT.items()]
    return (
        "## What is left out\n\ntorchvision: `vit_*`, `swin_*` and `maxvit_t` (attention). timm: networks of 8\n"
        "million parameters and more, and by family (names under 8 million):\n\n" + "\n".join(lines) + "\n"
    )


def _made(results: list[dict[str, Any]]) -> str:
    names = ("torch", "onnx", "onnxruntime", "onnxscript", "torchvision", "timm", "pytorchcv")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    codes = Counter(result.get("code", "?") for result in results)
    hours = sum(result["seconds"] for result in results) / 3600
    return (
        f"## Made with\n\n{versions}, Python {platform.python_version()}, {platform.machine()}, one thread a row; "
        f"{hours:.1f} hours in all.\nVersions of `core/graph` (hash: rows): "
        + ", ".join(f"{code}: {count}" for code, count in codes.most_common())
        + ".\n"
    )


def _number(result: dict[str, Any], key: str, form: str) -> str:
    return format(result[key], form) if key in result else "–"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
