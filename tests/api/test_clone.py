"""`clone` and `retry`: a new job like one that is there, checked as any other; the old one stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from api.openapi import _clone_request
from api.schemas.jobs import JobRequest
from store import jobs, leases, outbox
from store.columns import now_utc
from store.database import reading, transaction
from store.errors import NotFound
from store.records import Job, Model, OutboxMessage
from tests.api.conftest import MODEL_SUMMARY, RECIPE, Api, pointers, problem

SAME = ("name", "kind", "tags", "model", "datasets", "recipe", "requirements", "device")
ASKED: dict[str, Any] = {"name": "team/first", "kind": "other", "tags": ["a", "b"], "device": "cpu",
                         "requirements": {"accuracy_drop": "<= 0.01"}}  # fmt: skip


def shown(api: Api, job_id: str) -> dict[str, Any]:
    document: dict[str, Any] = api.http.get(f"/v1/jobs/{job_id}").json()
    return document


def in_state(api: Api, state: str, tmp_path: Path, **asked: Any) -> str:
    job_id = api.job(**asked)
    if state in ("running", "cancelling"):
        with transaction(api.services.engine) as session:
            assert leases.claim(session, job_id, "host:1", "cpu")
    if state in ("cancelled", "cancelling"):
        api.http.post(f"/v1/jobs/{job_id}/cancel")
    if state == "succeeded":
        api.succeed(job_id, {}, tmp_path)
    if state == "failed":
        with transaction(api.services.engine) as session:
            lease = leases.claim(session, job_id, "host:1", "cpu")
            assert lease is not None
            leases.finish(session, lease, "failed", error={"code": "x", "message": "y", "faults": []})
    assert shown(api, job_id)["state"] == state
    return job_id


STATES = ["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
OVER = STATES[3:]


@pytest.mark.parametrize("state", STATES)
def test_a_clone_of_a_job_in_any_state(api: Api, tmp_path: Path, state: str) -> None:
    job_id = in_state(api, state, tmp_path, **ASKED)
    before = shown(api, job_id)
    answer = api.http.post(f"/v1/jobs/{job_id}/clone")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["retry-after"] == "1"
    assert (job["state"], job["cloned_from"], job["attempts"]) == ("queued", job_id, [])
    assert {name: job[name] for name in SAME} == {name: before[name] for name in SAME}
    assert shown(api, job_id) == before, "it never changes"
    assert before["cloned_from"] is None
    (event,) = api.http.get(f"/v1/jobs/{job['id']}/events").json()["items"]
    body = {"state": "queued", "device": "cpu", "queue": "cpu", "cloned_from": job_id}
    assert {name: event["body"][name] for name in event["body"] if name != "request_id"} == body
    with reading(api.services.engine) as session:
        assert job["id"] in {message.subject_id for message in session.query(OutboxMessage)}


def test_a_clone_with_other_fields(api: Api) -> None:
    job_id = api.job(**ASKED)
    other = {"name": "second", "kind": "k", "tags": [], "device": "auto", "requirements": {"params_ratio": "<= 0.5"},
             "recipe": RECIPE | {"seed": 7}}  # fmt: skip
    job = api.http.post(f"/v1/jobs/{job_id}/clone", json=other).json()
    assert {name: job[name] for name in ("name", "kind", "tags", "device")} == {
        "name": "second", "kind": "k", "tags": [], "device": "auto",
    }  # fmt: skip
    assert job["recipe"]["seed"] == 7
    assert (job["requirements"]["params_ratio"], job["requirements"]["accuracy_drop"]) == ("<= 0.5", None)
    again = api.http.post(f"/v1/jobs/{job['id']}/clone", json={}).json()
    assert again["cloned_from"] == job["id"]
    assert again["recipe"] == job["recipe"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [({}, "filter_norm_half"), ({"recipe": "filter_norm_quick"}, "filter_norm_quick"), ({"recipe": RECIPE}, None)],
)
def test_the_name_of_the_recipe_goes_with_the_recipe(api: Api, changes: dict[str, Any], name: str | None) -> None:
    job_id = api.job(recipe="filter_norm_half")
    clone = api.http.post(f"/v1/jobs/{job_id}/clone", json=changes).json()["id"]
    with reading(api.services.engine) as session:
        assert session.get_one(Job, clone).recipe_name == name


def test_every_fault_of_a_clone_at_once(api: Api) -> None:
    job_id = api.job()
    changes = {"model": "mdl_x", "datasets": [], "name": 7, "device": "tpu", "colour": "red",
               "recipe": {"seed": -1, "steps": RECIPE["steps"]}, "requirements": {"speed": "<= 1"}}  # fmt: skip
    document = problem(api.http.post(f"/v1/jobs/{job_id}/clone", json=changes), 422, "request_invalid")
    assert pointers(document) == {"/model", "/datasets", "/name", "/device", "/colour", "/recipe/seed",
                                  "/requirements/speed"}  # fmt: skip
    for body in ("[]", '"x"', "null"):
        answer = api.http.post(
            f"/v1/jobs/{job_id}/clone", content=body, headers={"Content-Type": "application/json"}
        )  # fmt: skip
        assert pointers(problem(answer, 422, "request_invalid")) == {""}
    problem(api.http.post(f"/v1/jobs/{job_id}/clone", content=b"{}"), 415, "media_type_unsupported")
    assert len(api.http.get("/v1/jobs").json()["items"]) == 1


@pytest.mark.parametrize("what", ["clone", "retry"])
def test_what_is_gone_by_now_is_said(api: Api, tmp_path: Path, what: str) -> None:
    job_id = in_state(api, "succeeded", tmp_path)
    job = shown(api, job_id)
    assert api.http.delete(f"/v1/models/{job['model']}").status_code == 204
    assert api.http.delete(f"/v1/datasets/{job['datasets'][0]}").status_code == 204
    document = problem(api.http.post(f"/v1/jobs/{job_id}/{what}"), 422, "request_invalid")
    assert pointers(document) == {"/model", "/datasets/0"}
    with transaction(api.services.engine) as session:
        session.execute(update(Job).values(recipe={"steps": [{"method": "gone"}]}))
    document = problem(api.http.post(f"/v1/jobs/{job_id}/{what}"), 422, "request_invalid")
    assert {"/model", "/datasets/0"} < pointers(document)
    assert any(pointer.startswith("/recipe/steps/0") for pointer in pointers(document))


def test_a_model_that_was_deleted_and_is_checked_anew(api: Api, tmp_path: Path) -> None:
    model = api.model(b"refused at first", ready=False)
    api.check(model, summary=MODEL_SUMMARY)
    job_id = in_state(api, "cancelled", tmp_path, model=model)
    with transaction(api.services.engine) as session:
        session.get_one(Model, model).state = "checking"
    problem(api.http.post(f"/v1/jobs/{job_id}/retry"), 409, "input_not_ready")


@pytest.mark.parametrize("state", OVER)
def test_a_retry_of_a_job_that_is_over_is_a_new_one(api: Api, tmp_path: Path, state: str) -> None:
    job_id = in_state(api, state, tmp_path, **ASKED)
    before = shown(api, job_id)
    answer = api.http.post(f"/v1/jobs/{job_id}/retry")
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert (job["state"], job["cloned_from"]) == ("queued", job_id)
    assert job["id"] != job_id
    assert {name: job[name] for name in SAME} == {name: before[name] for name in SAME}
    assert shown(api, job_id) == before


def test_a_retry_of_a_queued_job_rings_for_it_at_once(api: Api) -> None:
    job_id = api.job()
    with transaction(api.services.engine) as session:
        (message,) = session.query(OutboxMessage).filter_by(subject_id=job_id)
        for _ in range(4):
            outbox.rung(session, message.id, now_utc())
    answer = api.http.post(f"/v1/jobs/{job_id}/retry", json={})
    assert (answer.status_code, answer.json()["id"], answer.headers["location"]) == (202, job_id, f"/v1/jobs/{job_id}")
    with reading(api.services.engine) as session:
        (message,) = session.query(OutboxMessage).filter_by(subject_id=job_id)
        assert (message.rings, message.topic, message.queue) == (0, "run", "cpu")
        assert message.next_at <= now_utc()


@pytest.mark.parametrize(("state", "doing"), [("running", "tried"), ("cancelling", "cancelled")])
def test_a_retry_of_a_job_that_an_attempt_holds(api: Api, tmp_path: Path, state: str, doing: str) -> None:
    job_id = in_state(api, state, tmp_path)
    document = problem(api.http.post(f"/v1/jobs/{job_id}/retry"), 409, "job_running")
    assert f"being {doing} already: attempt 1" in document["detail"]


@pytest.mark.parametrize("what", ["cancel", "retry"])
def test_what_takes_no_fields_refuses_them(api: Api, what: str) -> None:
    job_id = api.job()
    answer = api.http.post(f"/v1/jobs/{job_id}/{what}", json={"force": True, "x": 1})
    assert pointers(problem(answer, 422, "request_invalid")) == {"/force", "/x"}
    problem(api.http.post(f"/v1/jobs/{job_id}/{what}", content=b"now"), 415, "media_type_unsupported")
    assert shown(api, job_id)["state"] == "queued"


def test_cancelling_says_when_to_look_again(api: Api) -> None:
    answer = api.http.post(f"/v1/jobs/{api.job()}/cancel")
    assert (answer.status_code, answer.headers["retry-after"]) == (202, "1")


def test_the_document_of_a_clone_is_that_of_a_job() -> None:
    schema = _clone_request()
    assert set(schema["properties"]) == set(JobRequest.model_fields) - {"model", "datasets"}
    assert "required" not in schema
    assert not any("default" in field for field in schema["properties"].values())


def test_another_owners_job_does_not_exist(api: Api) -> None:
    job_id = api.job()
    for what in ("retry", "clone"):
        problem(api.other.post(f"/v1/jobs/{job_id}/{what}"), 404, "not_found")
    with transaction(api.services.engine) as session, pytest.raises(NotFound):
        jobs.ring(session, "bob", job_id)
