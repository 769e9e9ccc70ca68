"""`POST /v1/jobs?dry_run=true`: the faults of a job, the answer of a worker, and nothing that is kept."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from api import errors
from core.errors import BillhookError
from store import dry_runs
from store.database import reading, transaction
from store.records import DryRun, IdempotencyKey, Job, OutboxMessage
from tests.api.conftest import RECIPE, Api, pointers, problem
from tests.worker.reports import DRY_RUN

FAULT = {"pointer": "/steps/0/target/macs", "message": "0.2 is the least", "expected": "at least 0.2"}
TARGET = {"code": "target_unreachable", "message": "with every layer at its least width there remain macs 0.2",
          "faults": [FAULT]}  # fmt: skip


def body(api: Api, **given: Any) -> dict[str, Any]:
    return {"model": api.model(), "datasets": [api.dataset()], "recipe": RECIPE} | given


def ask(api: Api, wait: float | None = None, headers: dict[str, str] | None = None, **given: Any) -> httpx.Response:
    params = {"dry_run": "true"} | ({} if wait is None else {"wait": str(wait)})
    answer: httpx.Response = api.http.post("/v1/jobs", params=params, json=body(api, **given), headers=headers)
    return answer


def rows(api: Api) -> list[DryRun]:
    with reading(api.services.engine) as session:
        return list(session.scalars(select(DryRun)))


def nothing_is_kept(api: Api) -> bool:
    with reading(api.services.engine) as session:
        tables = (DryRun, Job, OutboxMessage, IdempotencyKey)
        return not any(session.scalars(select(table)).all() for table in tables)


def work(api: Api, dry_run_id: str, refusal: dict[str, Any] | None = None) -> None:
    """What a worker would do."""
    with transaction(api.services.engine) as session:
        lease = dry_runs.claim(session, dry_run_id, seconds=30)
        assert lease is not None
        if refusal is None:
            dry_runs.answer(session, lease, DRY_RUN)
        else:
            dry_runs.refuse(session, lease, refusal)


@contextmanager
def worker(api: Api, refusal: dict[str, Any] | None = None) -> Iterator[None]:
    """One that answers the first dry run that is asked."""

    def answer() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if found := rows(api):
                return work(api, found[0].id, refusal)
            time.sleep(0.02)

    thread = threading.Thread(target=answer)
    thread.start()
    yield
    thread.join()


def test_an_answer(api: Api) -> None:
    with worker(api):
        answer = ask(api)
    assert (answer.status_code, answer.json()) == (200, DRY_RUN)
    assert nothing_is_kept(api)


def test_what_is_asked_is_what_a_worker_gets(api: Api) -> None:
    asked = body(api, requirements={"accuracy": ">= 0.9"}, name="ignored", device="cpu")
    assert api.http.post("/v1/jobs", params={"dry_run": "true", "wait": "0"}, json=asked).status_code == 202
    (found,) = rows(api)
    assert (found.owner, found.model_id, found.dataset_ids) == ("ann", asked["model"], asked["datasets"])
    assert found.requirements["accuracy"] == ">= 0.9"
    assert found.recipe["steps"][0]["ratio_per_round"] == 0.05, "with every default"
    assert found.elsewhere is False


def test_a_job_on_a_gpu_is_not_timed(api: Api) -> None:
    object.__setattr__(api.services, "settings", api.settings.model_copy(update={"devices": ("cpu", "cuda:0")}))
    for device in ("auto", "cuda:0", "cpu"):
        assert ask(api, wait=0, device=device).status_code == 202
    assert [found.elsewhere for found in sorted(rows(api), key=lambda found: found.id)] == [True, True, False]


def test_what_the_job_would_fail_with_is_the_problem(api: Api) -> None:
    with worker(api, TARGET):
        document = problem(ask(api), 422, "target_unreachable")
    assert (document["detail"], document["faults"]) == (TARGET["message"], TARGET["faults"])
    assert nothing_is_kept(api)


@pytest.mark.parametrize("dry", [True, False])
def test_all_faults_of_the_submission_at_once_and_nothing_queued(api: Api, dry: bool) -> None:
    recipe = {"steps": [{"method": "filter_norm", "ratio_per_round": 2, "target": {"params": 1.5}}]}
    asked = {"model": "mdl_none", "datasets": ["ds_none"], "recipe": recipe, "device": "cuda:7", "colour": "red"}
    answer = api.http.post("/v1/jobs", params={"dry_run": str(dry).lower()}, json=asked)
    assert pointers(problem(answer, 422, "request_invalid")) == {
        "/model", "/datasets/0", "/recipe/steps/0/ratio_per_round", "/recipe/steps/0/target/params", "/device",
        "/colour",
    }  # fmt: skip
    assert nothing_is_kept(api)


def test_an_input_that_is_not_checked_yet(api: Api) -> None:
    asked = body(api, model=api.model(b"another", ready=False))
    answer = api.http.post("/v1/jobs", params={"dry_run": "true"}, json=asked)
    problem(answer, 409, "input_not_ready")
    assert rows(api) == []


def test_one_that_takes_longer_than_it_is_waited_for(api: Api) -> None:
    answer = ask(api, wait=0.1)
    assert answer.status_code == 202
    (found,) = rows(api)
    here = f"/v1/dry-runs/{found.id}"
    assert (answer.headers["location"], answer.headers["retry-after"]) == (here, "1")
    assert answer.json() == {
        "id": found.id, "state": "queued", "created_at": answer.json()["created_at"], "links": {"self": here},
    }  # fmt: skip
    first = found.wanted_until
    later = api.reader.get(here, params={"wait": "0.1"})
    assert (later.status_code, later.headers["location"]) == (202, here)
    assert rows(api)[0].wanted_until > first
    work(api, found.id)
    assert api.http.get(here).json() == DRY_RUN
    assert api.http.get(here).json() == DRY_RUN, "an answer that was lost may be asked for again"


def test_a_refusal_of_one_that_takes_long(api: Api) -> None:
    here = ask(api, wait=0).headers["location"]
    work(api, rows(api)[0].id, TARGET)
    problem(api.http.get(here), 422, "target_unreachable")


def test_a_waiting_request_is_answered_at_once(api: Api) -> None:
    here = ask(api, wait=0).headers["location"]
    with worker(api):
        assert api.http.get(here, params={"wait": "30"}).status_code == 200


def test_one_is_given_up(api: Api) -> None:
    here = ask(api, wait=0).headers["location"]
    assert api.reader.delete(here).status_code == 403
    assert api.http.delete(here).status_code == 204
    assert nothing_is_kept(api)
    for answer in (api.http.get(here), api.http.delete(here)):
        problem(answer, 404, "not_found")


def test_another_owner_has_none(api: Api) -> None:
    here = ask(api, wait=0).headers["location"]
    for answer in (api.other.get(here), api.other.delete(here)):
        problem(answer, 404, "not_found")
    for answer in (api.nobody.get(here), api.nobody.delete(here)):
        problem(answer, 401, "unauthenticated")
    assert len(rows(api)) == 1


def test_a_client_that_hangs_up_is_not_worked_for(api: Api) -> None:
    """The application called as a server calls it; the connection is gone as soon as the body is there."""
    content = json.dumps(body(api)).encode()
    headers = {"authorization": api.http.headers["authorization"], "content-type": "application/json"}
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": "/v1/jobs", "raw_path": b"/v1/jobs", "query_string": b"dry_run=true",
        "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    todo = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return todo.pop(0) if todo else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    began = time.monotonic()
    asyncio.run(api.app(scope, receive, send))
    assert time.monotonic() - began < 20, "60 s is what it would have been waited for"
    assert todo == []
    assert rows(api) == []


def test_an_idempotency_key_has_no_meaning(api: Api) -> None:
    for _ in range(2):
        with worker(api):
            answer = ask(api, headers={"Idempotency-Key": "once"})
        assert answer.status_code == 200
        assert "idempotent-replayed" not in answer.headers
    assert nothing_is_kept(api)
    problem(ask(api, headers={"Idempotency-Key": "a b"}), 400, "parameter_invalid")


def test_a_job_is_not_waited_for_as_it_is_submitted(api: Api) -> None:
    answer = api.http.post("/v1/jobs", params={"wait": "1"}, json=body(api))
    assert pointers(problem(answer, 400, "parameter_invalid")) == {"/wait"}
    answer = api.http.post("/v1/jobs", params={"dry_run": "perhaps"}, json=body(api))
    assert pointers(problem(answer, 400, "parameter_invalid")) == {"/dry_run"}
    assert api.http.post("/v1/jobs", params={"dry_run": "false"}, json=body(api)).status_code == 202
    with reading(api.services.engine) as session:
        assert len(session.scalars(select(Job)).all()) == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [("baseline_near_chance", 422), ("time_limit", 422), ("poison", 500), ("exactness_failed", 500),
     ("something new", 500)],
)  # fmt: skip
def test_a_reason_has_the_status_of_its_code(api: Api, code: str, status: int) -> None:
    with worker(api, {"code": code, "message": "so it is", "faults": []}):
        answer = ask(api)
    document = problem(answer, status, code if code in errors.STATUSES else "internal_error")
    assert document["detail"] == "so it is"


def test_whatever_core_refuses_of_a_job_has_a_status() -> None:
    def codes(kind: type[BillhookError]) -> set[str]:
        return {kind.code}.union(*(codes(each) for each in kind.__subclasses__() if each.__module__ == "core.errors"))

    ours = {BillhookError.code, "checkpoint_unusable", "exactness_failed", "parity_failed"}  # 500: no fault of theirs
    assert codes(BillhookError) - set(errors.STATUSES) == ours


def test_the_answers_are_described(api: Api) -> None:
    document = api.http.get("/openapi.json").json()
    submission = document["paths"]["/v1/jobs"]["post"]
    assert {parameter["name"] for parameter in submission["parameters"]} == {"Idempotency-Key", "dry_run", "wait"}
    schemas = {
        status: submission["responses"][status]["content"]["application/json"]["schema"] for status in ("200", "202")
    }
    assert schemas["200"] == {"$ref": "#/components/schemas/DryRunReport"}
    names = {each["$ref"].rpartition("/")[2] for each in schemas["202"]["anyOf"]}
    assert names == {"JobOut", "DryRunOut"}
    asked = document["paths"]["/v1/dry-runs/{dry_run_id}"]["get"]["responses"]
    assert asked["202"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/DryRunOut"}
