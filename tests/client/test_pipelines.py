"""The pipeline examples say what the command understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from billhook.cli.app import main
from tests.client.fake_server import PRUNED, FakeServer

PIPELINES = Path(__file__).parent.parent.parent / "examples" / "pipelines"


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml", "Jenkinsfile"])
@pytest.mark.parametrize(("met", "code"), [(True, 0), (False, 3)])
def test_the_step_runs(
    name: str, met: bool, code: int, known_server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (PIPELINES / name).read_text()
    if name.endswith(".yml"):
        yaml.safe_load(text)
    match = re.search(r"billhook (prune .*?) > result\.json", text, re.DOTALL)
    assert match is not None
    arguments = shlex.split(match[1].replace("\\\n", " "))
    monkeypatch.chdir(tmp_path)
    known_server.requirements_met = met
    for file, content in {"model.onnx": "m", "images.zip": "z", "recipe.yaml": "steps: []"}.items():
        (tmp_path / file).write_text(content)
    assert main(arguments) == code
    assert (tmp_path / "pruned.onnx").read_bytes() == PRUNED
    assert (tmp_path / "report.md").exists()
