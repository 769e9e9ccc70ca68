"""Work folders: made, locked, and removed by whoever comes next."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.worker.fake_child import nest_folders
from worker import workdir
from worker.supervisor import clean_environment
from worker.workdir import remove_abandoned, work_directory


def abandon(root: Path, name: str) -> None:
    script = (
        "import os, sys, pathlib, worker.workdir as w\n"
        "context = w.work_directory(pathlib.Path(sys.argv[1]), sys.argv[2]); context.__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(root), name], env=clean_environment(root, None), check=False)


def test_work_folders_of_dead_workers_are_removed_and_no_others(tmp_path: Path) -> None:
    abandon(tmp_path, "att_dead")
    assert (tmp_path / "att_dead" / "inputs").is_dir()
    nest_folders(tmp_path / "att_dead" / "state", 1_500)
    with work_directory(tmp_path, "att_alive") as alive:
        assert remove_abandoned(tmp_path) == ["att_dead"]
        assert alive.is_dir()
        nest_folders(alive / "out", 1_500)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_removed_is_kept_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("att_stuck", "att_dead"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.lock").touch()
    real = subprocess.run

    def stuck(command: list[str], **options: object) -> object:
        failing = command[-1].endswith("att_stuck")
        return real(["false"] if failing else command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(workdir.subprocess, "run", stuck)
    assert remove_abandoned(tmp_path) == ["att_dead"]
    assert (tmp_path / "att_stuck.lock").exists()
    monkeypatch.undo()
    assert remove_abandoned(tmp_path) == ["att_stuck"]


def test_a_lock_that_is_removed_before_it_is_held_is_made_anew(tmp_path: Path) -> None:
    lock = tmp_path / "att_1.lock"
    entered = threading.Event()

    def work() -> None:
        with work_directory(tmp_path, "att_1"):
            entered.set()
            time.sleep(0.3)

    with lock.open("wb") as held:  # as one that starts and tidies up
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.2)  # it has opened the file and waits for the lock
        lock.unlink()
    assert entered.wait(2)
    assert remove_abandoned(tmp_path) == [], "the lock has its name again"
    thread.join()
    assert not list(tmp_path.iterdir())
