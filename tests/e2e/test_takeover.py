"""A worker is killed in the middle of fine-tuning, and another goes on: the same bits as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from core.graph.architectures import build
from store import jobs, migrate, uploads
from store.artifacts import ArtifactStore
from store.database import connect, reading, transaction
from store.records import Artifact, Attempt, Event, Job
from store.settings import Settings
from tests.worker.house import wait_for

ROOT = Path(__file__).parent.parent.parent
EPOCHS = 40  # enough to be still at it when the kill comes
RECIPE: dict[str, Any] = {
    "allow_near_chance": True,  # the network is not trained: what it learns here is all it knows
    "training": {"batch_size": 64, "augment": "crop", "optimizer": {"name": "sgd", "lr": 0.02}},
    "steps": [{"method": "filter_norm", "signal": "activations", "ratio_per_round": 0.5, "every_epochs": 1,
               "target": {"macs": 0.5}, "fine_tune": {"epochs": EPOCHS}}],
}  # fmt: skip


class Service:
    """Records and files in a folder, and workers as `python -m worker` starts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings(
            _env_file=None, data_dir=folder, lease_seconds=3, heartbeat_seconds=1, reaper_seconds=0.5, threads=1
        )
        self.engine = connect(self.settings.database_url)
        self.storage = ArtifactStore(self.settings.storage_url)
        self.workers: list[subprocess.Popen[bytes]] = []
        migrate.upgrade(self.engine)

    def start_worker(self, name: str) -> subprocess.Popen[bytes]:
        given = {name: getattr(self.settings, name) for name in self.settings.model_fields_set}
        variables = {f"BILLHOOK_{name.upper()}": str(value) for name, value in given.items()}
        with (self.folder / f"{name}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "worker", "--queue", "cpu", "--name", name],
                env=os.environ | variables, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in self.workers:
            worker.wait(20)
        for log in sorted(self.folder.glob("*.log")):
            print(f"--- {log.stem}\n{log.read_text()}")
        self.engine.dispose()

    def job(self) -> str:
        """A queued job: a small network with random weights, on the digits."""
        path = self.folder / "small_cnn.safetensors"
        network = build("small_cnn", num_classes=10, in_channels=1, image_size=(8, 8), seed=7)
        save_file(network.state_dict(), path)
        sha256, size = self.storage.put_file(path)
        options = {"architecture": "small_cnn", "input_shape": [1, 8, 8]}
        with transaction(self.engine) as session:
            model, _ = uploads.create_model(
                session,
                owner="me",
                sha256=sha256,
                bytes=size,
                filename=path.name,
                format="safetensors",
                options=options,
            )
            dataset, _ = uploads.create_dataset(
                session, owner="me", sha256=None, bytes=0, filename="digits", format="digits", options={},
                uri="builtin:digits",
            )  # fmt: skip
            job = jobs.create_job(session, owner="me", model_id=model.id, dataset_ids=[dataset.id], recipe=RECIPE)
            return job.id

    def read(self, job_id: str) -> Job:
        with reading(self.engine) as session:
            job = session.get_one(Job, job_id)
            session.expunge_all()
        return job

    def attempts(self, job_id: str) -> list[Attempt]:
        with reading(self.engine) as session:
            attempts = jobs.attempts(session, [job_id])[job_id]
            session.expunge_all()
        return attempts

    def events(self, job_id: str) -> list[Event]:
        with reading(self.engine) as session:
            events = list(session.query(Event).where(Event.job_id == job_id).order_by(Event.seq))
            session.expunge_all()
        return events

    def artifacts(self, job_id: str) -> dict[str, Artifact]:
        with reading(self.engine) as session:
            artifacts = {artifact.name: artifact for artifact in jobs.artifacts(session, job_id)}
            session.expunge_all()
        return artifacts


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.close()


def epoch_of(event: Event) -> int | None:
    """The fine-tuning epoch that the event reports, if it does."""
    return event.body["epoch"] if event.name.startswith("fine_tune/") and "/epoch/" in event.name else None


def running(service: Service, job_id: str) -> Callable[[], bool]:
    return lambda: service.read(job_id).state == "running"


@pytest.mark.slow
def test_kill_9_in_the_middle_of_fine_tuning_costs_nothing_but_time(service: Service) -> None:
    undisturbed = service.job()
    service.start_worker("first")
    wait_for(running(service, undisturbed), 30)
    disturbed = service.job()
    killed = service.start_worker("killed")
    wait_for(running(service, disturbed), 30)

    def in_the_middle() -> bool:
        epochs = [epoch for event in service.events(disturbed) if (epoch := epoch_of(event)) is not None]
        return len(epochs) >= 7  # behind the second checkpoint, which comes after the sixth

    wait_for(in_the_middle, 60)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(10)
    service.start_worker("second")
    wait_for(lambda: service.read(disturbed).state in ("succeeded", "failed"), 90)
    wait_for(lambda: service.read(undisturbed).state in ("succeeded", "failed"), 90)

    for job_id in (undisturbed, disturbed):
        job, events = service.read(job_id), service.events(job_id)
        assert job.state == "succeeded", job.error
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert sum(event.name == "state" and event.body["state"] == "succeeded" for event in events) == 1
    assert [attempt.outcome for attempt in service.attempts(undisturbed)] == ["succeeded"]
    assert [attempt.outcome for attempt in service.attempts(disturbed)] == ["lost", "succeeded"]

    events = service.events(disturbed)
    before = [event for event in events if event.attempt == 1]
    after = [event for event in events if event.attempt == 2]
    assert before[-1].seq < after[0].seq
    last = max(event.seq for event in before if event.name == "checkpoint")
    kept = [epoch for event in before if event.seq < last and (epoch := epoch_of(event)) is not None]
    again = [epoch for event in after if (epoch := epoch_of(event)) is not None]
    assert again[0] == kept[-1] + 1, "the first epoch follows the last checkpoint"
    assert again[0] > 1, "it does not start anew"
    assert again == list(range(again[0], EPOCHS + 1))

    expected, found = service.artifacts(undisturbed), service.artifacts(disturbed)
    assert set(found) == set(expected)
    for name in ("weights.safetensors", "pruned.onnx", "plan.json"):
        assert found[name].sha256 == expected[name].sha256, name
    assert not any(artifact.kind == "checkpoint" for artifact in found.values())


@pytest.mark.slow
def test_kill_9_of_the_parent_alone_ends_a_child_at_work(service: Service) -> None:
    job_id = service.job()
    worker = service.start_worker("killed")
    wait_for(lambda: any(epoch_of(event) is not None for event in service.events(job_id)), 60)
    children = children_of(worker.pid)
    assert children
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(10)
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 5)
    before = [event.seq for event in service.events(job_id)]
    with pytest.raises(AssertionError, match="waited in vain"):
        wait_for(lambda: [event.seq for event in service.events(job_id)] != before, 1)


def children_of(parent: int) -> list[int]:
    """The children of all its threads."""
    tasks = Path(f"/proc/{parent}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
