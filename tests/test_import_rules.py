"""The import rules hold, and each of them catches the violation it is there for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# contract -> (file that gets the line, the forbidden line)
VIOLATIONS = {
    "Imports point the way the data flows: api | worker -> store -> core": ("store/settings.py", "import api.errors"),
    "The store knows only core's torch-free modules": ("store/records.py", "import core.pipeline"),
    "core knows no web, queue or SQL": ("core/pipeline.py", "import sqlalchemy"),
    "api never loads torch, not even indirectly": ("core/recipe.py", "import torch"),
    "The worker's parent never loads torch: only its child runs core": ("worker/supervisor.py", "import core.pipeline"),
    "core's shared modules are torch-free": ("core/report.py", "import numpy"),
    "Methods do not import each other": ("core/methods/second_method.py", "import core.methods.filter_norm"),
    "The client imports only itself": ("client/billhook/__init__.py", "import core.recipe"),
}


def _lint(tree: Path, contract: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
    if contract is not None:
        command += ["--contract", contract]
    environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'client'}", "COLUMNS": "200"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, to seed violations in."""
    copy = tmp_path_factory.mktemp("tree")
    for folder in ("api", "worker", "core", "store", "client/billhook"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    # contracts get an id so that one can be run alone
    text = (ROOT / "pyproject.toml").read_text()
    for number in range(text.count("[[tool.importlinter.contracts]]\nname")):
        text = text.replace(
            "[[tool.importlinter.contracts]]\nname", f'[[tool.importlinter.contracts]]\nid = "c{number}"\nname', 1
        )
    (copy / "pyproject.toml").write_text(text)
    return copy


def _contracts() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]]


def test_every_contract_has_a_seeded_violation() -> None:
    assert set(VIOLATIONS) == set(_contracts())


def test_the_rules_hold(tree: Path) -> None:
    result = _lint(tree)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_caught(tree: Path, name: str) -> None:
    path, line = VIOLATIONS[name]
    file = tree / path
    before = file.read_text() if file.exists() else None
    try:
        file.write_text((before or "") + f"\n{line}\n")
        result = _lint(tree, f"c{_contracts().index(name)}")
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_text(before)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout


def test_importing_the_api_loads_no_torch() -> None:
    code = "import api.app, sys; assert 'torch' not in sys.modules; assert 'onnx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_importing_the_workers_parent_loads_no_torch() -> None:
    code = "import worker.app, worker.tasks, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
