"""One attempt at one job: claim it, give a child its inputs, store what it says and leaves, close the job.

Every write shows the lease; from the moment it is lost nothing more is written. A database or storage that does not
answer is tried again for as long as the lease may still be ours.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy import delete, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from core.errors import BillhookError
from core.job import DatasetInput, JobInputs, ModelInput
from core.recipe import Recipe
from core.requirements import Requirements
from store import jobs, leases
from store.database import reading, transaction
from store.errors import LeaseLost, StorageUnavailable
from store.leases import Lease
from store.records import Artifact, Dataset, DryRun, Job, Model, TerminalState
from worker.answers import checked_report, error_body, last_stage, short_results, split_progress, unexpected
from worker.context import Context
from worker.environment import environment
from worker.guard import Order
from worker.heart import Heart, Held
from worker.lines import EventLine
from worker.meter import Meter
from worker.supervisor import Ended, supervise
from worker.workdir import CHECKPOINT_NAME, held_checkpoint, held_output, held_outputs, work_directory

RETRY_SECONDS = 1.0
PATIENCE_SECONDS = 120.0
MEDIA_TYPES = {".json": "application/json", ".md": "text/markdown; charset=utf-8", ".svg": "image/svg+xml"}
Value = TypeVar("Value")

log = structlog.get_logger("billhook.worker")


def run_job(context: Context, job_id: str) -> None:
    """Do the job, if it is to be had: a message may come late, twice, or for a job that is gone."""
    with bound_contextvars(job=job_id):
        _claim_and_run(context, job_id)


def _claim_and_run(context: Context, job_id: str) -> None:
    with reading(context.engine) as session:
        found = session.execute(select(Job.state, Job.device).where(Job.id == job_id)).one_or_none()
        request_id = jobs.request_id_of(session, job_id)
    if found is None or found.state != "queued":
        log.info("nothing to do", state="gone" if found is None else found.state)
        return
    try:
        device, gpu = context.device_for(found.device)
        misdirected = None
    except BillhookError as error:
        device, gpu, misdirected = "none", None, error
    with transaction(context.engine) as session:
        lease = leases.claim(
            session, job_id, context.name, device, host=socket.gethostname(), environment=environment(),
            lease_seconds=context.settings.lease_seconds,
        )  # fmt: skip
    if lease is None:
        log.info("nothing to do", state="claimed by another worker")
        return
    asked = {} if request_id is None else {"request_id": request_id}
    with (
        bound_contextvars(attempt=lease.number, **asked),
        heart_of(context, lease) as heart,
        context.presence.at_work(job_id),
    ):
        log.info("claimed", device=device)
        attempt = RunningAttempt(context, lease, heart, gpu, Meter(device))
        try:
            if misdirected is not None:
                attempt.fail(misdirected.as_dict())
            else:
                attempt.run()
        except LeaseLost:
            log.warning("lease lost; nothing more is written")
        else:
            log.info("attempt over")


def heart_of(context: Context, lease: Lease) -> Heart:
    """The heartbeat of a job's lease."""

    def beat() -> Held:
        with transaction(context.engine) as session:
            return leases.heartbeat(session, lease)

    def look() -> Held:
        with reading(context.engine) as session:
            query = select(Job.state).where(Job.id == lease.job_id, Job.current_attempt_id == lease.attempt_id)
            state = session.scalar(query)
        if state is None:
            return "lost"
        return "cancelling" if state == "cancelling" else "held"

    return Heart(
        beat, look, interval=context.settings.heartbeat_seconds, lease_seconds=lease.seconds, stopping=context.stopping
    )


