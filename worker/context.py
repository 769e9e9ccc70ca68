"""What the tasks of one worker process share."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import Engine

from core.errors import DeviceUnavailable
from core.job import Room
from store.artifacts import ArtifactStore
from store.database import connect
from store.settings import Settings
from worker.guard import Limits
from worker.presence import Presence
from worker.supervisor import CHILD, Ended

MEMORY_SHARE = 0.5
"""Of a child's memory, for the images of its dataset; the rest is torch's and the network's."""
DISK_SHARE = 0.75
"""Of what the inputs leave of a child's disk, for images that do not fit memory; the rest is for its other files."""
STOP_SECONDS = 0.5
AWAY_SECONDS = 45.0


@dataclass(frozen=True)
class Context:
    """One worker: where its records and files are, and its one slot.

    `gpu` is the number of the GPU that is the slot, None for the CPU. `command` starts a child.
    """

    settings: Settings
    engine: Engine
    storage: ArtifactStore
    name: str
    presence: Presence
    gpu: int | None = None
    command: Sequence[str] = CHILD
    stopping: threading.Event = field(default_factory=threading.Event)

    def told_to_stop(self, ended: Ended) -> bool:
        """Whether the child ended because this worker stops. Both may be told at once, and the child be quicker."""
        return ended.verdict == "stopped" or (ended.verdict == "terminated" and self.stopping.wait(STOP_SECONDS))

    @property
    def away_seconds(self) -> float:
        """When work that could not be done here is to be offered again: later, unless it is only this worker that
        ends."""
        return 0.0 if self.stopping.is_set() else AWAY_SECONDS

    @property
    def work_root(self) -> Path:
        """Where the work folders are."""
        return self.settings.data_dir / "work"

    @property
    def inspect_limits(self) -> Limits:
        """The settings' limits on a child that checks an upload."""
        limits = self.limits(self.settings.inspect_seconds_limit)
        return replace(limits, time_setting="BILLHOOK_INSPECT_SECONDS_LIMIT")

    @property
    def dry_run_limits(self) -> Limits:
        """The settings' limits on a child that does a dry run."""
        limits = self.limits(self.settings.dry_run_seconds_limit)
        return replace(limits, time_setting="BILLHOOK_DRY_RUN_SECONDS_LIMIT")

    def limits(self, run_seconds: float) -> Limits:
        """The settings' limits on a child that runs a job."""
        return Limits(
            run_seconds=run_seconds,
            memory_bytes=self.settings.memory_limit_bytes,
            disk_bytes=self.settings.disk_limit_bytes,
            open_files=self.settings.open_files_limit,
            grace_seconds=self.settings.cancel_grace_seconds,
        )

    def room(self, workdir: Path) -> Room:
        """What a dataset may take of the memory and disk of the child that works in `workdir`, its inputs there."""
        memory = self.settings.dataset_memory_bytes
        inputs = sum(file.stat().st_size for file in (workdir / "inputs").iterdir())
        return Room(
            memory_bytes=int(self.settings.memory_limit_bytes * MEMORY_SHARE) if memory is None else memory,
            disk_bytes=int(max(0, self.settings.disk_limit_bytes - inputs) * DISK_SHARE),
        )

    def device_of(self, queues: Sequence[str]) -> str | None:
        """What the jobs from these queues run on here; None where there are no jobs in them."""
        if self.gpu is not None:
            return f"cuda:{self.gpu}"
        return "cpu" if "cpu" in queues else None

    def device_for(self, wanted: str) -> tuple[str, int | None]:
        """What a job that asks for `wanted` (auto, cpu, cuda:N) runs on here: its name, and the GPU its child sees.

        Raises `DeviceUnavailable` for a GPU that is not this worker's slot.
        """
        if wanted == "cpu" or (wanted == "auto" and self.gpu is None):
            return "cpu", None
        if wanted not in ("auto", f"cuda:{self.gpu}"):
            mine = "the CPU" if self.gpu is None else f"cuda:{self.gpu}"
            raise DeviceUnavailable(f"the job asks for {wanted}, but it reached a worker for {mine}")
        return f"cuda:{self.gpu}", self.gpu


def default_name() -> str:
    """Of a worker that was given none: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def make_context(
    settings: Settings, *, name: str | None = None, gpu: int | None = None, command: Sequence[str] = CHILD
) -> Context:
    """A context with connections of its own. `name` defaults to host and process."""
    engine = connect(settings.database_url, pool_size=settings.database_pool_size)
    return Context(
        settings=settings,
        engine=engine,
        storage=ArtifactStore(settings.storage_url),
        presence=Presence(engine, settings.lease_seconds),
        name=name or default_name(),
        gpu=gpu,
        command=command,
    )
