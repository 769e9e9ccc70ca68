"""`python -m bench.onnx_node_tests`: onnx's own backend node tests, for every operator on our list.

Each test is made a model that Billhook takes (`bench/node_cases.py` says how) and goes through reader and torch, then
through reader and writer: for the test's own opset and for every other opset at which an operator of the written file
changed, the file run in ONNX Runtime (in onnx's reference evaluator where the runtime does not know the opset). Every
output must be the one that the test expects, within the test's own tolerance.

Prints and writes `docs/results/onnx-node-tests.md`. `tests/core/graph/test_onnx_node_tests.py` holds the code to it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, defs
from onnx.reference import ReferenceEvaluator

from bench.node_cases import (
    DATA,
    SECOND_CONSTANT,
    Adapted,
    Array,
    NodeTest,
    NotAdapted,
    as_constants,
    as_it_is,
    batch_in_front,
    node_tests,
)
from core.errors import ModelRefused, RecipeInvalid
from core.graph.export import to_onnx
from core.graph.importers import read_onnx
from core.graph.network import Network
from core.graph.onnx_checks import NEWEST_OPSET, OLDEST_OPSET
from core.graph.onnx_constants import FOLDERS
from core.graph.operators import READERS

PAGE = Path(__file__).parent.parent / "docs" / "results" / "onnx-node-tests.md"
NEWEST_OF_RUNTIME = 26
"""ONNX Runtime's newest opset; it refuses a file of a newer one."""

FOLDED = {*FOLDERS, "Shape", "Constant"}

REASONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "types": (
        "no data of floating point, and the operator does not only move or compare",
        ("where float32 is computed with", "not of one", "has a cast to ", "is of type", "weights of type"),
    ),
    "empty": ("a dimension of 0", ()),
    "batch": (
        "mixes dimension 0 with others, also with a batch in front",
        ("moves the batch", "over the batch", "along the batch", "of the batch", "mixes the batch", "out of order",
         "disagree about dimension 0", "no dimension behind the batch", "the batch is not dimension 0",
         "among the batch", "one for each of a batch", "a third input of shape", "joins the batch",
         "keep the batch apart", "dimension 0 away", "repeats the batch", "in front of the batch"),
    ),
    "constants": ("nothing but constants goes in", ()),
    "training": ("training mode", ("training mode", "mask is read", "more than the first output")),
    "modes": (
        "a mode that is refused by name: torch or ONNX Runtime computes something else, or nothing",
        ("with antialias or exclude_outside", "keep_aspect_ratio_policy", "(tf_crop_and_resize)",
         "(half_pixel_symmetric)", "(pytorch_half_pixel)", "mode 'cubic' (asymmetric)", "padding mode 'wrap'",
         "which miss the last place", "each dimension by a letter of its own"),
    ),
}  # fmt: skip
"""Why a test may be skipped: what the page says, and what a refusal for this reason says."""


@dataclass
class Result:
    """Of one test: the ways in which it passed, why it did not pass in others, what went wrong, files that were run."""

    test: NodeTest
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    files: int = 0

    @property
    def reason(self) -> str | None:
        """Why the test was skipped: the reason of the last way that was tried. None where it passed or failed."""
        return None if self.passed or self.failed else list(self.skipped.values())[-1]


def listed() -> list[NodeTest]:
    """The tests of the operators that we read or fold."""
    return [test for test in node_tests() if test.operator in {*READERS, *FOLDED}]


def run(test: NodeTest) -> Result:
    """Tries `test` as it is, else with a batch in front; and as constants, where the operator is folded."""
    result = Result(test)
    wanted = DATA.get(test.operator, (0,))
    if test.operator in READERS:
        _as_activation(result, wanted, "")
        if test.operator in SECOND_CONSTANT:
            _as_activation(result, (0,), ", second constant")
    if test.operator in FOLDED:
        _try(result, "as constants", lambda: as_constants(test))
    return result


def _as_activation(result: Result, wanted: tuple[int, ...], suffix: str) -> None:
    for way, adapt in (("as it is", as_it_is), ("batch in front", batch_in_front)):
        _try(result, way + suffix, lambda adapt=adapt: adapt(result.test, wanted))  # type: ignore[misc]
        if result.skipped.get(way + suffix) not in ("batch", "empty"):
            break


def _try(result: Result, way: str, adapt: Callable[[], Adapted]) -> None:
    try:
        result.files += _through(adapt(), result.test)
    except NotAdapted as error:
        result.skipped[way] = str(error)
    except ModelRefused as error:
        reason = _reason(error.message)
        if reason is None:
            result.failed[way] = error.message
        else:
            result.skipped[way] = reason
            result.refused[way] = error.message
    except Exception as error:  # whatever it is, it is told, and the other tests go on
        result.failed[way] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    else:
        result.passed.append(way)


def _reason(message: str) -> str | None:
    for reason, (_, fragments) in REASONS.items():
        if any(fragment in message for fragment in fragments):
            return reason
    return None


