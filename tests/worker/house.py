"""What the worker's tests have: a context for what runs in their own process, and ways to make and read jobs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select

from store import jobs, outbox, uploads
from store.columns import now_utc
from store.database import reading, transaction
from store.records import Artifact, Attempt, Dataset, Event, Job, Model, OutboxMessage
from store.settings import Settings
from worker.context import Context

FAKE_CHILD = (sys.executable, str(Path(__file__).with_name("fake_child.py")))


def wait_for(condition: Callable[[], bool], seconds: float = 20, *, every: float = 0.02) -> None:
    """Until `condition()`, asked `every` so many seconds, holds; fails after `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(every)


@dataclass(frozen=True)
class House:
    """What a test has: a context for what runs in its own process, and ways to make and read jobs."""

    context: Context

    @property
    def settings(self) -> Settings:
        return self.context.settings

    def model(self, content: str | bytes = "weights", format: str = "onnx", **options: Any) -> str:
        path = self.settings.data_dir / "upload"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        sha256, size = self.context.storage.put_file(path)
        with transaction(self.context.engine) as session:
            model, _ = uploads.create_model(
                session, owner="me", sha256=sha256, bytes=size, filename=f"m.{format}", format=format, options=options
            )
        return model.id

    def dataset(self, **options: Any) -> str:
        with transaction(self.context.engine) as session:
            dataset, _ = uploads.create_dataset(
                session, owner="me", sha256=None, bytes=0, filename="digits", format="digits", options=options,
                uri="builtin:digits",
            )  # fmt: skip
        return dataset.id

    def source(self, uri: str, sha256: str | None = None, format: str = "image_folder") -> str:
        """A dataset that is to be fetched."""
        with transaction(self.context.engine) as session:
            dataset, _ = uploads.create_dataset(
                session, owner="me", sha256=None, bytes=0, filename="data", format=format, options={}, uri=uri,
                pinned_sha256=sha256,
            )  # fmt: skip
        return dataset.id

    def job(
        self,
        queue: str = "cpu",
        run_seconds_limit: int = 60,
        device: str = "cpu",
        weights: str = "uploaded",
        **plan: Any,
    ) -> str:
        """A queued job whose child does `plan`."""
        step = {"method": "filter_norm", "target": {"macs": 0.5}}
        recipe = {"steps": [step], "description": json.dumps(plan), "weights": weights}
        model, dataset = self.model(), self.dataset()
        with transaction(self.context.engine) as session:
            return jobs.create_job(
                session, owner="me", model_id=model, dataset_ids=[dataset], recipe=recipe, device=device, queue=queue,
                run_seconds_limit=run_seconds_limit,
            ).id  # fmt: skip

    def read(self, job_id: str) -> Job:
        with reading(self.context.engine) as session:
            job = session.get_one(Job, job_id)
            session.expunge_all()
        return job

    def events(self, job_id: str) -> list[Event]:
        with reading(self.context.engine) as session:
            events = list(session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.seq)))
            session.expunge_all()
        return events

    def attempts(self, job_id: str) -> list[Attempt]:
        with reading(self.context.engine) as session:
            attempts = jobs.attempts(session, [job_id])[job_id]
            session.expunge_all()
        return attempts

    def artifacts(self, job_id: str) -> dict[str, Artifact]:
        with reading(self.context.engine) as session:
            artifacts = {artifact.name: artifact for artifact in jobs.artifacts(session, job_id)}
            session.expunge_all()
        return artifacts

    def next_ring(self, job_id: str) -> datetime:
        with reading(self.context.engine) as session:
            return session.scalars(select(OutboxMessage.next_at).where(OutboxMessage.subject_id == job_id)).one()

    def ring_now(self, job_id: str) -> None:
        with transaction(self.context.engine) as session:
            outbox.hold(session, job_id, now_utc())

    def upload(self, subject_id: str) -> Model | Dataset:
        with reading(self.context.engine) as session:
            found: Model | Dataset = session.get_one(Model if subject_id.startswith("mdl_") else Dataset, subject_id)
            session.expunge_all()
        return found

    def cancel(self, job_id: str) -> None:
        with transaction(self.context.engine) as session:
            jobs.request_cancel(session, "me", job_id)

    def assert_no_gaps(self, job_id: str) -> None:
        events = self.events(job_id)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert self.read(job_id).next_event_seq == len(events) + 1


def child_of(house: House, job_id: str, attempt: int) -> int:
    """The pid of the attempt's child, once it has said so."""
    found: list[int] = []

    def said() -> bool:
        found[:] = [
            event.body["pid"] for event in house.events(job_id) if event.attempt == attempt and "pid" in event.body
        ]
        return bool(found)

    wait_for(said)
    return found[-1]


def epoch_reached(house: House, job_id: str, epoch: int) -> None:
    """Until the checkpoint of `epoch` is stored."""
    wait_for(lambda: any(e.name == "checkpoint" and e.body["number"] >= epoch for e in house.events(job_id)))


def over(house: House, job_id: str) -> bool:
    return house.read(job_id).state in ("succeeded", "failed", "cancelled")
