"""The same on SQLite and a folder, PostgreSQL and Redis, PostgreSQL and RabbitMQ: six jobs over HTTP, two workers, one
of which is killed, and one more that joins. Nothing is lost and nothing is done twice."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from store.database import connect, reading
from store.records import OutboxMessage
from store.settings import Settings
from tests.e2e.installation import Installation
from tests.servers import RABBITMQ, REDIS, need
from tests.store.conftest import fresh_postgres, postgres_url
from tests.worker.brokers import proxied, waiting_in
from tests.worker.house import wait_for

__all__ = ["fresh_postgres", "postgres_url"]  # fixtures

LEASES = {"LEASE_SECONDS": 10, "HEARTBEAT_SECONDS": 2, "REAPER_SECONDS": 1, "THREADS": 1}
OVER = ("succeeded", "failed", "cancelled")
TAKEN_OVER_SECONDS = 60


@pytest.fixture(params=["sqlite+filesystem", "postgresql+redis", "postgresql+rabbitmq"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, object]]:
    """The settings that all processes of an installation share."""
    storage = {"STORAGE_URL": f"file://{tmp_path}/storage", **LEASES}
    if request.param == "sqlite+filesystem":
        yield storage | {
            "DATABASE_URL": f"sqlite:///{tmp_path}/shared/billhook.db", "BROKER_URL": f"filesystem://{tmp_path}/queue",
        }  # fmt: skip
        return
    database: Engine = request.getfixturevalue("fresh_postgres")
    database_url = database.url.render_as_string(hide_password=False)
    with proxied(need(REDIS if request.param.endswith("redis") else RABBITMQ), tmp_path) as broker:
        yield storage | {
            "DATABASE_URL": database_url, "BROKER_URL": broker.direct_url, "QUEUE_PREFIX": broker.prefix,
        }  # fmt: skip


def recipe(epochs: int) -> dict[str, Any]:
    return {
        "allow_near_chance": True,  # the network is not trained
        "training": {"batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.02}},
        "steps": [{"method": "filter_norm", "ratio_per_round": 0.5, "every_epochs": 1, "target": {"macs": 0.6},
                   "fine_tune": {"epochs": epochs}}],
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_six_jobs_on_workers_that_come_and_go(shared: dict[str, object], tmp_path: Path) -> None:
    with Installation(tmp_path, shared) as here:
        inspector = here.worker("inspector", "inspect")
        for name in ("first", "second"):
            here.worker(name)
        model, dataset = here.uploads()

        def submit(name: str, epochs: int) -> str:
            body = {"model": model, "datasets": [dataset], "recipe": recipe(epochs), "name": name}
            answer = here.http.post("/v1/jobs", json=body)
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        cancelled = submit("is cancelled", 5_000)
        here.wait_for_epoch(cancelled, 1)
        killed = submit("its worker is killed", 100)
        here.wait_for_epoch(killed, 4)
        at_work = {worker["works_on"]: name for name, worker in here.workers().items()}
        victim, survivor = at_work[killed], at_work[cancelled]
        assert {victim, survivor} == {"first", "second"}

        os.killpg(here.processes[victim].pid, signal.SIGKILL)
        at = time.monotonic()
        assert here.http.post(f"/v1/jobs/{cancelled}/cancel").status_code == 202
        wait_for(lambda: here.job(cancelled)["state"] == "cancelled", 30, every=0.3)
        wait_for(lambda: len(here.job(killed)["attempts"]) == 2, TAKEN_OVER_SECONDS, every=0.3)
        assert time.monotonic() - at < TAKEN_OVER_SECONDS
        others = [submit(f"waits {number}", 1) for number in range(4)]
        third = here.worker("third")  # joins while jobs wait
        for job_id in (killed, *others):
            wait_for(lambda job_id=job_id: here.job(job_id)["state"] in OVER, 300, every=0.3)  # type: ignore[misc]

        for job_id in (killed, cancelled, *others):
            _check_log(here, job_id)
        assert _outcomes(here, cancelled) == ["cancelled"]
        assert _outcomes(here, killed) == ["lost", "succeeded"]
        for job_id in others:
            assert _outcomes(here, job_id) == ["succeeded"]
        for job_id in (killed, *others):
            assert here.job(job_id)["state"] == "succeeded", here.job(job_id)["error"]
            _check_artifacts(here, job_id)
        weights = {_artifacts(here, job_id)["weights.safetensors"] for job_id in others}
        assert len(weights) == 1, "the same inputs and seed give the same bits, on every worker"
        _nothing_is_left_to_do(shared)

        states = {name: worker["state"] for name, worker in here.workers().items()}
        assert states == {victim: "silent", survivor: "alive", "third": "alive", "inspector": "alive"}
        ended = (here.processes[survivor], third, inspector)
        for worker in ended:
            worker.terminate()
        assert [worker.wait(20) for worker in ended] == [0, 0, 0]
        assert set(here.workers()) == {victim}, "who ends in order takes itself out"


def _outcomes(here: Installation, job_id: str) -> list[str]:
    return [attempt["outcome"] for attempt in here.job(job_id)["attempts"]]


def _check_log(here: Installation, job_id: str) -> None:
    """Numbered without gaps, in the order of the attempts, with one end."""
    events = here.events(job_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    attempts = [event["attempt"] for event in events if event["attempt"] is not None]
    assert attempts == sorted(attempts), "nothing of a dead attempt comes after the next began"
    assert [event["body"]["state"] for event in events if event["name"] == "state"][-1] == here.job(job_id)["state"]
    assert sum(event["name"] == "state" and event["body"]["state"] in OVER for event in events) == 1


def _artifacts(here: Installation, job_id: str) -> dict[str, str]:
    items = here.get(f"/v1/jobs/{job_id}/artifacts")["items"]
    return {item["name"]: item["sha256"] for item in items}


def _check_artifacts(here: Installation, job_id: str) -> None:
    found = _artifacts(here, job_id)
    assert {"pruned.onnx", "weights.safetensors", "plan.json", "report.json"} <= set(found)
    for name, sha256 in found.items():
        answer = here.http.get(f"/v1/jobs/{job_id}/artifacts/{name}")
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).hexdigest() == sha256, name
        assert answer.headers["etag"].strip('"') == sha256


def _nothing_is_left_to_do(shared: dict[str, object]) -> None:
    """No doorbell is to be rung, and those that were rung twice have been answered, with nothing done for it."""
    settings = Settings(_env_file=None, **{name.lower(): value for name, value in shared.items()})  # type: ignore[arg-type]
    engine = connect(settings.database_url)
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(OutboxMessage)) == 0
    engine.dispose()
    for queue in ("cpu", "inspect"):
        wait_for(lambda queue=queue: waiting_in(settings, queue) == 0)  # type: ignore[misc]
