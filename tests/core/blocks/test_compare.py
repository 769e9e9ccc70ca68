"""Two reports held against each other, by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.block_report import BlockHistory
from core.blocks.analysis import analyses
from core.blocks.compare import main
from core.events import jsonable
from tests.core.blocks.test_analysis import FIRST, history, round_of

OTHER = history(
    round_of(1, {"a": 1, "b": 2, "c": 3, "d": 4, "e": float("inf")}, ["a"]),
    round_of(2, {"b": 2, "c": 1, "d": 3, "e": 4}, ["c"]),
)


def write(folder: Path, name: str, *steps: BlockHistory | None) -> str:
    found = [each.model_dump() for each in analyses(steps, [0] * len(steps), [])]
    path = folder / name
    path.write_text(json.dumps(jsonable({"variants": {}, "blocks": found}), allow_nan=False))
    return str(path)


def test_each_step_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write(tmp_path, "a.json", FIRST, None), write(tmp_path, "b.json", OTHER, OTHER)
    assert main([one, other, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["0"]
    assert told["0"]["with_run"] == other
    agreements = told["0"]["agreements"]
    assert [(each["removed"], each["overlap"]) for each in agreements] == [(0, None), (1, 0.0), (2, 0.5)]
    assert main([one, other]) == 0
    assert "| 2 | 50.00% | " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{}", "is no report"),
        ("nonsense", "is no report"),
        ('{"blocks": [{}]}', "is no report"),
        ('{"blocks": []}', "no step that removes blocks in both"),
    ],
)
def test_what_cannot_be_compared(content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    (tmp_path / "b.json").write_text(content)
    assert main([write(tmp_path, "a.json", FIRST), str(tmp_path / "b.json")]) == 2
    assert told in capsys.readouterr().err


def test_other_networks_and_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    other = OTHER.model_copy(update={"blocks": {"x": "group 1"}})
    one = write(tmp_path, "a.json", FIRST)
    assert main([one, write(tmp_path, "b.json", other)]) == 2
    assert "other networks" in capsys.readouterr().err
    assert main([one, str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
