"""Lists of jobs, cancelling, events, waiting."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from store import leases
from store.database import transaction
from tests.api.conftest import Api, problem


def test_jobs_are_listed_by_what_is_asked_for(api: Api) -> None:
    first, second, third = api.job(name="a/x", tags=["t"]), api.job(name="a/y", kind="other"), api.job(name="b")
    api.http.post(f"/v1/jobs/{third}/cancel")

    def ids(**parameters: Any) -> list[str]:
        answer = api.http.get("/v1/jobs", params=parameters)
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["items"]]

    assert ids() == [third, second, first]
    assert ids(state="queued") == [second, first]
    assert ids(state=["queued", "cancelled"]) == [third, second, first]
    assert ids(name="a/") == [second, first]
    assert ids(kind="other") == [second]
    assert ids(tag="t") == [first]
    assert ids(tag="t", state="cancelled") == []
    page = api.http.get("/v1/jobs", params={"page_size": 2}).json()
    assert [job["id"] for job in page["items"]] == [third, second]
    assert ids(page_token=page["next_page_token"]) == [first]
    (fault,) = problem(api.http.get("/v1/jobs?state=queued&state=zzz"), 400, "parameter_invalid")["faults"]
    assert fault["pointer"] == "/state"
    assert fault["message"].startswith("the parameter state: the text 'zzz' is not one of")
    assert "'queued', 'running'" in fault["expected"]
    problem(api.http.get("/v1/jobs?name=%00"), 400, "parameter_invalid")


def test_cancelling(api: Api) -> None:
    job_id = api.job()
    answer = api.http.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    problem(api.http.post(f"/v1/jobs/{job_id}/cancel"), 409, "job_terminal")
    running = api.job()
    with transaction(api.services.engine) as session:
        assert leases.claim(session, running, "host:1", "cpu")
    for _ in range(2):
        answer = api.http.post(f"/v1/jobs/{running}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
    (attempt,) = answer.json()["attempts"]
    assert (attempt["number"], attempt["host"], attempt["outcome"]) == (1, "host", None)


# --- events, waiting -------------------------------------------------------------------------------------------------


def test_events_come_in_pages_without_gaps(api: Api) -> None:
    job_id = api.job()
    with transaction(api.services.engine) as session:
        lease = leases.claim(session, job_id, "host:1", "cpu")
        assert lease is not None
        leases.append_events(
            session, lease, [("fine_tune/0/epoch/1", {"loss": float("nan"), "n": n}) for n in range(5)]
        )
    seen: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = api.http.get(f"/v1/jobs/{job_id}/events", params={"after": after, "limit": 3}).json()
        seen += page["items"]
        after = page["next_after"]
    assert [event["seq"] for event in seen] == list(range(1, 8))
    assert seen[0]["attempt"] is None
    assert seen[2] == {"seq": 3, "attempt": 1, "name": "fine_tune/0/epoch/1", "created_at": seen[2]["created_at"],
                       "body": {"loss": {"$float": "nan"}, "n": 0}}  # fmt: skip
    assert api.http.get(f"/v1/jobs/{job_id}/events", params={"after": 7}).json() == {"items": [], "next_after": None}
    for parameters in ({"after": -1}, {"limit": 0}, {"limit": 5_000}, {"after": 2**40}, {"wait": "nan"}):
        problem(api.http.get(f"/v1/jobs/{job_id}/events", params=parameters), 400, "parameter_invalid")


def test_waiting_for_the_end_of_a_job(api: Api, tmp_path: Path) -> None:
    job_id = api.job()
    timer = threading.Timer(0.3, lambda: api.succeed(job_id, {}, tmp_path))
    timer.start()
    began = time.monotonic()
    job = api.http.get(f"/v1/jobs/{job_id}", params={"wait": 30}).json()
    timer.join()
    assert time.monotonic() - began < 10
    assert (job["state"], job["progress"], job["error"]) == ("succeeded", 1, None)
    assert job["results"]["ratios"]["params"] == 0.5
    assert job["attempts"][0]["outcome"] == "succeeded"


def test_what_is_no_number_is_said_so(api: Api) -> None:
    job_id = api.job()
    with transaction(api.services.engine) as session:
        lease = leases.claim(session, job_id, "host:1", "cpu")
        assert lease is not None
        leases.set_progress(session, lease, "measure", float("nan"), float("inf"))
        leases.finish(session, lease, "succeeded", {"ratios": {"latency": float("inf"), "params": None, "macs": 0.5}})
    job = api.http.get(f"/v1/jobs/{job_id}").json()
    assert job["results"]["ratios"] == {"latency": {"$float": "inf"}, "params": None, "macs": 0.5}
    assert (job["stage"], job["eta_seconds"]) == ("measure", None)


def test_waiting_for_an_event(api: Api) -> None:
    job_id = api.job()
    timer = threading.Timer(0.2, lambda: api.http.post(f"/v1/jobs/{job_id}/cancel"))
    timer.start()
    page = api.http.get(f"/v1/jobs/{job_id}/events", params={"after": 1, "wait": 30}).json()
    timer.join()
    assert [event["body"]["state"] for event in page["items"]] == ["cancelled"]


def test_many_may_wait_at_once(api: Api) -> None:
    """More than there are threads and connections: between two looks a waiting request holds neither."""
    job_id = api.job()
    states: list[str] = []

    def wait() -> None:
        states.append(api.http.get(f"/v1/jobs/{job_id}", params={"wait": 30}).json()["state"])

    threads = [threading.Thread(target=wait) for _ in range(60)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    assert api.http.get(f"/v1/jobs/{job_id}").json()["state"] == "queued"
    assert api.http.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
    for thread in threads:
        thread.join()
    assert states == ["cancelled"] * 60
    assert time.monotonic() - began < 20
