"""A job's lines can be found by its id, joined with the request that asked for it, and hold no secret."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from sqlalchemy import select

from store import jobs
from store.database import transaction
from store.logs import configure_logs
from store.records import Job
from store.settings import Settings
from tests.worker.house import House, wait_for
from worker.attempt import run_job
from worker.inspection import check_upload

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root, hook = logging.getLogger(), sys.excepthook
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], sys.excepthook = handlers, hook
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def test_every_line_of_an_attempt_says_whose_it_is(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", worker="here:1")
    template = house.job(do="die")
    with transaction(house.context.engine) as session:
        like = session.scalars(select(Job).where(Job.id == template)).one()
        job_id = jobs.create_job(
            session, owner="me", model_id=like.model_id, dataset_ids=like.dataset_ids, recipe=like.recipe, device="cpu",
            request_id="request-7", run_seconds_limit=60,
        ).id  # fmt: skip
    assert house.events(job_id)[0].body["request_id"] == "request-7"
    capsys.readouterr()
    run_job(house.context, job_id)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["claimed", "child ended", "attempt died", "attempt over"]
    for line in lines:
        assert (line["job"], line["attempt"], line["worker"]) == (job_id, 1, "here:1")
        assert line["request_id"] == "request-7"
    assert "the last words" in lines[1]["output_tail"], "what the child printed"
    assert structlog.contextvars.get_contextvars() == {}


def test_every_line_of_a_check_says_what_it_checks(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", worker="here:1")
    model_id = house.model("die")
    check_upload(house.context, model_id)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {line["event"] for line in lines} == {"child ended", "child died"}
    assert {line["subject"] for line in lines} == {model_id}


@pytest.mark.parametrize(
    ("away", "scheme", "told"),
    [("database", "postgresql+psycopg", "waiting for the database"), ("broker", "redis", "Cannot connect"),
     ("broker", "amqp", "Cannot connect")],
)  # fmt: skip
def test_a_worker_that_is_refused_says_no_password(
    settings: Settings, tmp_path: Path, away: str, scheme: str, told: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = os.environ | {
        "BILLHOOK_DATA_DIR": str(tmp_path), "BILLHOOK_RELAY_SECONDS": "0.1", "BILLHOOK_REAPER_SECONDS": "0.2",
        f"BILLHOOK_{away.upper()}_URL": f"{scheme}://someone:geheim@127.0.0.1:{port}/0",
        "BILLHOOK_LOG_LEVEL": "debug", "BILLHOOK_API_KEY": "bh_geheim_geheim_geheim",
    }  # fmt: skip
    path = tmp_path / "worker.log"
    with path.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker", "--queue", "cpu", "--name", "w1"], cwd=ROOT, env=environment,
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_for(lambda: told in path.read_text(), 60)
        said = path.read_text()
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(20)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    text = path.read_text()
    assert "geheim" not in text
    for line in said[: said.rindex("\n")].splitlines():  # as it ends, Celery writes past all logging
        assert json.loads(line)["worker"] == "w1", line
