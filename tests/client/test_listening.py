"""Jobs watched on the stream of their events, whatever happens to it; polled where there is none."""

from __future__ import annotations

import json

import pytest

import billhook
from billhook.operations import listening
from tests.client.command import Command
from tests.client.either import Either
from tests.client.fake_server import KEY, FakeServer


@pytest.fixture
def long_job(fake: FakeServer, client: Either) -> str:
    fake.job_plan = [{"state": "running", "stage": "prune", "progress": number / 10} for number in range(9)] + [
        {"state": "succeeded", "progress": 1.0, "results": {"requirements_met": True}}
    ]
    return str(client.submit_job("mdl_1", ["ds_1"], "half").id)


def events_of(job_id: str) -> str:
    return f"GET /v1/jobs/{job_id}/events"


def streams_of(fake: FakeServer, job_id: str) -> int:
    """How often the stream was asked for."""
    return sum(request == events_of(job_id) and headers["Accept"].startswith("text/event-stream")
               for request, headers in zip(fake.log, fake.headers, strict=True))  # fmt: skip


def check(updates: list[billhook.Update], fake: FakeServer, job_id: str) -> None:
    """Every event once and in order, and the end."""
    numbers = [event.seq for update in updates for event in update.events]
    assert numbers == list(range(1, fake.looks[job_id] + 2))
    assert updates[-1].job.state == "succeeded"
    assert updates[-1].job.results == {"requirements_met": True}
    assert all(not update.job.over for update in updates[:-2])


def test_all_on_one_stream(client: Either, fake: FakeServer, long_job: str) -> None:
    updates = client.watch_job(long_job)
    check(updates, fake, long_job)
    assert streams_of(fake, long_job) == 1
    assert fake.count(f"GET /v1/jobs/{long_job}") == 2, "at the beginning and at the end"
    shown = [update.job.progress for update in updates]
    assert shown == sorted(shown)
    assert {0.3, 0.7} <= set(shown), "the progress of the stream"
    assert updates[3].job.raw["progress"] == updates[3].job.progress
    assert updates[3].job.recipe == {"name": "half"}, "the rest of the job is still there"


@pytest.mark.parametrize("cuts", [[1], [2, 2, 3], [4, 0, 0, 5]])
def test_a_broken_stream_is_taken_up_where_it_broke(
    client: Either, fake: FakeServer, long_job: str, cuts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "SHORT_SECONDS", 0.0)
    fake.cuts = list(cuts)
    fake.failures[events_of(long_job)] = [(503, {})]
    check(client.watch_job(long_job), fake, long_job)
    assert streams_of(fake, long_job) == len(cuts) + 1


def test_streams_that_never_last_are_given_up(client: Either, fake: FakeServer, long_job: str) -> None:
    fake.cuts = [0] * 100
    check(client.watch_job(long_job), fake, long_job)
    assert streams_of(fake, long_job) == listening.SHORT_ONES


@pytest.mark.parametrize("kind", ["", "application/json", "text/html; charset=utf-8"])
def test_no_stream_to_be_had(client: Either, fake: FakeServer, long_job: str, kind: str) -> None:
    fake.stream, fake.silent_streams = kind, bool(kind)
    fake.closing.set()  # a silent one ends at once
    check(client.watch_job(long_job), fake, long_job)
    assert streams_of(fake, long_job) == 1


def test_a_proxy_that_keeps_the_stream_to_itself(
    client: Either, fake: FakeServer, long_job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "SILENCE_SECONDS", 0.2)
    fake.silent_streams = True
    check(client.watch_job(long_job), fake, long_job)
    assert streams_of(fake, long_job) == 1
    fake.silent_streams = False
    fake.failures[events_of(long_job)] = [None, "hang"]
    fake.jobs[long_job]["state"] = "running"
    fake.looks[long_job] = 0
    check(client.watch_job(long_job), fake, long_job)
    assert streams_of(fake, long_job) == 2, "nor did the head of an answer come"


def test_time_that_is_up_is_kept_exactly(
    client: Either, fake: FakeServer, monkeypatch: pytest.MonkeyPatch, job_id: str
) -> None:
    monkeypatch.setattr(listening, "SILENCE_SECONDS", 0.3)
    fake.job_plan = [{"state": "running"}]
    for call in (client.watch_job, client.wait_for_job):
        before = streams_of(fake, job_id)
        with pytest.raises(billhook.Timeout, match="running"):
            call(job_id, timeout=0.8)
        assert streams_of(fake, job_id) == before + 1, "streamed while there was time, polled then"


def test_waiting_hears_no_events(client: Either, fake: FakeServer, long_job: str) -> None:
    assert client.wait_for_job(long_job).state == "succeeded"
    assert streams_of(fake, long_job) == 1
    assert fake.count(f"GET /v1/jobs/{long_job}") == 2


def test_waiting_without_streams(client: Either, fake: FakeServer, long_job: str) -> None:
    fake.stream = ""
    assert client.wait_for_job(long_job).state == "succeeded"


def test_a_key_that_is_revoked_meanwhile(client: Either, fake: FakeServer, long_job: str) -> None:
    fake.cuts = [1]
    fake.failures[events_of(long_job)] = [None, None, (401, {})]  # the page and the first stream still go through
    with pytest.raises(billhook.ApiError) as caught:
        client.watch_job(long_job)
    assert (caught.value.status, streams_of(fake, long_job)) == (401, 2)


@pytest.mark.parametrize("as_json", [True, False])
def test_following_the_events(run: Command, client: Either, fake: FakeServer, long_job: str, as_json: bool) -> None:
    ran = run("jobs", "events", long_job, "--follow", *(["--json"] if as_json else []))
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == fake.looks[long_job] + 1
    if as_json:
        assert [json.loads(line)["seq"] for line in ran.out.splitlines()] == list(range(1, fake.looks[long_job] + 2))
    assert run("jobs", "events", long_job, "--follow", "--after", "3").out.split()[0] == "4"


def test_a_watch_that_is_left_hangs_up(fake: FakeServer) -> None:
    fake.job_plan = [{"state": "running"}]
    with billhook.Client(fake.url, KEY) as each:
        job_id = each.submit_job("mdl_1", ["ds_1"], "half").id
        watched = each.watch_job(job_id)
        for _ in range(5):
            next(watched)
        pool = each._http._transport._pool
        assert any(not connection.is_idle() for connection in pool.connections)
        watched.close()
        assert all(connection.is_idle() for connection in pool.connections)
