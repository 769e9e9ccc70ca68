"""Which form the event log comes in, and what is said before a stream begins."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import pytest

from billhook.event_stream import EventStream, Message
from store import leases
from store.database import transaction
from tests.api.conftest import Api, pointers, problem

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def job(api: Api) -> str:
    """A job that is over, with seven events."""
    job_id = api.job()
    with transaction(api.services.engine) as session:
        lease = leases.claim(session, job_id, "host:1", "cpu")
        assert lease is not None
        said = [("prune/step/0/select", {"round": number, "text": "a\r\nb"}) for number in range(4)]
        leases.append_events(session, lease, said)
        leases.finish(session, lease, "failed", error={"code": "x", "message": "y", "faults": []})
    return job_id


def messages(content: bytes) -> list[Message]:
    return EventStream().feed(content)


def test_the_whole_log_as_a_stream(api: Api, job: str) -> None:
    answer = api.reader.get(f"/v1/jobs/{job}/events", headers=STREAM)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *said, progress, end = messages(answer.content)
    page = api.reader.get(f"/v1/jobs/{job}/events")
    assert [json.loads(message.data) for message in said] == page.json()["items"]
    assert [(message.event, message.id) for message in said] == [("message", str(number)) for number in range(1, 8)]
    assert (progress.event, json.loads(progress.data)["state"]) == ("progress", "failed")
    assert (end.event, json.loads(end.data)) == ("end", {"state": "failed"})
    assert answer.headers["vary"] == page.headers["vary"] == "Accept"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
        ("text/*", "text/event-stream; charset=utf-8"),
        ("application/json;q=0.5, text/event-stream", "text/event-stream; charset=utf-8"),
        ("text/event-stream;q=0.2, application/*;q=0.3", "application/json"),
    ],
)
def test_the_form_that_is_liked_best(api: Api, job: str, accept: str | None, kind: str) -> None:
    headers = {} if accept is None else {"Accept": accept}
    assert api.http.get(f"/v1/jobs/{job}/events", headers=headers).headers["content-type"] == kind


@pytest.mark.parametrize(("after", "header", "first"), [(0, "3", 4), (5, "3", 4), (6, None, 7), (2, "6", 7)])
def test_where_it_goes_on(api: Api, job: str, after: int, header: str | None, first: int) -> None:
    """The header is what a browser sends when it comes again to the same address."""
    given = {} if header is None else {"Last-Event-ID": header}
    where = f"/v1/jobs/{job}/events?after={after}"
    assert messages(api.http.get(where, headers=STREAM | given).content)[0].id == str(first)
    assert api.http.get(where, headers=given).json()["items"][0]["seq"] == first


@pytest.mark.parametrize("last", ["7", "8", str(2**31 - 1)])
def test_who_has_it_all_is_told_to_stay_away(api: Api, job: str, last: str) -> None:
    answer = api.http.get(f"/v1/jobs/{job}/events", headers=STREAM | {"Last-Event-ID": last})
    assert (answer.status_code, answer.content) == (204, b"")


def test_what_is_said_before_a_stream_begins(api: Api, job: str) -> None:
    where = f"/v1/jobs/{job}/events"
    problem(api.nobody.get(where, headers=STREAM), 401, "unauthenticated")
    problem(api.other.get(where, headers=STREAM), 404, "not_found")
    problem(api.http.get("/v1/jobs/job_none/events", headers=STREAM), 404, "not_found")
    problem(api.http.get(where, headers={"Accept": "text/html"}), 406, "not_acceptable")
    for number in ("x", "-1", str(2**31), "1.5", ""):
        answer = api.http.get(where, headers=STREAM | {"Last-Event-ID": number})
        assert pointers(problem(answer, 400, "parameter_invalid")) == {"/Last-Event-ID"}
    answer = api.http.get(where, params={"limit": 3, "wait": 1, "after": 1}, headers=STREAM)
    assert pointers(problem(answer, 400, "parameter_invalid")) == {"/limit", "/wait"}


def test_both_forms_are_documented(api: Api) -> None:
    answers = api.nobody.get("/openapi.json").json()["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]
    assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
    example = answers["200"]["content"]["text/event-stream"]["example"].encode()
    assert [message.event for message in messages(example)] == ["message", "progress", "end"]
    assert "204" in answers


def later(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Timer(0.3, action)
    thread.start()
    return thread


def test_a_long_poll_ends_with_the_job_and_not_before(api: Api) -> None:
    job_id = api.job()
    with transaction(api.services.engine) as session:
        lease = leases.claim(session, job_id, "host:1", "cpu")
    assert lease is not None

    def go_on() -> None:
        with transaction(api.services.engine) as session:
            leases.set_progress(session, lease, "prune", 0.5)
        time.sleep(0.2)
        with transaction(api.services.engine) as session:
            leases.finish(session, lease, "succeeded", {})

    thread = later(go_on)
    answer = api.http.get(f"/v1/jobs/{job_id}", params={"wait": 30}).json()
    thread.join()
    assert (answer["state"], answer["stage"]) == ("succeeded", "prune")
    assert api.services.hub.watched == 0


def test_a_long_poll_whose_time_is_up_says_how_it_is_now(api: Api) -> None:
    job_id = api.job()
    thread = later(lambda: leases_claim(api, job_id))
    assert api.http.get(f"/v1/jobs/{job_id}", params={"wait": 1}).json()["state"] == "running"
    thread.join()


def leases_claim(api: Api, job_id: str) -> None:
    with transaction(api.services.engine) as session:
        leases.claim(session, job_id, "host:1", "cpu")


def test_a_page_waits_for_its_first_event(api: Api) -> None:
    job_id = api.job()
    thread = later(lambda: leases_claim(api, job_id))
    page = api.http.get(f"/v1/jobs/{job_id}/events", params={"after": 1, "wait": 30}).json()
    thread.join()
    assert [(event["seq"], event["body"]["state"]) for event in page["items"]] == [(2, "running")]
