"""Processes that are kept running, and what they print."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from api.supervisor import Child, Supervisor


def test_a_log_is_rotated_while_its_process_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.supervisor.MAX_LOG_BYTES", 3_000)
    (tmp_path / "talking.py").write_text("import time\nfor n in range(9999): print(n, flush=True); time.sleep(0.0005)")
    child = Child("talking", ("talking",))
    supervisor = Supervisor([child], os.environ | {"PYTHONPATH": str(tmp_path)}, tmp_path)
    new, old = tmp_path / "talking.log", tmp_path / "talking.log.1"
    first: list[str] = []

    def watch() -> None:
        if old.exists() and not first:
            first.append(old.read_text())
        if first and old.read_text() != first[0] and new.stat().st_size > 0:
            supervisor.stop()

    supervisor.run(watch)
    assert first[0].startswith("0\n1\n")
    lines = [int(line) for line in (old.read_text() + new.read_text()).split()]
    assert lines[0] > 100
    assert lines == sorted(lines)
    assert new.read_bytes().isascii()
    assert b"\0" not in new.read_bytes(), "written at its end, not where the end was before"


def test_a_child_that_keeps_dying_is_started_ever_more_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.supervisor.FIRST_WAIT_SECONDS", 0.2)
    child = Child("dying", ("no_such_module_at_all",))
    supervisor = Supervisor([child], dict(os.environ), tmp_path)
    waits: list[float] = []

    def watch() -> None:
        if child.wait and (not waits or waits[-1] != child.wait):
            waits.append(child.wait)
        if len(waits) == 3:
            supervisor.stop()

    supervisor.run(watch)
    assert waits == [0.2, 0.4, 0.8]
    assert "No module named" in (tmp_path / "dying.log").read_text()
