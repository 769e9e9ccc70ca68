"""What people write in YAML and JSON arrives whole, or is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from billhook.documents import parse_document, read_document
from billhook.errors import InputInvalid


def test_numbers_are_those_of_json(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("base: &base {lr: 1e-4, decay: 1.0e-4, big: 2E+3}\nother: {<<: *base, lr: .5e1}\nname: '1e-4'\n")
    base = {"lr": 1e-4, "decay": 1e-4, "big": 2000.0}
    assert read_document(path, "a recipe") == {"base": base, "other": {**base, "lr": 5.0}, "name": "1e-4"}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("steps: [", "not valid YAML .line 2"),
        ("- 1", "holds no mapping; a recipe is one"),
        ("seed: 1\nversion: 1\nseed: 2", r"line 3, column 1\): 'seed' is there already, in line 1"),
        ("steps:\n- {method: x, target: {params: 0.5, params: 0.6}}", "line 2, column 37.*'params' is there already"),
        ('{"seed": 1, "seed": 2}', "'seed' is there already"),
        ("name: 2026-11-21", "JSON has no form for.*date"),
        ("name: 2026-13-41", "not valid YAML: month"),
        ("lr: .nan", "JSON has no form for"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_what_would_be_lost_is_refused(text: str, wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text + "\n")
    with pytest.raises(InputInvalid, match=wrong):
        read_document(path, "a recipe")


def test_arguments_in_json() -> None:
    assert parse_document('{"mean": [0.5]}', "--preprocess") == {"mean": [0.5]}
    with pytest.raises(InputInvalid, match="--preprocess: 'std' is there more than once"):
        parse_document('{"mean": [0.5], "std": [1], "std": [2]}', "--preprocess")
    with pytest.raises(InputInvalid, match="--splits is not valid JSON"):
        parse_document("{", "--splits")
