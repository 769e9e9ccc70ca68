"""`/metrics`: what Prometheus reads, who may, and that no client can make it grow."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from api.app import create_app
from api.known_keys import KnownKeys
from api.metrics import COUNTERS, SUMMARIES, Metrics
from store import jobs, leases
from store.columns import now_utc
from store.counters import count
from store.database import transaction
from store.keys import Principal, add_key, authenticate, get_key, new_secret, revoke_key
from store.settings import Settings
from tests.api.conftest import Api, TestClient, problem

ROOT = Path(__file__).parent.parent.parent
Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


def client(api: Api, *scopes: str) -> TestClient:
    secret = new_secret()
    with transaction(api.services.engine) as session:
        add_key(session, secret, owner="prometheus", name="scrape", scopes=scopes)
    return TestClient(api.app, headers={"Authorization": f"Bearer {secret}"})


def page(api: Api) -> str:
    api.services.metrics._figures._asked = None  # what was found a moment ago is good for five seconds
    answer = client(api, "metrics").get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return answer.text


def samples(families: Iterable[Metric]) -> Found:
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(found: Found, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_only_a_key_for_it_may_read_it(api: Api) -> None:
    problem(api.nobody.get("/metrics"), 401, "unauthenticated")
    problem(api.http.get("/metrics"), 403, "scope_missing")
    assert client(api, "metrics").get("/metrics").status_code == 200
    assert client(api, "admin").get("/metrics").status_code == 200
    problem(client(api, "metrics").get("/v1/jobs"), 403, "scope_missing")


def test_what_the_service_does(api: Api) -> None:
    before = samples(parse(page(api)))
    assert value(before, "billhook_database_up") == 1
    assert value(before, "billhook_queue_depth", queue="cpu") == 0, "an empty queue is shown too"
    assert value(before, "billhook_leases_lost_total") == 0
    assert value(before, "billhook_jobs_failed_total", code="poison") == 0, "an increase from nothing is seen"
    assert value(before, "billhook_queue_wait_seconds_count", queue="cpu") == 0
    assert ("billhook_queue_wait_seconds_count", frozenset({("queue", "inspect")})) not in before
    first, _ = api.job(), api.job(name="other")
    with transaction(api.services.engine) as session:
        lease = leases.claim(session, first, "host:1", "cpu")
        assert lease is not None
        count(session, "training_images", 640, device="cpu")
        count(session, "stages", stage="prune", device="cpu")
        count(session, "stage_seconds", 2.5, stage="prune", device="cpu")
    api.model(b"another", ready=False)
    found = samples(parse(page(api)))
    assert value(found, "billhook_queue_depth", queue="cpu") == 1
    assert value(found, "billhook_queue_depth", queue="inspect") == 1
    assert 0 <= value(found, "billhook_queue_oldest_seconds", queue="cpu") < 60
    assert value(found, "billhook_jobs", state="queued") == 1
    assert value(found, "billhook_jobs", state="running") == 1
    assert value(found, "billhook_jobs", state="cancelling") == 0
    assert value(found, "billhook_attempts_running", device="cpu") == 1
    assert value(found, "billhook_uploads_checking", topic="inspect_model") == 1
    assert value(found, "billhook_outbox_messages", topic="run") == 1
    assert value(found, "billhook_outbox_overdue_seconds") < 60
    assert value(found, "billhook_jobs_submitted_total") == 2
    assert value(found, "billhook_training_images_total", device="cpu") == 640
    assert value(found, "billhook_stage_seconds_sum", stage="prune", device="cpu") == 2.5
    assert value(found, "billhook_stage_seconds_count", stage="prune", device="cpu") == 1
    assert value(found, "billhook_queue_wait_seconds_count", queue="cpu") == 1
    with transaction(api.services.engine) as session:
        leases.finish(session, lease, "failed", error={"code": "parity_failed", "message": "", "faults": []})
    found = samples(parse(page(api)))
    assert value(found, "billhook_attempts_total", outcome="failed") == 1
    assert value(found, "billhook_jobs_failed_total", code="parity_failed") == 1
    assert value(found, "billhook_jobs_finished_total", state="failed") == 1


def test_every_server_on_the_database_says_the_same(api: Api) -> None:
    api.job()
    other = Metrics(api.settings)
    mine = samples(parse(page(api)))
    theirs = samples(parse(asyncio.run(other.page(""))[0].decode()))
    same = {"billhook_jobs", "billhook_queue_depth", "billhook_jobs_submitted_total", "billhook_outbox_messages"}
    assert {key: it for key, it in mine.items() if key[0] in same} == {
        key: it for key, it in theirs.items() if key[0] in same
    }


@pytest.mark.parametrize("exposition", ["text", "openmetrics"])
def test_it_is_what_promtool_would_pass(api: Api, exposition: str) -> None:
    """Its rules: help for all, counters end in _total and nothing else does, base units, no type in a name."""
    api.job()
    api.nobody.get("/nowhere")
    text = page(api)
    if exposition == "openmetrics":
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        answer = client(api, "metrics").get("/metrics", headers=accept)
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        families = list(parse_openmetrics(answer.text))
    else:
        families = list(parse(text))
    assert len({family.name for family in families}) == len(families) > 25
    for family in families:
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram", "summary", "info"), family
        assert re.fullmatch(r"(billhook|process|python)(_[a-z0-9]+)+", family.name), family.name
        if family.name.startswith("billhook_"):
            assert not re.search(r"(milli|_ms|minutes|kilo|counter|gauge|_count$|_sum$|_bucket$)", family.name), family
            assert family.documentation.endswith("."), family.documentation
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter") or sample.name.endswith("_info")
            assert all(re.fullmatch(r"[a-z_]+", label) for label in sample.labels)
    assert not any(name.endswith("_created") for family in families for name in [family.name])


def test_addresses_are_shown_by_their_template_and_nothing_that_a_stranger_says(api: Api) -> None:
    job_id = api.job()
    api.http.get(f"/v1/jobs/{job_id}", params={"wait": 0})
    api.http.get(f"/v1/jobs/{job_id}/events")
    api.http.get("/v1/jobs/job_unknown")
    for number in range(20):
        api.nobody.get(f"/stranger/{number}")
        api.http.get(f"/stranger/{number}")
        api.nobody.request(f"STRANGE{number}", "/v1/jobs")
    text = page(api)
    found = samples(parse(text))
    name = "billhook_http_requests_total"
    assert value(found, name, method="GET", route="/v1/jobs/{job_id}", status="200") == 1
    assert value(found, name, method="GET", route="/v1/jobs/{job_id}", status="404") == 1
    assert value(found, name, method="GET", route="none", status="401") == 20
    assert value(found, name, method="other", route="none", status="401") == 20
    assert value(found, "billhook_http_request_duration_seconds_count", route="/v1/jobs/{job_id}/events") == 1
    assert value(found, "billhook_http_request_duration_seconds_count", route="/v1/jobs/{job_id}") == 1, "no long poll"
    assert value(found, "billhook_http_requests_in_progress") == 1, "this one"
    assert job_id not in text
    assert "stranger" not in text.lower()
    routes = {labels for key, labels in found if key == name}
    assert {dict(labels)["route"] for labels in routes} <= {"none", *api.app.openapi()["paths"]}


def test_two_applications_in_one_process_keep_their_own(api: Api, settings: Settings) -> None:
    other = create_app(settings)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(other), base_url="http://test") as http:
            await http.get("/healthz")

    asyncio.run(ask())
    text = asyncio.run(other.state.services.metrics.page(""))[0].decode()
    assert value(samples(parse(text)), "billhook_http_requests_total", method="GET", route="/healthz", status="200")
    assert "/healthz" not in page(api)


def test_without_its_database_it_still_speaks_of_the_process(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    url = f"postgresql+psycopg://someone:geheim@127.0.0.1:{port}/records"
    text = asyncio.run(Metrics(settings.model_copy(update={"database_url": url})).page(""))[0].decode()
    found = samples(parse(text))
    assert value(found, "billhook_database_up") == 0
    assert value(found, "process_resident_memory_bytes") > 0
    assert not [key for key in found if key[0].startswith("billhook_jobs")]


def test_a_scrape_with_a_known_key_is_told_that_the_database_is_away(api: Api) -> None:
    scraper, stranger, revoked = (client(api, "metrics") for _ in range(3))
    reader = api.key("ann", "read", "metrics")
    for each in (scraper, revoked, reader):
        assert each.get("/metrics").status_code == 200
    with transaction(api.services.engine) as session:
        secret = revoked.headers["authorization"].removeprefix("Bearer ")
        principal = authenticate(session, secret)
        assert principal is not None
        revoke_key(session, get_key(session, None, principal.key_id))
    problem(revoked.get("/metrics"), 401, "unauthenticated")
    api.services.metrics._figures._asked = None
    api.services.engine.dispose()
    api.settings.data_dir.rename(api.settings.data_dir.with_name("away"))
    for each in (scraper, reader):
        assert value(samples(parse(each.get("/metrics").text)), "billhook_database_up") == 0
    for each in (stranger, revoked):
        problem(each.get("/metrics"), 503, "database_unavailable")
    problem(reader.get("/v1/jobs"), 503, "database_unavailable")


def test_a_key_that_has_ended_reads_nothing_while_the_database_is_away() -> None:
    known = KnownKeys(5)
    soon = now_utc() + timedelta(hours=1)
    known.keep("a", Principal("key_a", "ann", frozenset({"metrics"}), soon))
    known.keep("b", Principal("key_b", "ann", frozenset({"metrics"}), now_utc()))
    assert (known.last("a") is not None, known.last("b"), known.last("c")) == (True, None, None)
    known.drop("a")
    known.drop("c")
    assert known.last("a") is None


def test_a_dry_run_takes_as_long_as_a_worker_does(api: Api) -> None:
    """It is no slow answer."""
    problem(api.http.post("/v1/jobs", params={"dry_run": True}, json={}), 422, "request_invalid")
    assert "billhook_http_request_duration_seconds_count" not in {
        name for name, labels in samples(parse(page(api))) if ("route", "/v1/jobs") in labels
    }


def test_a_scrape_waits_for_no_writer(api: Api) -> None:
    job_id = api.job()
    answer = client(api, "metrics")
    with transaction(api.services.engine) as session:  # SQLite's only writer, in the middle of its work
        jobs.request_cancel(session, "ann", job_id)
        api.services.metrics._figures._asked = None
        found = samples(parse(answer.get("/metrics").text))
    assert value(found, "billhook_database_up") == 1
    assert value(found, "billhook_jobs", state="queued") == 1


def test_every_metric_is_documented() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    names = {f"billhook_{name}_total" for name in COUNTERS} | {f"billhook_{name}" for name in SUMMARIES}
    source = (ROOT / "api" / "metrics.py").read_text()
    names |= set(re.findall(r'"(billhook_\w+)"', source)) - {"billhook_http_requests"}
    names |= {f"billhook_{name}" for name in re.findall(r'_gauge\("(\w+)"', source)}
    assert len(names) > 20
    assert names <= set(re.findall(r"billhook_\w+", text)), names - set(re.findall(r"billhook_\w+", text))
