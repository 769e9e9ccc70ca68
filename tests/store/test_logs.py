"""The log: one JSON object a line, with what was bound, whoever says it, and without secrets."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.contextvars import bound_contextvars

from store.keys import new_secret
from store.logs import ContextThread, configure_logs, without_secrets

ROOT = Path(__file__).parent.parent.parent
KEY = new_secret()
log = structlog.get_logger("billhook.test")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root, hook = logging.getLogger(), sys.excepthook
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], sys.excepthook = handlers, hook
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_has_what_was_bound_and_what_is_always_there(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", worker="here:1")
    with bound_contextvars(job="job_1", attempt=2):
        log.info("claimed", device="cpu")
        logging.getLogger("some.library").warning("odd: %s", 3)
    log.debug("too much")
    logging.getLogger("httpx").info("a request of a library")
    ours, theirs = lines(capsys)
    assert ours.pop("timestamp").endswith("Z")
    assert ours == {
        "event": "claimed", "level": "info", "worker": "here:1", "job": "job_1", "attempt": 2, "device": "cpu"
    }  # fmt: skip
    assert (theirs["event"], theirs["job"], theirs["worker"], theirs["level"]) == (
        "odd: 3",
        "job_1",
        "here:1",
        "warning",
    )


def test_a_thread_of_an_attempt_says_whose_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    class Beat(ContextThread):
        def work(self) -> None:
            log.warning("heartbeat failed")

    configure_logs("info")
    with bound_contextvars(job="job_1"):
        ours = Beat("heartbeat")
        others = threading.Thread(target=lambda: log.info("of nobody"))
    for thread in (ours, others):
        thread.start()
        thread.join()
    first, second = lines(capsys)
    assert first["job"] == "job_1"
    assert "job" not in second


def test_what_cannot_be_json_is_no_reason_to_fail(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info")
    log.info("odd", of=object(), text="\ud800")
    (line,) = lines(capsys)
    assert "object" in line["of"]


@pytest.mark.parametrize(
    ("said", "left"),
    [
        pytest.param(f"the key {KEY} is unknown", "the key bh_… is unknown", id="key"),
        ("postgresql+psycopg://ann:geh@im@db.example/records", "postgresql+psycopg://ann:…@db.example/records"),
        ("amqp://ann:geheim@mq:5672//", "amqp://ann:…@mq:5672//"),
        ("redis://:geheim@cache/0", "redis://:…@cache/0"),
        ("authorization: Bearer abc.def", "authorization: Bearer …"),
        ("postgresql://db/x?user=ann&password=geheim&sslmode=require", "postgresql://db/x?user=ann&password=…&sslmode=require"),
        ("aws_secret_access_key='geheim'", "aws_secret_access_key='…'"),
        ('{"password": "geheim"}', '{"password": "…"}'),
        ("https://host/x?X-Amz-Signature=abc123&a=1", "https://host/x?X-Amz-Signature=…&a=1"),
        ("http://127.0.0.1:8470/v1/jobs at 12:30", "http://127.0.0.1:8470/v1/jobs at 12:30"),
        ("job_06c3a3w7sakjyna0txn9eb5vqs", "job_06c3a3w7sakjyna0txn9eb5vqs"),
    ],
)  # fmt: skip
def test_secrets_are_left_out(said: str, left: str) -> None:
    assert without_secrets(said) == left


def test_so_are_those_in_a_traceback_of_whoever(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info")
    try:
        raise ValueError(f"cannot use {KEY} at postgresql://a:geheim@h/d")
    except ValueError:
        log.exception("failed")
        logging.getLogger("some.library").exception("failed too")
    err = capsys.readouterr().err
    assert err.count("ValueError") >= 2
    assert KEY not in err
    assert "geheim" not in err
    assert all(json.loads(line) for line in err.splitlines())


def test_what_has_a_secret_name_is_left_out_and_the_line_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info")
    log.info("odd", password=None, api_token="abc", of={"token": 3, "password": "geheim", "in": [{"secret": "geheim"}]})
    (line,) = lines(capsys)
    assert line["password"] is None
    assert line["api_token"] == "…"
    assert line["of"] == {"token": 3, "password": "…", "in": [{"secret": "…"}]}


def test_what_nobody_caught_is_a_line_too() -> None:
    code = "from store.logs import configure_logs; configure_logs(); raise OSError('postgresql://a:geheim@h/d')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert line["level"] == "critical"
    assert "OSError: postgresql://a:…@h/d" in line["exception"]
