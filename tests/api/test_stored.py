"""What is shown of records that are not as they should be: one of them never hides the others."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest

from store.database import transaction
from store.leases import append_events, claim
from store.records import Attempt, Event, Job, Model
from tests.api.conftest import Api

DEEP: Any = reduce(lambda inner, _: {"x": inner}, range(400), {})


@pytest.mark.parametrize("odd", [{"ratios": "x", "target_met": {}}, {"more": DEEP}, [], 3, "x"])
def test_odd_results(api: Api, odd: Any) -> None:
    assert _shown(api, results=odd)["results"] is None


@pytest.mark.parametrize("odd", [{}, [], {"code": 3, "message": "m"}, "x"])
def test_an_odd_error(api: Api, odd: Any) -> None:
    assert _shown(api, error=odd)["error"]["code"] == "internal_error"


def test_odd_faults_leave_the_error_as_it_is(api: Api) -> None:
    error = {"code": "model_refused", "message": "m", "faults": [{"pointer": 3, "extra": []}]}
    assert _shown(api, error=error)["error"] == error | {"faults": []}


def test_a_job_keeps_the_recipe_that_it_was_submitted_with(api: Api) -> None:
    old = {"version": 1, "steps": [{"method": "gone", "ratio": 7}], "more": None}
    shown = _shown(api, recipe=old, requirements={"speed": "<= 1"})
    assert (shown["recipe"], shown["requirements"]) == (old, {"speed": "<= 1"})


def test_odd_attempts_events_and_uploads(api: Api) -> None:
    model_id, job_id = api.model(), api.job()
    with transaction(api.services.engine) as session:
        lease = claim(session, job_id, "host:1", "cpu")
        assert lease is not None
        seq = append_events(session, lease, [("import/done", {})])
        session.get_one(Attempt, lease.attempt_id).error = {"message": []}
        session.get_one(Event, (job_id, seq)).body = {"x": DEEP}
        model = session.get_one(Model, model_id)
        model.summary, model.refusal, model.options = {"sha256": 7}, {"faults": 3}, {"no_longer": "there"}
    (job,) = api.http.get("/v1/jobs").json()["items"]
    assert job["attempts"][0]["error"]["code"] == "internal_error"
    assert api.http.get(f"/v1/jobs/{job_id}/events").json()["items"][-1]["body"] == {}
    (shown,) = api.http.get("/v1/models").json()["items"]
    assert (shown["summary"], shown["refusal"]["code"]) == (None, "internal_error")
    assert shown["options"] == {"no_longer": "there"}


def _shown(api: Api, **stored: Any) -> dict[str, Any]:
    """A job whose record holds `stored`, as it is shown in the list; the other one is there too."""
    other, job_id = api.job(), api.job()
    with transaction(api.services.engine) as session:
        job = session.get_one(Job, job_id)
        for name, value in stored.items():
            setattr(job, name, value)
    answer = api.http.get("/v1/jobs")
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    assert [item["id"] for item in items] == [job_id, other]
    assert api.http.get(f"/v1/jobs/{job_id}").json() == items[0]
    return items[0]
