"""The same application on PostgreSQL, where requests really run side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from store.database import connect
from store.migrate import upgrade
from store.settings import Settings
from tests.api.conftest import RECIPE, Api, api, problem
from tests.store.conftest import empty, postgres_url

__all__ = ["api", "postgres_url"]  # fixtures


@pytest.fixture
def settings(settings: Settings, postgres_url: str) -> Settings:
    engine = connect(postgres_url)
    upgrade(engine)
    empty(engine)
    engine.dispose()
    return settings.model_copy(update={"database_url": postgres_url})


def together(call: Callable[[], Any], times: int) -> list[Any]:
    answers: list[Any] = []
    start = threading.Barrier(times)

    def work() -> None:
        start.wait()
        answers.append(call())

    threads = [threading.Thread(target=work) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == times
    return answers


def test_the_same_key_at_the_same_time_makes_one_job(api: Api) -> None:
    body = {"model": api.model(), "datasets": [api.dataset()], "recipe": RECIPE}
    headers = {"Idempotency-Key": "k"}
    answers = together(lambda: api.http.post("/v1/jobs", json=body, headers=headers), 6)
    for answer in answers:
        if answer.status_code != 202:
            problem(answer, 409, "idempotency_key_in_flight")
    good = [answer for answer in answers if answer.status_code == 202]
    assert len({answer.content for answer in good}) == 1, "the same to the byte"
    assert sum("idempotent-replayed" not in answer.headers for answer in good) == 1
    assert len(api.http.get("/v1/jobs").json()["items"]) == 1


def test_the_same_key_at_the_same_time_makes_one_upload(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    answers = together(
        lambda: api.http.post("/v1/models", params={"filename": "m.onnx"}, content=b"x", headers=headers), 6
    )
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert sum("idempotent-replayed" not in answer.headers for answer in answers if answer.status_code == 201) == 1


def test_the_same_upload_at_the_same_time_makes_one_model(api: Api) -> None:
    answers = together(lambda: api.http.post("/v1/models", params={"filename": "m.onnx"}, content=b"x"), 6)
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_a_model_is_deleted_or_used_but_not_both(api: Api) -> None:
    for number in range(4):
        model = api.model(bytes([number]))
        body = {"model": model, "datasets": [api.dataset()], "recipe": RECIPE}
        calls = [lambda: api.http.post("/v1/jobs", json=body), lambda: api.http.delete(f"/v1/models/{model}")]  # noqa: B023
        lock = threading.Lock()

        def either(calls: list[Any] = calls, lock: threading.Lock = lock) -> Any:
            with lock:
                call = calls.pop()
            return call()

        statuses = sorted(answer.status_code for answer in together(either, 2))
        assert statuses in ([202, 409], [204, 422], [204, 404]), statuses


def test_what_postgresql_cannot_hold_never_gets_there(api: Api) -> None:
    problem(api.http.get("/v1/jobs/job_%00"), 404, "not_found")
    problem(api.http.get("/v1/jobs?tag=%00"), 400, "parameter_invalid")
    assert api.http.get("/v1/jobs", params={"tag": 'x"\\', "name": "%_\\"}).json()["items"] == []
    answer = api.http.post("/v1/models", files={"file": ("m\udcff.onnx".encode("utf-8", "surrogateescape").decode(
        "latin-1"), b"y")})  # fmt: skip
    assert answer.status_code == 201, answer.text
