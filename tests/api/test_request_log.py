"""What the log says of a request: what it was about, and what it made; never the key it came with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from store import events
from store.database import reading
from store.logs import configure_logs
from tests.api.conftest import Api

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(api: Api, capsys: pytest.CaptureFixture[str]) -> Lines:
    configure_logs("info")
    capsys.readouterr()

    def lines() -> list[dict[str, Any]]:
        said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        return [line for line in said if line["event"] == "request"]  # the client of the tests says something too

    return lines


def test_the_job_of_an_address(api: Api, lines: Lines) -> None:
    job_id = api.job()
    lines()
    api.http.get(f"/v1/jobs/{job_id}/events", headers={"X-Request-ID": "one"})
    (line,) = lines()
    assert (line["job"], line["request_id"]) == (job_id, "one")
    assert line["key_id"].startswith("key_")
    api.http.get("/v1/jobs")
    (line,) = lines()
    assert "job" not in line


def test_the_request_that_made_a_job_is_in_its_first_event(api: Api, lines: Lines) -> None:
    model, dataset = api.model(), api.dataset()
    lines()
    answer = api.http.post(
        "/v1/jobs", json={"model": model, "datasets": [dataset], "recipe": "filter_norm_half"},
        headers={"X-Request-ID": "the-request"},
    )  # fmt: skip
    job_id = answer.json()["id"]
    (line,) = lines()
    assert (line["job"], line["request_id"], line["status"]) == (job_id, "the-request", 202)
    with reading(api.services.engine) as session:
        (first,) = events.page(session, job_id)
        assert first.body["request_id"] == "the-request"


def test_an_upload_and_what_it_became(api: Api, lines: Lines) -> None:
    model_id = api.model(ready=False)
    assert [line["subject"] for line in lines()] == [model_id]
    api.http.get(f"/v1/models/{model_id}")
    assert [line["subject"] for line in lines()] == [model_id]


def test_the_key_is_in_no_line_whatever_fails(
    api: Api, lines: Lines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = api.http.headers["authorization"].removeprefix("Bearer ")

    def fail(*_: Any, **__: Any) -> None:
        raise OperationalError(f"SELECT {key}", {"key": key}, Exception("no password for postgresql://a:geheim@h/d"))

    api.http.get(f"/v1/jobs/{key}")
    api.http.get("/v1/jobs", params={"name": key, "odd": key})
    monkeypatch.setattr("api.auth.authenticate", fail)
    assert api.http.get("/v1/jobs").status_code == 503
    err = capsys.readouterr().err
    assert err.count("OperationalError") >= 1
    assert key not in err
    assert key.removeprefix("bh_") not in err
    assert "geheim" not in err
