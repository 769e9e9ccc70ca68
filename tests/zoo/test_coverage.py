"""The harness of `bench.coverage`: limits, resuming, what counts as a pass, defects told loudly."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import coverage, coverage_row, zoo
from bench.coverage_table import defects, passed, write
from bench.zoo import Prepared, Row
from core.graph.architectures import build
from core.graph.export import write_onnx

ROWS = [Row("light", name, "onnx") for name in ("a", "b", "c")]


def good(row: Row, cache: Path, work: Path) -> dict[str, Any]:
    return {
        "row": row.name, "stage": "passed", "free_conv": 0.9, "forbidden_by": [], "removed_at_half": 0.7,
        "import_error": 1e-7, "import_bound": 1e-5, "exactness_error": 1e-15, "exactness_bound": 1e-9,
        "parity_error": 1e-7, "parity_bound": 1e-5,
    }  # fmt: skip


def run(measure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, folder: Path, **limits: float) -> dict[str, Any]:
    monkeypatch.setattr(coverage_row, "measure", measure)
    limits = {"seconds": 60, "memory": 8, **limits}
    (result,) = coverage.run_all(ROWS[:1], folder, jobs=1, **limits)  # type: ignore[arg-type]
    return result


def test_a_row_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(lambda *_: time.sleep(600), monkeypatch, tmp_path, seconds=1)
    assert (result["stage"], result["error"]) == ("time", "not done after 1 s")
    assert not passed(result)


def test_a_row_that_takes_too_much_memory_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def grow(*_: Any) -> None:
        held = [torch.ones(2**28)]  # a GiB
        time.sleep(600)
        held.clear()

    result = run(grow, monkeypatch, tmp_path, memory=0.9)
    assert (result["stage"], result["error"]) == ("memory", "more than 0.9 GiB")


def test_a_row_that_dies_is_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(lambda *_: os._exit(7), monkeypatch, tmp_path)
    assert (result["stage"], result["error"]) == ("crash", "the process ended with code 7")


def started(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, list[str]]:
    """`main` over ROWS. Returns its exit code and the rows that were run."""
    seen = folder / "seen"
    seen.unlink(missing_ok=True)

    def noting(row: Row, cache: Path, work: Path) -> dict[str, Any]:
        with seen.open("a") as file:
            file.write(row.network)
        return measure(row, cache, work)

    measure = coverage_row.measure
    monkeypatch.setattr(coverage_row, "measure", noting)
    monkeypatch.setattr(coverage, "warm_up", lambda: None)
    monkeypatch.setattr(zoo, "missing", list)
    monkeypatch.setattr(zoo, "rows", lambda: ROWS)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1")
    monkeypatch.setattr("sys.argv", ["coverage", "--results", str(folder), "--cache", str(folder), *arguments])
    code = coverage.main()
    monkeypatch.setattr(coverage_row, "measure", measure)
    return code, sorted(seen.read_text()) if seen.exists() else []


def test_what_is_there_is_not_run_again_unless_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def failing(row: Row, cache: Path, work: Path) -> dict[str, Any]:
        error = {"stage": "import", "error": "operator Loop at node 'n'", "operator": "Loop"}
        return good(row, cache, work) if row.network != "b" else {"row": row.name, **error}

    monkeypatch.setattr(coverage_row, "measure", failing)
    assert started(tmp_path, monkeypatch, "--only", "light/a*") == (0, ["a"])
    assert started(tmp_path, monkeypatch) == (0, ["b", "c"])
    assert started(tmp_path, monkeypatch) == (0, [])
    assert started(tmp_path, monkeypatch, "--redo", "light/c*") == (0, ["c"])
    assert started(tmp_path, monkeypatch, "--failed") == (0, ["b"])
    monkeypatch.setattr(coverage, "code_version", lambda kind: "another")
    assert started(tmp_path, monkeypatch, "--stale", "--only", "light/[ab]*") == (0, ["a", "b"])
    assert started(tmp_path, monkeypatch, "--list") == (0, [])
    stored = [json.loads(line) for line in (tmp_path / "coverage.jsonl").read_text().splitlines()]
    assert [item["row"] for item in stored] == [row.name for row in ROWS]
    page = (tmp_path / "coverage.md").read_text()
    assert "| light | 3 | 3 | 2 | 66.7% | 100% | 0 |" in page
    assert "| light/b.onnx | import | Loop | operator Loop at node 'n' |" in page


def test_a_line_that_a_crash_cut_off_is_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(coverage_row, "measure", good)
    started(tmp_path, monkeypatch, "--only", "light/[ab]*")
    text = (tmp_path / "coverage.jsonl").read_text()
    (tmp_path / "coverage.jsonl").write_text(text[:-20])
    assert started(tmp_path, monkeypatch) == (0, ["b", "c"])


@pytest.mark.parametrize("name", ["import", "exactness", "parity"])
def test_an_error_above_its_bound_is_a_defect(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(row: Row, cache: Path, work: Path) -> dict[str, Any]:
        return {**good(row, cache, work), "stage": name, f"{name}_error": 0.5, "error": "too much"}

    monkeypatch.setattr(coverage_row, "measure", wrong)
    code, _ = started(tmp_path, monkeypatch)
    assert code == 1
    assert "DEFECT light/a.onnx" in capsys.readouterr().err
    assert "- **DEFECT** `light/a.onnx`" in (tmp_path / "coverage.md").read_text()


def test_an_error_that_is_no_number_is_a_defect() -> None:
    result = {**good(ROWS[0], Path(), Path()), "exactness_error": float("nan")}
    assert len(defects(result)) == 1


def test_few_free_channels_need_an_operator_that_forbids_them(tmp_path: Path) -> None:
    few = {**good(ROWS[0], Path(), Path()), "free_conv": 0.4, "seconds": 1.0}
    assert not passed(few)
    told = {**few, "forbidden_by": [["lrn", "it reads neighbours", 0.6]]}
    assert passed(told)
    write([told], ROWS, tmp_path / "page.md")
    assert "| light/a.onnx | 40% | lrn (60%): it reads neighbours |" in (tmp_path / "page.md").read_text()


# --- one row ---------------------------------------------------------------------------------------------------------


def prepared(path: Path, network: Any, outputs: torch.Tensor | None = None) -> Prepared:
    write_onnx(network, path)
    images = network.example_input(2)
    return Prepared(path, (images,), (network(images).detach() if outputs is None else outputs,))


def test_a_row_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = build("resnet20", num_classes=10, image_size=(16, 16)).eval()
    made = prepared(tmp_path / "model.onnx", network)
    monkeypatch.setattr(coverage_row, "prepare", lambda row, cache: made)
    result = coverage_row.measure(ROWS[0], tmp_path, tmp_path)
    assert result["stage"] == "passed", result
    assert result["free_conv"] == 1
    assert 0.7 < result["removed_at_half"] < 0.76
    assert result["exactness_error"] < 1e-12
    assert not defects({**result, "seconds": 1.0})


def test_a_network_that_is_not_what_its_maker_computes_is_a_defect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = build("resnet20", num_classes=10, image_size=(16, 16)).eval()
    made = prepared(tmp_path / "model.onnx", network, torch.ones(2, 10))
    monkeypatch.setattr(coverage_row, "prepare", lambda row, cache: made)
    result = coverage_row.measure(ROWS[0], tmp_path, tmp_path)
    assert result["stage"] == "import"
    assert "differs from its source" in result["error"]
    assert len(defects(result)) == 1


def test_a_model_that_cannot_be_read_is_a_failure_with_its_operator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    made = Prepared(path, (torch.zeros(2, 3, 8, 8),), (torch.zeros(2, 10),))
    monkeypatch.setattr(coverage_row, "prepare", lambda row, cache: made)
    result = coverage_row.measure(ROWS[0], tmp_path, tmp_path)
    assert result["stage"] == "import"
    assert "no ONNX model" in result["error"]


# --- weights worth measuring with ------------------------------------------------------------------------------------


def test_constant_parameters_become_random_and_the_others_stay() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    weight = module[0].weight.detach().clone()
    zoo.randomise(module)
    assert torch.equal(module[0].weight, weight)
    assert module[1].weight.std() > 0
    assert module[1].bias.std() > 0
    assert bool((module[1].weight >= 0.5).all())


def test_an_adaptive_pooling_is_given_a_multiple() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.AdaptiveAvgPool2d(6)).eval()
    assert zoo.divides(module, 12)
    assert not zoo.divides(module, 16)
