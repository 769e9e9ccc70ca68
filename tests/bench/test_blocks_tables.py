"""The benchmark of block removal on canned results: rankings, rules, tables, what is missing, what is run again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench import blocks
from bench.blocks_findings import Claim, close, findings, judged, less, together
from bench.blocks_page import page
from bench.blocks_results import Results, correlation_interval, differences, mean_and_error
from bench.blocks_rows import Row, Study, fade_epochs, rows
from bench.blocks_thesis import sections
from core.errors import RecipeInvalid
from core.recipe import parse_recipe

STUDY = Study()
ROWS = {row.name: row for row in rows(STUDY)}
BLOCKS = [f"layer{stage}.{place}" for stage in (1, 2, 3) for place in range(3)]


def one(row: Row, seed: int, error: float, *, order: list[str] = BLOCKS, study: Study = STUDY) -> dict[str, Any]:
    """A result: after k removals the error is `error` less a hundredth for each that was still to come; a fine-tuning
    at the end takes a hundredth more off."""
    step = row.recipe["steps"][-1]
    left = step["target"]["blocks"]
    number = study.blocks - left
    tuned = step["fine_tune"]["epochs"] > 0
    scores = {name: float(place) for place, name in enumerate(order)}
    history = {
        "blocks": dict.fromkeys(sorted(order), "group"),
        "rounds": [
            {
                "round": k,
                "removed": [order[k - 1]],
                "left": {},
                "params": 1000 - 100 * k,
                "scores": scores,
                "scored_after": k - 1,
                "accuracy_before": 0.9,
                "accuracy_cut": 0.5 - k / 100,
                "accuracy_tuned": 0.8 if tuned and k == number else None,
                "whole": tuned and k == number,
            }
            for k in range(1, number + 1)
        ],
    }
    rounds = [
        {
            "blocks": study.blocks - k,
            "test_error": error - (number - k) / 100,
            "tuned_error": error - 0.01 if tuned and k == number else None,
        }
        for k in range(1, number + 1)
    ]
    return {
        "row": row.name, "seed": seed, "signature": row.signature(study), "recipe": row.recipe, "start": row.start,
        "status": "done", "error": None, "test_error": rounds[-1]["tuned_error"] or error, "validation_error": 0.2,
        "blocks": left, "params": 1000 - 100 * number, "original_params": 1000, "original_test_error": 0.1,
        "cost": {"epoch_params_kept": 2_000_000 * (seed + 1), "epoch_params": 3_000_000}, "history": history,
        "rounds": rounds, "warnings": [], "torch": "", "seconds": 1.0,
    }  # fmt: skip


def results(folder: Path, **errors: list[float]) -> Results:
    """Of the rows named (`loops_4__oracle__half`), an error for each seed."""
    found = Results(STUDY, folder)
    for name, values in errors.items():
        row = next(row for row in ROWS.values() if row.name.replace("-", "_").replace("/", "__") == name)
        for seed, error in enumerate(values):
            found.add(one(row, seed, error))
    return found


# --- rows ---


AWAITED = {"/steps/0/fine_tune/rewind", "/steps/1/fine_tune/rewind", "/baselines/0/scratch/structure"}
"""Fields of recipes that are being built."""


@pytest.mark.parametrize("study", [STUDY, Study(epochs=1), Study(60_000, 56, 10), Study(60_000, 110, 50, "cuda:0")])
def test_every_row_is_a_recipe(study: Study) -> None:
    wrong = set()
    for row in rows(study):
        try:
            recipe = parse_recipe({**row.recipe, "seed": 1})
        except RecipeInvalid as error:
            wrong |= {fault.pointer for fault in error.faults}
            continue
        assert recipe.uses_pruning_split <= row.pruning_split, row.name
        assert bool(recipe.baselines) == row.control
    assert wrong <= AWAITED


def test_targets_are_the_thesis_own_for_its_network() -> None:
    assert Study(depth=110).targets == {"half": 27, "most": 9}
    assert STUDY.targets == {"half": 4, "most": 3}
    assert Study(epochs=50).checkpoints == (0, 1, 30, 250, 450)
    assert (Study(epochs=50).original_epochs, Study(epochs=50).long_epochs) == (500, 400)
    assert [fade_epochs(Study(epochs=epochs)) for epochs in (50, 3, 1)] == [(10, 25), (1, 2), (1, 1)]


# --- rankings ---


def test_how_alike_runs_choose(tmp_path: Path) -> None:
    found = Results(STUDY, tmp_path)
    found.add(one(ROWS["none/oracle"], 0, 0.3))
    turned = [BLOCKS[1], BLOCKS[0], *BLOCKS[2:]]
    found.add(one(ROWS["none/random"], 0, 0.3, order=turned))
    assert found.agreement("none/random", 0) == {0: pytest.approx(1 - 2 / 36)}  # one of 36 pairs is turned
    assert found.mean_agreement("none/oracle") == {0: 1.0}
    assert found.agreement("none/random", 6) == {}  # there is no such round
    found.add(one(ROWS["none/oracle"], 1, 0.3, order=list(reversed(BLOCKS))))
    # six go, from one end and from the other; what is left is tied, three pairs in each run; the 30 others are turned
    assert found.between_networks() == [pytest.approx(-30 / 33)]


def test_a_correlation_has_an_interval() -> None:
    found, low, high = correlation_interval([(1, 1), (2, 3), (3, 2), (4, 5), (5, 4)]) or (0, 0, 0)
    assert found == pytest.approx(0.8)
    assert (low, high) == pytest.approx((-0.2796, 0.9862), abs=1e-3)  # tanh(atanh(0.8) ± 1.96 / √2)
    assert correlation_interval([(1, 1), (1, 2), (1, 3), (1, 4)]) is None


# --- rules ---


def test_what_is_less_and_what_is_close() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert less([1.0, 2.0, 3.0]) == "confirmed"  # 2 > 2 · 0.58
    assert less([-1.0, -2.0, -3.0]) == "not confirmed"
    assert less([0.0, 1.0, 2.0]) == "too little to tell"  # 1 < 2 · 0.58
    assert less([0.0, 0.0, 0.0]) == "too little to tell"
    assert less([5.0]) == "too little to tell"
    assert close([0.1, -0.1, 0.0], 1.0) == "confirmed"
    assert close([0.9, 0.9, 1.0], 1.0) == "confirmed"  # 0.933 + 2 · 0.033
    assert close([0.9, 1.0, 1.0], 1.0) == "too little to tell"
    assert close([3.0, 3.1, 2.9], 1.0) == "not confirmed"
    assert together(["confirmed", "too little to tell"]) == "too little to tell"
    assert together(["confirmed", "not confirmed", "too little to tell"]) == "not confirmed"
    assert together(["confirmed", "confirmed"]) == "confirmed"


def test_differences_are_of_the_same_network(tmp_path: Path) -> None:
    found = results(tmp_path, once__half=[0.20, 0.30, 0.40], loops_4__oracle__half=[0.18, 0.28])
    assert differences(found.error("loops-4/oracle/half"), found.error("once/half")) == pytest.approx([2.0, 2.0])
    verdict, told = Claim("loops-4/oracle/half", "once/half").judged(found)
    assert (verdict, told) == ("confirmed", "loops-4/oracle/half < once/half: +2.00 ± 0.00 points")
    assert Claim("once/half", "loops-4/oracle/half").judged(found)[0] == "not confirmed"


def test_a_finding_without_results_is_too_little_to_tell(tmp_path: Path) -> None:
    assert {verdict for _, _, verdict, _ in judged(Results(STUDY, tmp_path))} == {"too little to tell"}


def test_findings_only_speak_of_rows_that_there_are() -> None:
    named = {row for finding in findings(Results(STUDY, Path())) for claim in finding.claims
             for row in (claim.one, claim.other)}  # fmt: skip
    named |= {row for section in sections(STUDY) for line in section.lines for row in (line.half, line.most) if row}
    assert named == set(ROWS)  # and every row is told of


# --- what is told ---


def test_a_run_without_fine_tuning_is_told_at_every_size(tmp_path: Path) -> None:
    found = results(tmp_path, none__oracle=[0.30, 0.32])
    assert found.error("none/oracle") == pytest.approx({0: 30.0, 1: 32.0})
    assert found.error("none/oracle", 4) == pytest.approx({0: 29.0, 1: 31.0})  # one was still to go
    assert found.removed_params("none/oracle", 4) == pytest.approx({0: 50.0, 1: 50.0})
    assert found.mean_agreement("none/oracle") == {0: 1.0, 1: 1.0}


def test_accuracies_around_fine_tunings(tmp_path: Path) -> None:
    ((before, after),) = results(tmp_path, once__half=[0.3]).before_and_after()
    assert (before, after) == pytest.approx((0.45, 0.8))  # 0.5 - 5 / 100, after the fifth removal


def test_the_page(tmp_path: Path) -> None:
    found = results(tmp_path, once__half=[0.21, 0.23], none__oracle=[0.30, 0.32])
    failed = {**one(ROWS["soft/half"], 0, 0.5), "status": "failed", "error": "KeyError: 'soft'\nmore"}
    found.add(failed)
    text = page(found, list(ROWS.values()), range(2), command="python -m bench.blocks", raw="blocks.json")
    assert (
        "| once | 21.00 ± 1.00 | 3.0 ± 1.0 | 50 ± 0 | 6.95 ± 0.15, cost 35.6 | – | – | 10.56 ± 0.55, cost 7.4 |" in text
    )
    assert (
        "| `oracle` | 26.00 ± 1.00 | 27.00 ± 1.00 | 28.00 ± 1.00 | 29.00 ± 1.00 | 30.00 ± 1.00 | 31.00 ± 1.00 |" in text
    )
    assert "- soft/half (seed 0): KeyError: 'soft'\n" in text
    missing = next(line for line in text.splitlines() if line.startswith("**Not complete**"))
    assert missing.startswith(
        f"**Not complete**: {len(ROWS) - 2} of {len(ROWS)} rows are missing; `python -m bench.blocks`"
    )
    assert "soft/half (seed 1)" in missing
    assert "once/half" not in missing
    assert "{" not in text


def test_a_result_of_another_recipe_is_left_aside(tmp_path: Path) -> None:
    results(tmp_path, once__half=[0.2])
    again = Results(STUDY, tmp_path)
    again.read([Row("once/half", {**ROWS["once/half"].recipe, "name": "other"})], range(1))
    assert again.found == {}
    again.read([ROWS["once/half"]], range(2))
    assert again.status("once/half", 0) == "done"
    assert again.status("once/half", 1) is None


# --- going on ---


class Runner:
    """Stands for `run_row`: canned results, interrupted after `most`."""

    def __init__(self, most: int | None = None) -> None:
        self.done: list[tuple[str, int]] = []
        self._most = most

    def __call__(self, row: Row, study: Study, original: int, *others: Any) -> dict[str, Any]:
        if len(self.done) == self._most:
            raise KeyboardInterrupt
        self.done.append((row.name, original))
        found = one(row, original, 0.3, study=study)
        return {**found, "status": "failed", "error": "E: e"} if row.name == "none/random" else found


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(blocks, "original", lambda study, seed, *others: seed)
    monkeypatch.setattr(blocks, "Images", lambda *arguments: type("Images", (), {"whole": None}))

    def run(runner: Runner, *arguments: str) -> str:
        monkeypatch.setattr(blocks, "run_row", runner)
        given = ["--work", str(tmp_path), "--results", str(tmp_path), "--seeds", "2", "--rows", "none/*", *arguments]
        blocks.main(given)
        return (tmp_path / "blocks.md").read_text()

    return run


def test_an_interrupted_run_goes_on_row_by_row(go: Any, tmp_path: Path) -> None:
    first, second = Runner(most=3), Runner()
    with pytest.raises(KeyboardInterrupt):
        go(first)
    assert first.done == [("none/oracle", 0), ("none/oracle", 1), ("none/random", 0)]
    assert "**Not complete**" in (tmp_path / "blocks.md").read_text()
    text = go(second)
    assert second.done[0] == ("none/random", 1)
    assert not set(first.done) & set(second.done)
    assert "- none/random (seed 0, 1): E: e" in text
    raw = json.loads((tmp_path / "blocks.json").read_text())
    assert set(raw["rows"]["none/oracle"]) == {"0", "1"}
    third = Runner()
    go(third)
    assert third.done == []
    go(third, "--again", "failed")
    assert third.done == [("none/random", 0), ("none/random", 1)]
    go(third, "--again", "all", "--minutes", "0")
    assert len(third.done) == 2


def test_what_there_is_is_listed(go: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(Runner(most=3))
    capsys.readouterr()
    blocks.main(["--work", str(tmp_path), "--seeds", "2", "--list", "--rows", "none/oracle", "none/r*"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["none/oracle", "done,", "done"], ["none/random", "failed,", "missing"]]
    with pytest.raises(SystemExit, match="no row is called nonsense"):
        blocks.main(["--work", str(tmp_path), "--list", "--rows", "nonsense"])