class RunningAttempt:
    """An attempt that is under way."""

    def __init__(self, context: Context, lease: Lease, heart: Heart, gpu: int | None, meter: Meter) -> None:
        self._context = context
        self._lease = lease
        self._heart = heart
        self._gpu = gpu
        self._meter = meter
        self._stage: str | None = None
        self._eta_seconds: float | None = None
        self._workdir = Path()

    def run(self) -> None:
        """The whole of it. Raises `LeaseLost` when somebody else has the job."""
        try:
            with work_directory(self._context.work_root, self._lease.attempt_id) as self._workdir:
                self._patiently(self._prepare)
                ended = supervise(
                    "run", self._workdir, self._context.limits(self._lease.run_seconds_left), order=self._order,
                    store=self._store, gpu=self._gpu, command=self._context.command,
                )  # fmt: skip
                self._close(ended)
        except LeaseLost:
            raise
        except (StorageUnavailable, OSError) as error:  # the storage is away, or the disk full: the job is not to blame
            log.warning("the job cannot be done now; it is given back", error=str(error))
            self._release("storage or disk unavailable", self._context.away_seconds)
        except BillhookError as error:  # an input that is gone or damaged, or something unfit in state/ or out/
            self.fail(error.as_dict())
        except OperationalError as error:  # nothing can be written, nor said: the lease runs out
            log.warning("the database is away; the attempt is given up", error=type(error).__name__)
        except Exception as error:  # a defect of ours: better a failed job than one that runs for ever
            log.exception("attempt failed")
            self.fail(unexpected(error))

    def fail(self, error: Mapping[str, Any], events: Sequence[EventLine] = (), output_tail: str | None = None) -> None:
        """Close the job as failed, for good. Raises `LeaseLost`."""
        self._finish("failed", error=error, events=events, output_tail=output_tail)

    def _release(self, reason: str, delay: float = 0.0) -> None:
        def write(session: Session) -> None:
            leases.release(session, self._lease, reason=reason, delay=delay)
            self._meter.book(session, (), None)

        self._write(write)

    def _order(self) -> Order | None:
        return self._heart.order()

    # --- before the child ---------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Fetch the inputs and the latest checkpoint, hashes verified, and write `job.json`."""
        with reading(self._context.engine) as session:
            job = session.get_one(Job, self._lease.job_id)
            checkpoint = session.scalars(
                select(Artifact).where(Artifact.job_id == job.id, Artifact.kind == "checkpoint")
            ).one_or_none()
            session.expunge_all()  # no transaction is held while files are fetched
        inputs = fetch_inputs(self._context, job, self._workdir, self._gpu)
        if checkpoint is not None and CHECKPOINT_NAME.fullmatch(checkpoint.name):
            self._context.storage.get_file(checkpoint.sha256, self._workdir / checkpoint.name)
        (self._workdir / "job.json").write_text(inputs.model_dump_json(), encoding="utf-8")

    # --- while it runs ------------------------------------------------------------------------------------------------

    def _store(self, events: Sequence[EventLine]) -> None:
        """Store a batch in order. A lost lease ends the child by way of `_order`; what it says then goes nowhere."""
        try:
            batch: list[EventLine] = []
            for event in events:
                if event[0] in ("checkpoint", "artifact"):
                    self._append(batch)
                    (self._store_checkpoint if event[0] == "checkpoint" else self._store_output)(event[1])
                    batch = []
                else:
                    batch.append(event)
            self._append(batch)
        except LeaseLost:
            self._heart.lose()

    def _append(self, events: Sequence[EventLine]) -> None:
        if not events:
            return

        logged, progress = split_progress(events)
        stage = last_stage(logged) if progress is None else progress["stage"]
        moved = stage not in (None, self._stage)

        def write(session: Session) -> None:
            leases.append_events(session, self._lease, logged)
            if progress is not None:
                leases.set_progress(session, self._lease, **progress)
            elif moved:
                leases.set_progress(session, self._lease, stage, eta_seconds=self._eta_seconds)
            self._meter.book(session, logged, stage or self._stage)

        self._write(write)
        self._stage = stage or self._stage
        self._meter.enter(self._stage)
        if progress is not None:
            self._eta_seconds = progress["eta_seconds"]

    def _store_checkpoint(self, body: Mapping[str, Any]) -> None:
        """Store the file, then record it: the row never names what is not there. It replaces the one before."""
        file = body.get("file")
        with held_checkpoint(self._workdir, file) as held:
            sha256, size = self._patiently(lambda: self._context.storage.put_file(held))
        name = str(file)

        def write(session: Session) -> None:
            leases.append_events(session, self._lease, [("checkpoint", {**body, "sha256": sha256, "bytes": size})])
            leases.add_artifact(session, self._lease, name, "checkpoint", sha256, size, "application/octet-stream")
            older = delete(Artifact).where(
                Artifact.job_id == self._lease.job_id, Artifact.kind == "checkpoint", Artifact.name != name
            )
            session.execute(older)

        self._write(write)

    def _store_output(self, body: Mapping[str, Any]) -> None:
        """Store a file that is complete before the job is: it stays, whatever becomes of the attempt."""
        file = body.get("file")
        with held_output(self._workdir, file) as held:
            sha256, size = self._patiently(lambda: self._context.storage.put_file(held))
        name = str(file).partition("/")[2]

        def write(session: Session) -> None:
            leases.append_events(session, self._lease, [("artifact", {**body, "sha256": sha256, "bytes": size})])
            leases.add_artifact(session, self._lease, name, "output", sha256, size, media_type_of(name))

        self._write(write)

    # --- after it -----------------------------------------------------------------------------------------------------

    def _close(self, ended: Ended) -> None:
        for name, body in ended.rest:
            if name == "artifact" and not self._heart.lost:
                self._store_output(body)
        rest = [event for event in ended.rest if event[0] not in ("checkpoint", "artifact", "progress")]
        if self._heart.lost or ended.verdict == "lost":
            raise LeaseLost("the lease was lost while the child ran")
        said = {} if ended.verdict == "result" else {"output_tail": ended.output_tail}
        log.info("child ended", verdict=ended.verdict, peak_memory_bytes=ended.peak_memory_bytes, **said)
        if ended.verdict == "result":
            self._succeed(rest, ended.output_tail)
        elif ended.verdict == "error":
            self.fail(error_body(ended.body), rest, ended.output_tail)
        elif ended.verdict == "cancelled":
            self._finish("cancelled", events=rest, output_tail=ended.output_tail)
        elif self._context.told_to_stop(ended):
            self._release("worker stopped")
        else:
            self._died(ended.body, rest, ended.output_tail)

    def _succeed(self, rest: Sequence[EventLine], output_tail: str) -> None:
        put = self._context.storage.put_file
        with held_outputs(self._workdir) as files:
            results = short_results(checked_report(files))
            stored = {name: self._patiently(partial(put, path)) for name, path in files.items()}

        def record(session: Session) -> None:
            for name, (sha256, size) in stored.items():
                leases.add_artifact(session, self._lease, name, "output", sha256, size, media_type_of(name))

        self._finish("succeeded", results=results, events=rest, output_tail=output_tail, before=record)

    def _died(self, error: Mapping[str, Any], rest: Sequence[EventLine], output_tail: str) -> None:
        """The attempt came to nothing, and as far as we know the job is not to blame: it is tried again."""
        log.warning("attempt died", error=error["message"])

        def write(session: Session) -> None:
            leases.died(session, self._lease, error, events=rest, output_tail=output_tail)
            self._meter.book(session, rest, None)

        self._write(write)

    def _finish(
        self, state: TerminalState, *, results: Mapping[str, Any] | None = None, error: Mapping[str, Any] | None = None,
        events: Sequence[EventLine] = (), output_tail: str | None = None,
        before: Callable[[Session], None] | None = None,
    ) -> None:  # fmt: skip
        """Close the job in one transaction: files, last events, state. Its checkpoints have served then."""

        def write(session: Session) -> None:
            if before is not None:
                before(session)
            leases.finish(session, self._lease, state, results, error, events=events, output_tail=output_tail)
            mine = (Artifact.job_id == self._lease.job_id) & (Artifact.kind == "checkpoint")
            session.execute(delete(Artifact).where(mine))
            self._meter.book(session, events, None)

        self._write(write)

    # --- writing ------------------------------------------------------------------------------------------------------

    def _write(self, write: Callable[[Session], None]) -> None:
        def once() -> None:
            with transaction(self._context.engine) as session:
                write(session)

        self._patiently(once)

    def _patiently(self, action: Callable[[], Value]) -> Value:
        """`action`, again and again while database or storage do not answer, for two minutes at most.

        Raises `LeaseLost` once that is so, and the error itself when patience or the worker is at its end.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            if self._heart.lost:
                raise LeaseLost("the lease was lost before this could be written")
            try:
                return action()
            except (OperationalError, StorageUnavailable) as error:
                if self._context.stopping.is_set() or time.monotonic() > until:
                    raise
                log.warning("trying again", error=type(error).__name__)
                self._context.stopping.wait(RETRY_SECONDS)


def media_type_of(name: str) -> str:
    """Of a file that a job left."""
    return MEDIA_TYPES.get(Path(name).suffix, "application/octet-stream")


def fetch_inputs(context: Context, asked: Job | DryRun, workdir: Path, gpu: int | None) -> JobInputs:
    """What the child of a job, or of a dry run, is given, its files in `workdir/inputs`.

    Raises `NotFound` where one was deleted, `ArtifactMissing`, `ArtifactCorrupt`.
    """
    with reading(context.engine) as session:
        model, datasets = jobs.inputs_of(session, asked)
        weights = jobs.weights_of(session, asked)
        session.expunge_all()
    return JobInputs(
        model=fetch_model(context, model, workdir),
        weights=None if weights is None else fetch_model(context, weights, workdir, "weights"),
        datasets=tuple(fetch_dataset(context, dataset, workdir) for dataset in datasets),
        recipe=Recipe.model_validate(asked.recipe),
        requirements=Requirements.model_validate(asked.requirements),
        device="cpu" if gpu is None else "cuda:0",  # the one that its child sees
        room=context.room(workdir),
        threads=context.settings.threads,
    )


def fetch_model(context: Context, model: Model, workdir: Path, name: str = "model") -> ModelInput:
    """The model's file in `workdir/inputs`, read-only, hash verified. Raises `ArtifactMissing`, `ArtifactCorrupt`."""
    assert model.sha256 is not None  # only a dataset is ever built in
    path = _fetch(context, model.sha256, workdir / "inputs" / f"{name}.{model.format}")
    return ModelInput.model_validate(
        {"path": path, "sha256": model.sha256, "format": model.format, "options": model.options}
    )


def fetch_dataset(context: Context, dataset: Dataset, workdir: Path) -> DatasetInput:
    """The same for a dataset; one that is built in has no file."""
    path = None
    if dataset.sha256 is not None:
        path = dataset_path(dataset, workdir)
        if not path.exists():  # otherwise it was fetched from its source a moment ago
            _fetch(context, dataset.sha256, path)
    return DatasetInput.model_validate(
        {"path": path, "sha256": dataset.sha256, "format": dataset.format, "options": dataset.options,
         "uri": dataset.uri}
    )  # fmt: skip


def dataset_path(dataset: Dataset, workdir: Path) -> Path:
    """Where a child finds the dataset's file."""
    return workdir / "inputs" / f"{dataset.id}.{dataset.format}"


def _fetch(context: Context, sha256: str, path: Path) -> Path:
    context.storage.get_file(sha256, path)
    path.chmod(0o444)
    return path
