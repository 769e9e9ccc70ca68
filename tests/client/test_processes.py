"""The command as a process of its own: signals, terminals, pipes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.fake_server import KEY, FakeServer

CLIENT = Path(__file__).parent.parent.parent / "client"


@pytest.fixture
def environment(fake: FakeServer) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(CLIENT), "LANG": "C.UTF-8",
            "BILLHOOK_SERVER": fake.url, "BILLHOOK_KEY": KEY, "PYTHONWARNINGS": "error"}  # fmt: skip


@pytest.fixture
def command(model_file: Path, tmp_path: Path) -> list[str]:
    return [sys.executable, "-m", "billhook", "prune", str(model_file), "--data", "builtin:digits", "--recipe", "half",
            "--output", str(tmp_path / "out.onnx")]  # fmt: skip


@pytest.fixture
def endless(fake: FakeServer) -> FakeServer:
    fake.job_plan = [{"state": "running", "stage": "prune", "progress": 0.5, "eta_seconds": 60.0}]
    return fake


def heed_signals() -> None:
    """In the child: a shell that starts the tests in the background has them, and what they start, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(command: list[str], environment: dict[str, str], **streams: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=environment, text=True, start_new_session=True, preexec_fn=heed_signals,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )  # type: ignore[call-overload,no-any-return]  # fmt: skip


@pytest.fixture
def running(endless: FakeServer, command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A `billhook prune --json` in the middle of its job."""
    process = start([*command, "--json"], environment)
    endless.wait_for("GET /v1/jobs/job_00000000000000000000000001/events")
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_cancels_the_job(running: subprocess.Popen[str], endless: FakeServer, number: int) -> None:
    running.send_signal(number)
    out, err = running.communicate(timeout=20)
    assert running.returncode == 130
    assert [job["state"] for job in endless.jobs.values()] == ["cancelled"]
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert json.loads(out)["job"]["id"] in endless.jobs
    assert json.loads(out)["job"]["state"] == "cancelled"
    assert json.loads(out)["cancelled"] is True
    assert "interrupt again to leave at once" in err
    assert "was cancelled" in err
    assert "Traceback" not in err
    assert KEY not in out + err


def test_interrupting_twice_leaves_at_once(running: subprocess.Popen[str], endless: FakeServer) -> None:
    cancel = "POST /v1/jobs/job_00000000000000000000000001/cancel"
    endless.failures[cancel] = ["hang"]
    running.send_signal(signal.SIGINT)
    endless.wait_for(cancel)
    time.sleep(1.1)
    asked = time.monotonic()
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert running.returncode == 130
    assert time.monotonic() - asked < 5
    document = json.loads(out)
    assert (document["error"]["code"], document["cancelled"]) == ("interrupted", False)
    assert f"may go on; cancel it with: billhook jobs cancel {document['job']['id']}" in err
    assert "Traceback" not in err


def test_signals_in_a_burst_are_one_interruption(running: subprocess.Popen[str], endless: FakeServer) -> None:
    """As build servers send them: to the process, then to its group; SIGINT, then SIGTERM, until it has gone."""
    running.send_signal(signal.SIGINT)
    end = time.monotonic() + 20
    while running.poll() is None and time.monotonic() < end:
        running.send_signal(signal.SIGTERM)
        time.sleep(0.002)
    out, err = running.communicate(timeout=20)
    assert running.returncode == 130
    assert [job["state"] for job in endless.jobs.values()] == ["cancelled"]
    assert json.loads(out)["cancelled"] is True
    assert "was cancelled" in err


def test_a_pipe_gets_no_control_characters(fake: FakeServer, command: list[str], environment: dict[str, str]) -> None:
    """Not even where a build server makes rich believe that it is a terminal."""
    process = start(command, environment | {"FORCE_COLOR": "1", "TERM": "xterm-256color"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    for code in ("\r", "\x1b[?25", "\x1b[2K", "\x1b[1A"):
        assert code not in out + err
    assert "fine_tune, 75 %" in err


def test_a_terminal_gets_a_bar_and_its_cursor_back(
    endless: FakeServer, command: list[str], environment: dict[str, str]
) -> None:
    ours, theirs = pty.openpty()
    process = start(command, environment | {"TERM": "xterm", "COLUMNS": "120"}, stderr=theirs)
    os.close(theirs)
    endless.wait_for("GET /v1/jobs/job_00000000000000000000000001/events")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        shown += part
    process.communicate(timeout=20)
    os.close(ours)
    assert process.returncode == 130
    assert b"50%" in shown
    assert b"prune" in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


def test_a_reader_that_leaves_is_no_error(fake: FakeServer, environment: dict[str, str]) -> None:
    for _ in range(300):
        fake.submit({"model": "mdl_1", "datasets": ["ds_1"], "recipe": "half"})
    process = start([sys.executable, "-m", "billhook", "jobs", "list", "--limit", "300", "--json"], environment)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(30)
    assert err == ""


def test_the_library_does_not_load_the_command(environment: dict[str, str]) -> None:
    code = "import billhook, sys; print([name for name in ('typer', 'torch') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
