"""A command, run in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from billhook.cli.app import main
from tests.client.fake_server import KEY


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout, which must be one JSON document and nothing else."""
        return json.loads(self.out)


class Command:
    """Runs a command, and checks what must hold for every one of them."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Ran:
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        for text in (out, err):
            assert KEY not in text
            assert "Traceback" not in text
            assert "\x1b" not in text
            assert "\r" not in text
        return Ran(code, out, err)
