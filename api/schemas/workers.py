"""Workers: which there are, and whether they are at work."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from api.schemas.base import Out
from store.records import Worker


class WorkerOut(Out):
    id: str
    name: str
    host: str
    queues: list[str] = Field(description="cpu, gpu, gpu-N: jobs; inspect: checks of uploads; fetch: datasets by URI")
    device: str | None = Field(description="what its jobs run on; null: it runs none")
    version: str | None
    state: Literal["alive", "silent"] = Field(description="silent: not heard of for a lease; it may be dead")
    busy: bool
    works_on: str | None = Field(description="id of the job, model or dataset that it works on, where that is yours")
    started_at: datetime
    seen_at: datetime

    @classmethod
    def of(cls, worker: Worker, now: datetime, owned: frozenset[str]) -> WorkerOut:
        """As somebody sees it who owns `owned`."""
        same = ("id", "name", "host", "queues", "device", "version", "started_at", "seen_at")
        return cls.model_validate(
            {name: getattr(worker, name) for name in same}
            | {
                "state": "alive" if worker.expires_at >= now else "silent",
                "busy": worker.subject_id is not None,
                "works_on": worker.subject_id if worker.subject_id in owned else None,
            }
        )


class WorkerPage(Out):
    items: list[WorkerOut]
    next_page_token: str | None