def _through(adapted: Adapted, test: NodeTest) -> int:
    """Raises `AssertionError` where an output is wrong. Returns the number of files that were run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(adapted.model.SerializeToString())
        network = read_onnx(path)
    with torch.no_grad():
        found = network(*(torch.from_numpy(item) for item in adapted.data))
    _compare(
        adapted, [item.numpy() for item in (found if isinstance(found, tuple | list) else (found,))], "in torch", test
    )
    seen = set()
    runs = 0
    own = network.origin.opset
    for opset in (own, *(item for item in range(OLDEST_OPSET, NEWEST_OPSET + 1) if item != own)):
        model = _written(network, opset, own)
        versions = None if model is None else _versions(model, opset)
        if model is not None and versions not in seen:
            seen.add(versions)
            runs += 1
            onnx.checker.check_model(model, full_check=True)
            _compare(adapted, _run(model, opset, adapted.data), f"written for opset {opset}", test)
    return runs


def _written(network: Network, opset: int, own: int) -> ModelProto | None:
    """None where the opset cannot hold the network; the test's own must."""
    try:
        return to_onnx(network, opset=opset)
    except RecipeInvalid:
        if opset == own:
            raise
        return None


def _versions(model: ModelProto, opset: int) -> tuple[Any, ...]:
    """What decides what the file computes: its nodes, and the version of each operator in `opset`."""
    versions = [defs.get_schema(node.op_type, opset).since_version for node in model.graph.node]
    nodes = [node.SerializeToString(deterministic=True) for node in model.graph.node]
    return (*versions, *nodes)


def _run(model: ModelProto, opset: int, data: Sequence[Array]) -> list[Array]:
    given = {item.name: array for item, array in zip(model.graph.input, data, strict=True)}
    if opset > NEWEST_OF_RUNTIME:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's word on the infinities of a test
            return [np.asarray(item) for item in ReferenceEvaluator(model).run(None, given)]
    options = onnxruntime.SessionOptions()  # type: ignore[attr-defined]
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])  # type: ignore[attr-defined]
        return [np.asarray(item) for item in session.run(None, given)]
    except Exception as error:  # the runtime's own classes have no common root but this
        raise AssertionError(f"ONNX Runtime refuses it: {error}") from None


def _compare(adapted: Adapted, found: Sequence[Array], where: str, test: NodeTest) -> None:
    assert len(found) == len(adapted.outputs), where
    for a, b in zip(found, adapted.outputs, strict=True):
        assert a.shape == b.shape, f"{where}: the shape is {a.shape}, not {b.shape}"
        np.testing.assert_allclose(a, b, rtol=test.rtol, atol=max(test.atol, 1e-6), err_msg=where)


def page(results: Sequence[Result]) -> str:
    """What came of it, as Markdown: the counts, a row per operator, every test that was skipped and why."""
    passed = [result for result in results if result.passed and not result.failed]
    failed = [result for result in results if result.failed]
    reasons = Counter(result.reason for result in results if result.reason)
    lines = [
        "# onnx's node tests",
        "",
        f"`python -m bench.onnx_node_tests`, onnx {onnx.__version__}. Of {len(results)} backend node tests of the"
        f" {len({result.test.operator for result in results})} operators that Billhook reads or folds (of"
        f" {len({*READERS, *FOLDED})} on its list; onnx tests the others in no node by themselves),"
        f" **{len(passed)} pass**, {len(failed)} fail, {sum(reasons.values())} are skipped for a listed reason.",
        "",
        "A test that passes went through reader and torch, and through reader and writer: for the test's own opset and"
        " for every other opset at which an operator of the written file changed, run in ONNX Runtime (above opset"
        f" {NEWEST_OF_RUNTIME}: in onnx's reference evaluator): {sum(result.files for result in results)} files."
        " Every input but the data is made an initialiser; outputs that only training or unpooling reads are left out;"
        " `bench/node_cases.py` says how a test gets a batch. The tests called `_expanded`, which are these with the"
        " operator spelled out, are not among them.",
        "",
        "| skipped because of | tests |",
        "|---|---|",
        *(f"| {text} | {reasons.get(reason, 0)} |" for reason, (text, _) in REASONS.items()),
        "",
        "| operator | tests | passed | skipped | failed |",
        "|---|---|---|---|---|",
    ]
    by_operator: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_operator[result.test.operator].append(result)
    for operator, own in sorted(by_operator.items()):
        why = Counter(result.reason for result in own if result.reason)
        skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(why.items()))
        bad = sum(bool(result.failed) for result in own)
        good = sum(bool(result.passed) and not result.failed for result in own)
        lines.append(f"| {operator} | {len(own)} | {good} | {skipped or '-'} | {bad or '-'} |")
    lines += ["", "Skipped:", ""]
    for reason in REASONS:
        names = [result.test.name.removeprefix("test_") for result in results if result.reason == reason]
        if names:
            lines.append(f"- {reason}: {', '.join(names)}")
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- {result.test.name.removeprefix('test_')}: {_told(result.failed)}" for result in failed]
    return "\n".join(lines) + "\n"


def _told(failed: Mapping[str, str]) -> str:
    return "; ".join(f"{way}: {message}" for way, message in failed.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a test fails."""
    parser = argparse.ArgumentParser(prog="python -m bench.onnx_node_tests", description="onnx's node tests")
    parser.add_argument("operators", nargs="*", help="only these; the page is then not written")
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    results = [run(test) for test in listed() if not given.operators or test.operator in given.operators]
    text = page(results)
    print(text)
    if not given.operators:
        given.page.write_text(text)
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
